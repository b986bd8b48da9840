//! `cargo xtask bench create` and `bench blk`: a script in dom0, started by the boot itself, on a clock that counts
//! instructions. No snapshot, no input, no wall clock: figures repeat to the microsecond.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Serialize;

use crate::builds::Profile;
use crate::cpio::Tree;
use crate::error::{Context, Error, Result, fail};
use crate::image::Image;
use crate::lab::Prepared;
use crate::packages::XenVersion;
use crate::paths;
use crate::qdisk;
use crate::qemu::{Accel, Machine, Memory};
use crate::runs::RunFolder;
use crate::ui;

/// Options of `cargo xtask bench create`.
#[derive(clap::Args)]
pub struct BenchArgs {
    /// The Xen release.
    #[arg(long, value_enum, default_value = "4.17")]
    xen: XenVersion,
    /// Rows as JSON on stdout.
    #[arg(long)]
    json: bool,
    /// Run this script in the boot instead of the bench's own, and print what it writes.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Keep the run's folder.
    #[arg(long)]
    keep: bool,
    /// Tell what is done, with times, and each sample.
    #[arg(long, short)]
    verbose: bool,
}

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Better {
    Higher,
    Lower,
}

/// One figure beside its peer.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    case: String,
    subject: String,
    peer: String,
    subject_value: f64,
    peer_value: f64,
    unit: String,
    better: Better,
    /// subject / peer
    ratio: f64,
}

/// Longest wall time of a bench; its own clock runs at about half the pace.
const LIMIT: Duration = Duration::from_secs(1200);
/// Room for 200 tiny guests.
const MEMORY_MIB: u32 = 3072;

/// One boot of a bench: what daemons run cannot be changed within one.
pub struct Boot {
    name: &'static str,
    script: String,
    /// Builds what is unpacked over the image in this boot alone.
    more: Option<fn(&Path, XenVersion) -> Result<PathBuf>>,
}

impl Boot {
    /// A boot with what scripts have in common before its own.
    pub fn new(name: &'static str, common: &str, script: &str) -> Boot {
        Boot {
            name,
            script: format!("{common}{script}"),
            more: None,
        }
    }
}

/// Creating guests.
pub fn create(args: &BenchArgs) -> Result<i32> {
    let common = include_str!("../bench/common");
    run(
        args,
        &[
            Boot::new(
                "boot with stock daemons",
                common,
                include_str!("../bench/create-stock"),
            ),
            Boot::new(
                "boot with our daemons",
                common,
                include_str!("../bench/create-ours"),
            ),
        ],
    )
}

/// Block back ends. QEMU has a boot of its own, so that the others' image stays as small as it is.
pub fn blk(args: &BenchArgs) -> Result<i32> {
    let common = include_str!("../bench/blk-common");
    let rings = Boot::new(
        "boot with our and the kernel's back end",
        common,
        include_str!("../bench/blk-kernel"),
    );
    let script = include_str!("../bench/blk-qdisk");
    let qdisk = Boot {
        more: Some(qdisk::obtain),
        ..Boot::new("boot with QEMU's back end", common, script)
    };
    run(args, &[rings, qdisk])
}

/// Runs a bench and prints its rows.
fn run(args: &BenchArgs, boots: &[Boot]) -> Result<i32> {
    ui::init(args.verbose);
    let prepared = Prepared::new(&[args.xen], false, Some(Profile::Release), args.keep)?;
    if let Some(file) = &args.script {
        let boot = Boot {
            name: "boot with the script",
            script: String::from_utf8_lossy(&paths::read(file)?).into_owned(),
            // The last boot's is the largest.
            more: boots.last().and_then(|boot| boot.more),
        };
        print!("{}", measure(&prepared, args.xen, &boot)?);
        return Ok(0);
    }
    let mut out = String::new();
    for boot in boots {
        let words = ui::slow(boot.name, || measure(&prepared, args.xen, boot))?;
        out += &words;
    }
    ui::detail(out.trim_end());
    let rows = rows(&out)?;
    if args.json {
        let text = serde_json::to_string_pretty(&rows).context(|| "writing JSON".into())?;
        println!("{text}");
    } else {
        print!("{}", table(&rows));
    }
    Ok(0)
}

/// Boots with the bench in the image and gives what it printed.
pub fn measure(prepared: &Prepared, xen: XenVersion, boot: &Boot) -> Result<String> {
    let folder = RunFolder::new(&prepared.lab, prepared.keep)?;
    let dir = folder.path();
    let image = prepared.image(xen)?;
    let more = match boot.more {
        Some(obtain) => paths::read(&obtain(&prepared.lab, xen)?)?,
        None => Vec::new(),
    };
    let initrd = boot_image(dir, image, prepared, &boot.script, more)?;
    let machine = Machine {
        image,
        initrd: &initrd,
        accel: Accel::Icount,
        memory_mib: MEMORY_MIB,
        memory: Memory::Anonymous,
        incoming: false,
        dir,
    };
    let mut qemu = machine.start()?;
    if !qemu.wait(LIMIT) {
        folder.keep();
        return fail(format!(
            "the bench was not over after {LIMIT:?}\n{}",
            qemu.words()
        ));
    }
    let console = paths::read(&dir.join("console.log"))?;
    harvest(&String::from_utf8_lossy(&console).replace('\r', "")).inspect_err(|_| folder.keep())
}

/// What the bench wrote, from the console it was printed on.
fn harvest(console: &str) -> Result<String> {
    let marked = |mark: &str| -> Vec<String> {
        let lines = console.lines().filter_map(|l| l.strip_prefix(mark));
        lines.map(|l| l.to_string() + "\n").collect()
    };
    let (out, err) = (marked("bench-out: "), marked("bench-err: "));
    let over = marked("bench-over: ");
    let Some((status, lines)) = over.first().and_then(|l| l.trim().split_once(' ')) else {
        return fail(format!(
            "the machine ended before the bench\n{}",
            ui::tail(console, 20)
        ));
    };
    if status != "0" {
        return fail(format!(
            "the bench ended with {status}\n{}{}",
            ui::tail(&out.concat(), 20),
            ui::tail(&err.concat(), 20)
        ));
    }
    if lines != out.len().to_string() {
        return fail(format!(
            "the bench wrote {lines} lines, the console has {}",
            out.len()
        ));
    }
    Ok(out.concat())
}

/// dom0's image with our programs, guests and the bench in it: nothing is read over 9p.
fn boot_image(
    dir: &Path,
    image: &Image,
    prepared: &Prepared,
    script: &str,
    more: Vec<u8>,
) -> Result<PathBuf> {
    let mut tree = Tree::new();
    for (name, file) in &prepared.built.programs {
        tree.file(&format!("lab/bin/{name}"), 0o755, stripped(file, dir)?);
    }
    for (name, file) in &prepared.built.guests {
        tree.file(&format!("lab/guests/{name}"), 0o755, paths::read(file)?);
    }
    tree.file(
        "usr/lib/lab/at-boot",
        0o755,
        include_str!("../image/at-boot"),
    );
    tree.file("usr/lib/lab/bench", 0o755, script);
    // Linux unpacks archives that follow each other.
    let mut bytes = paths::read(&image.initrd)?;
    bytes.extend(more);
    bytes.extend(tree.to_cpio());
    let path = dir.join("bench-initrd");
    paths::write_atomically(&path, &bytes)?;
    Ok(path)
}

/// A program without its debug sections, which would only fill dom0's memory.
fn stripped(file: &Path, dir: &Path) -> Result<Vec<u8>> {
    let to = dir.join("stripped");
    let done = Command::new("strip")
        .arg("--strip-debug")
        .arg("-o")
        .args([&to, file])
        .status();
    match done {
        Ok(status) if status.success() => paths::read(&to),
        _ => paths::read(file),
    }
}

/// Rows from lines `case NAME UNIT lower|higher SUBJECT PEER` and `sample CASE WHO VALUE`.
fn rows(out: &str) -> Result<Vec<Row>> {
    let mut cases: Vec<[String; 5]> = Vec::new();
    let mut samples: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for line in out.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["case", rest @ ..] => {
                let fields: Option<[&str; 5]> = rest.try_into().ok();
                let fields = fields.ok_or_else(|| Error(format!("bench said {line:?}")))?;
                cases.push(fields.map(String::from));
            }
            ["sample", case, who, value] => {
                let value = value.parse().context(|| format!("bench said {line:?}"))?;
                samples
                    .entry((case.to_string(), who.to_string()))
                    .or_default()
                    .push(value);
            }
            ["note", rest @ ..] => eprintln!("{}", rest.join(" ")),
            _ => ui::detail(format!("bench: {line}")),
        }
    }
    let mut rows = Vec::new();
    for [case, unit, better, subject, peer] in cases {
        let value = |who: &str| {
            let found = samples.get(&(case.clone(), who.to_string()));
            median(found.map_or(&[], Vec::as_slice))
                .ok_or_else(|| Error(format!("bench: no sample of {case} for {who}")))
        };
        let (subject_value, peer_value) = (value(&subject)?, value(&peer)?);
        let better = match better.as_str() {
            "lower" => Better::Lower,
            "higher" => Better::Higher,
            other => return fail(format!("bench: neither lower nor higher: {other}")),
        };
        rows.push(Row {
            ratio: subject_value / peer_value,
            case,
            subject,
            peer,
            subject_value,
            peer_value,
            unit,
            better,
        });
    }
    if rows.is_empty() {
        return fail("the bench gave no row");
    }
    Ok(rows)
}

fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

fn table(rows: &[Row]) -> String {
    let mut out = format!(
        "{:24} {:>16} {:>16}  {:6} {:>7}  {}\n",
        "case", "subject", "peer", "unit", "ratio", "better"
    );
    for r in rows {
        let better = match r.better {
            Better::Higher => "higher",
            Better::Lower => "lower",
        };
        let cell = |who: &str, value: f64| format!("{who} {value:.1}");
        out += &format!(
            "{:24} {:>16} {:>16}  {:6} {:7.3}  {better}\n",
            r.case,
            cell(&r.subject, r.subject_value),
            cell(&r.peer, r.peer_value),
            r.unit,
            r.ratio
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: &str = "noise\ncase create-tiny us lower xlrs xl\nsample create-tiny xl 40\n\
        sample create-tiny xl 50\nsample create-tiny xl 44\nsample create-tiny xlrs 10\nsample create-tiny xlrs 12\n";

    #[test]
    fn rows_are_medians_and_their_ratio() {
        let rows = rows(OUT).unwrap();
        assert_eq!((rows[0].subject_value, rows[0].peer_value), (11.0, 44.0));
        let json = serde_json::to_value(&rows).unwrap();
        assert_eq!(
            json,
            serde_json::json!([{"case": "create-tiny", "subject": "xlrs", "peer": "xl",
                "subject_value": 11.0, "peer_value": 44.0, "unit": "us", "better": "lower", "ratio": 0.25}])
        );
        assert!(table(&rows).contains("0.250"));
    }

    #[test]
    fn the_console_gives_all_lines_or_an_error() {
        let good = "(XEN) x\nbench-out: case a\nbench-out: sample b\nbench-over: 0 2\nreboot\n";
        assert_eq!(harvest(good).unwrap(), "case a\nsample b\n");
        for bad in [
            "",
            "bench-out: a\n",
            "bench-out: a\nbench-over: 0 2\n",
            "bench-out: a\nbench-over: 1 1\n",
        ] {
            assert!(harvest(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_missing_side_is_an_error() {
        for out in [
            "",
            "case a us lower x y\nsample a x 1\n",
            "case a us\n",
            "case a us best x y\nsample a x 1\nsample a y 1\n",
        ] {
            assert!(rows(out).is_err(), "{out:?}");
        }
    }
}
