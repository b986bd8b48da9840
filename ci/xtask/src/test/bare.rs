//! Tier 1: our guest image `selftest` booted by Xen as dom0, with no Linux at all.

use std::path::Path;
use std::time::{Duration, Instant};

use super::report::{Place, Report, Verdict};
use super::{TestArgs, in_parallel};
use crate::error::Result;
use crate::lab::Prepared;
use crate::packages::XenVersion;
use crate::paths;
use crate::qemu::BareMachine;
use crate::runs::RunFolder;
use crate::ui;

/// Longest such a run may take; it takes a second or two.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs tier 1.
pub fn run(args: &TestArgs, prepared: &Prepared, report: &Report) {
    let images: Vec<(&String, &Path)> = prepared
        .built
        .guests
        .iter()
        .filter(|(name, _)| name.starts_with("selftest"))
        .map(|(name, path)| (name, path.as_path()))
        .collect();
    if images.is_empty() {
        let why = Verdict::Skip("pvguest/images has no image `selftest`".into());
        report.take("tier 1", Place::RealXen, Duration::ZERO, why);
        return;
    }
    let mut cases = Vec::new();
    for version in args.versions() {
        for (name, path) in &images {
            let case = format!("{name} on bare Xen {}", version.name());
            if args.wants(&case) {
                cases.push((case, version, *path));
            }
        }
    }
    if args.list {
        cases.iter().for_each(|c| println!("{}", c.0));
        return;
    }
    in_parallel(&cases, args.jobs(), |(name, version, image)| {
        let begun = Instant::now();
        let verdict = boot(prepared, *version, image).unwrap_or_else(|e| Verdict::Error(e.0));
        report.take(name, Place::RealXen, begun.elapsed(), verdict);
    });
}

fn boot(prepared: &Prepared, version: XenVersion, image: &Path) -> Result<Verdict> {
    let dir = RunFolder::new(&prepared.lab, prepared.keep)?;
    let machine = BareMachine {
        xen: &prepared.image(version)?.xen,
        guest: image,
        arguments: "selftest",
        dir: dir.path(),
    };
    let mut qemu = machine.start()?;
    let ended = qemu.wait(LIMIT);
    drop(qemu);
    let log = dir.path().join("console.log");
    let said = String::from_utf8_lossy(&paths::read(&log)?).replace('\r', "");
    let verdict = judge(&said, ended);
    if verdict != Verdict::Pass {
        dir.keep();
    }
    Ok(match verdict {
        Verdict::Fail(why) => Verdict::Fail(format!(
            "    {why}\n  last lines of {}:\n{}",
            log.display(),
            ui::tail(&said, 25)
        )),
        other => other,
    })
}

/// The image's last word is a line `selftest: N passed, N failed`; then it has Xen reboot, which ends
/// QEMU.
fn judge(said: &str, ended: bool) -> Verdict {
    let line = said
        .lines()
        .rev()
        .find_map(|l| l.split_once("selftest: ")?.1.split_once(" passed, "));
    let counts = line.and_then(|(passed, rest)| {
        let failed = rest.split_whitespace().next()?;
        Some((
            passed.trim().parse::<u32>().ok()?,
            failed.parse::<u32>().ok()?,
        ))
    });
    match counts {
        Some((1.., 0)) if ended => Verdict::Pass,
        Some((1.., 0)) => Verdict::Fail(format!("it did not end within {LIMIT:?}")),
        Some((passed, failed)) => Verdict::Fail(format!("{passed} passed, {failed} failed")),
        None => Verdict::Fail("it did not say `selftest: N passed, N failed`".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clean_end_passes() {
        for (said, ended, passes) in [
            ("(XEN) x\nselftest: 7 passed, 0 failed\n", true, true),
            (
                "(d0) selftest: 7 passed, 0 failed\n(XEN) reboot",
                true,
                true,
            ),
            ("selftest: 7 passed, 0 failed\n", false, false),
            ("selftest: 7 passed, 1 failed\n", true, false),
            ("selftest: 0 passed, 0 failed\n", true, false),
            ("panic\n", true, false),
            ("", true, false),
        ] {
            assert_eq!(judge(said, ended) == Verdict::Pass, passes, "{said:?}");
        }
    }
}
