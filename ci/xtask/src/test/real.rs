//! Tier 2: scenarios in a real dom0, each in a lab of its own, fresh from the snapshot.

use std::collections::BTreeSet;
use std::process::Command as Process;
use std::time::{Duration, Instant};

use lab_agent::message::Command;
use serde::Deserialize;

use super::report::{Place, Report, Verdict};
use super::{TestArgs, in_parallel};
use crate::error::{Context, Error, Result, fail};
use crate::lab::{Lab, Origin, Prepared};
use crate::packages::XenVersion;
use crate::services::{self, Part};
use crate::ui;

/// One line of `scenarios list --json`.
#[derive(Clone, Debug, Deserialize)]
struct Scenario {
    name: String,
    /// Xen releases it is for.
    xen: Vec<String>,
    /// Stock parts in place of ours.
    #[serde(default)]
    stock: Vec<String>,
    timeout_s: u64,
    /// Xen calls itself a release that nobody knows.
    #[serde(default)]
    unknown_xen: bool,
}

/// A scenario on one Xen release.
struct Case {
    scenario: Scenario,
    version: XenVersion,
    stock: BTreeSet<Part>,
}

impl Case {
    fn title(&self) -> String {
        format!("{} on Xen {}", self.scenario.name, self.version.name())
    }
}

/// Runs tier 2.
pub fn run(args: &TestArgs, prepared: &Prepared, report: &Report) {
    let Some(program) = prepared.built.programs.get("scenarios") else {
        let why = Verdict::Skip("no crate has the program `scenarios`".into());
        report.take("tier 2", Place::RealXen, Duration::ZERO, why);
        return;
    };
    let listed = Process::new(program)
        .args(["list", "--json"])
        .output()
        .context(|| format!("running {} list --json", program.display()))
        .and_then(|out| parse(&out.stdout));
    let cases = match listed.and_then(|found| cases(&found, &args.versions())) {
        Ok(cases) => cases,
        Err(e) => return report.error("scenarios list --json", &e.0),
    };
    let cases: Vec<Case> = cases
        .into_iter()
        .filter(|c| args.wants(&c.title()))
        .collect();
    if args.list {
        cases.iter().for_each(|c| println!("{}", c.title()));
        return;
    }
    in_parallel(&cases, args.jobs(), |case| {
        let begun = Instant::now();
        let verdict = scenario(prepared, case).unwrap_or_else(|e| Verdict::Error(e.0));
        report.take(&case.title(), Place::RealXen, begun.elapsed(), verdict);
    });
}

fn parse(json: &[u8]) -> Result<Vec<Scenario>> {
    let found: Vec<Scenario> =
        serde_json::from_slice(json).context(|| "scenarios list --json".into())?;
    if found.is_empty() {
        return fail("scenarios list --json: no scenario");
    }
    Ok(found)
}

fn cases(found: &[Scenario], versions: &[XenVersion]) -> Result<Vec<Case>> {
    let mut out = Vec::new();
    for scenario in found {
        let stock = scenario
            .stock
            .iter()
            .map(|s| {
                Part::named(s)
                    .ok_or_else(|| Error(format!("{}: no stock part {s:?}", scenario.name)))
            })
            .collect::<Result<BTreeSet<Part>>>()?;
        for version in versions {
            if scenario.xen.iter().any(|x| x == version.name()) {
                out.push(Case {
                    scenario: scenario.clone(),
                    version: *version,
                    stock: stock.clone(),
                });
            }
        }
    }
    // Long ones first, so that the last to end is a short one.
    out.sort_by_key(|c| std::cmp::Reverse(c.scenario.timeout_s));
    Ok(out)
}

fn scenario(prepared: &Prepared, case: &Case) -> Result<Verdict> {
    let origin = match case.scenario.unknown_xen {
        true => Origin::Disguised,
        false => Origin::Snapshot,
    };
    let lab = Lab::start_from(prepared, case.version, MEMORY_MIB, origin)?;
    if let Err(e) = services::up(&lab, &case.stock) {
        lab.keep_quietly();
        return Ok(Verdict::Fail(format!("{e}\n{}", lab.words())));
    }
    let command = Command {
        argv: ["/lab/bin/scenarios", "run", &case.scenario.name]
            .map(String::from)
            .to_vec(),
        env: services::environment(case.version, &case.stock),
        ..Command::default()
    };
    let limit = Duration::from_secs(case.scenario.timeout_s);
    let (mut out, mut all) = (Vec::new(), Vec::new());
    let ended = lab.follow(command, limit, |is_stderr, data| {
        if !is_stderr {
            out.extend_from_slice(data);
        }
        all.extend_from_slice(data);
    });
    let all = String::from_utf8_lossy(&all).into_owned();
    let _ = std::fs::write(lab.dir().join("scenario.log"), &all);
    let verdict = match ended {
        Ok(status) => judge(status, &String::from_utf8_lossy(&out)),
        // The limit passed, or dom0 died: a scenario must do neither.
        Err(e) => Verdict::Fail(format!("    {e}")),
    };
    let words = |why: &str| {
        format!(
            "{why}\n  last lines of the scenario:\n{}{}",
            ui::tail(&all, 25),
            lab.words()
        )
    };
    let verdict = match verdict {
        Verdict::Fail(why) => Verdict::Fail(words(&why)),
        Verdict::Error(why) => Verdict::Error(words(&why)),
        good => return Ok(good),
    };
    lab.keep_quietly();
    Ok(verdict)
}

/// Memory of each lab.
const MEMORY_MIB: u32 = 2048;

fn judge(status: i32, stdout: &str) -> Verdict {
    let last = || {
        stdout
            .lines()
            .rev()
            .find(|l| !l.trim().is_empty())
            .unwrap_or("")
            .trim()
    };
    match status {
        0 => Verdict::Pass,
        77 => Verdict::Skip(
            if last().is_empty() {
                "no reason given"
            } else {
                last()
            }
            .into(),
        ),
        99 => Verdict::Error("    the scenario says that the lab broke".into()),
        other => Verdict::Fail(format!("    exit status {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"[
        {"name": "short", "xen": ["4.17", "4.20"], "stock": ["xl"], "timeout_s": 10, "about": "x"},
        {"name": "long", "xen": ["4.17", "4.14"], "stock": [], "timeout_s": 90, "about": "y"}]"#;

    #[test]
    fn each_scenario_runs_on_each_of_its_releases() {
        let found = parse(LIST.as_bytes()).unwrap();
        let titles: Vec<String> = cases(&found, &XenVersion::ALL)
            .unwrap()
            .iter()
            .map(Case::title)
            .collect();
        assert_eq!(
            titles,
            [
                "long on Xen 4.14",
                "long on Xen 4.17",
                "short on Xen 4.17",
                "short on Xen 4.20"
            ]
        );
        let only = cases(&found, &[XenVersion::V4_20]).unwrap();
        assert_eq!(only.len(), 1);
        assert!(only[0].stock.contains(&Part::Xl));
    }

    #[test]
    fn a_bad_list_is_an_error() {
        assert!(parse(b"[]").is_err());
        assert!(parse(b"{").is_err());
        let mut found = parse(LIST.as_bytes()).unwrap();
        found[0].stock.push("xend".into());
        assert!(cases(&found, &XenVersion::ALL).is_err());
    }

    #[test]
    fn exit_statuses_are_verdicts() {
        assert_eq!(judge(0, ""), Verdict::Pass);
        assert_eq!(
            judge(77, "a\nno such kernel\n\n"),
            Verdict::Skip("no such kernel".into())
        );
        assert!(matches!(judge(1, ""), Verdict::Fail(_)));
        assert!(matches!(judge(137, ""), Verdict::Fail(_)));
        assert!(matches!(judge(99, ""), Verdict::Error(_)));
    }
}
