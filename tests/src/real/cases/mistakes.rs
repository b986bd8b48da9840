//! What fails with a stock `xl` fails with `xlrs`, and both end with the same status, which is what scripts see. Where
//! ours tells more, that stands here with its reason.

use std::time::Duration;

use scenarios::{Outcome, demand};

use crate::real::driver::Driver;
use crate::real::guest::Config;
use crate::real::host::{Host, Ran};
use crate::real::snapshot::leaves_nothing;

/// Words of a failing command: CONFIG stands for a good configuration, DISK for a disk that a guest writes to.
const SAME: &[&[&str]] = &[
    &["create"],
    &["shutdown"],
    &["reboot"],
    &["destroy"],
    &["pause"],
    &["config-update"],
    &["cpupool-create"],
    &["block-attach", "taken"],
    &["create", "-q", "/no/such.cfg"],
    &["create", "-q", "CONFIG", "OTHER"],
    &["create", "-q", "CONFIG", "name=\"taken\""],
    &["create", "-q", "CONFIG", "kernel=\"/no/such/kernel\""],
    &["create", "-q", "CONFIG", "kernel=\"/etc/passwd\""],
    &["create", "-q", "CONFIG", "ramdisk=\"/no/such/ramdisk\""],
    &["create", "-q", "CONFIG", "vif=[\"bridge=nobridge\"]"],
    &["create", "-q", "CONFIG", "vif=[\"script=/no/such/script\"]"],
    &[
        "create",
        "-q",
        "CONFIG",
        "disk=[\"/no/such/disk,raw,xvda,w\"]",
    ],
    &["create", "-q", "CONFIG", "disk=[\"DISK,raw,xvda,w\"]"],
    &["create", "-q", "CONFIG", "disk=[\"DISK,raw,xvda,q\"]"],
    &["create", "-q", "CONFIG", "pool=\"nopool\""],
    &["create", "-q", "CONFIG", "uuid=\"nonsense\""],
    &["create", "-q", "CONFIG", "type=\"nonsense\""],
    &["create", "-q", "CONFIG", "on_crash=\"nonsense\""],
    &["create", "-q", "CONFIG", "cpus=\"nonsense\""],
    &["create", "-q", "CONFIG", "vcpus=2", "maxvcpus=1"],
    &["create", "-q", "CONFIG", "tsc_mode=\"nonsense\""],
    &["create", "-q", "CONFIG", "max_grant_frames=999999"],
    &["cpupool-create", "name=\"p\"", "sched=\"nonsense\""],
    &["cpupool-create", "name=\"p\"", "sched=\"rtds\""],
    &["cpupool-create", "name=\"Pool-0\""],
    &["sched-rtds", "-d", "taken"],
];

/// The same, xl's status, ours, and why they differ.
const DIFFERENT: &[(&[&str], i32, i32, &str)] = &[
    (
        &["create", "-q", "CONFIG", "memory=16000"],
        3,
        5,
        "xl tells that there is no memory only where it has tried to take some from dom0",
    ),
    (
        &["create", "-q", "CONFIG", "memory=\"\""],
        0,
        1,
        "a mistake in the configuration is told before anything is tried",
    ),
    (
        &["create", "-q", "CONFIG", "memory=24", "maxmem=16"],
        0,
        1,
        "a guest that may have less than it is given is a mistake; xl does not look",
    ),
    (
        &["cpupool-create", "name=\"p\"", "cpus=[\"7\"]"],
        6,
        1,
        "only where guests are made does the status tell more than that it failed",
    ),
];

/// Runs all of them with both.
pub fn all(host: &Host) -> Outcome {
    let kernel = host.lab_file("/lab/guests/hello")?.display().to_string();
    let image = host.zero_file("disk.img", 4)?;
    let config = Config::new("wrong", &kernel, 16).write(host, "wrong.cfg")?;
    let words = |words: &[&str]| -> Vec<String> {
        let put = |word: &&str| {
            word.replace("CONFIG", &config.display().to_string())
                .replace("DISK", &image.display().to_string())
                .replace("OTHER", "/tmp/other.cfg")
        };
        words.iter().map(put).collect()
    };
    leaves_nothing(host, || {
        let driver = Driver::create(host, "taken", |config| config.disk(&image))?;
        let mut wrong = Vec::new();
        leaves_nothing(host, || {
            for line in SAME {
                let (theirs, ours) = both(host, &words(line))?;
                if theirs.status != ours.status || theirs.status == 0 {
                    wrong.push(format!("  xl:   {theirs}\n  xlrs: {ours}"));
                }
            }
            for (line, their_status, our_status, why) in DIFFERENT {
                let (theirs, ours) = both(host, &words(line))?;
                if (theirs.status, ours.status) != (*their_status, *our_status) {
                    wrong.push(format!("  ({why})\n  xl:   {theirs}\n  xlrs: {ours}"));
                }
            }
            Ok(())
        })?;
        demand!(
            wrong.is_empty(),
            "{} differences:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        driver.destroy()
    })
}

fn both(host: &Host, words: &[String]) -> Outcome<(Ran, Ran)> {
    let run = |program: &str| -> Outcome<Ran> {
        let words: Vec<&str> = std::iter::once(program)
            .chain(words.iter().map(String::as_str))
            .collect();
        let ran = host.run_for(&words, Duration::from_secs(60))?;
        if ran.status == 0 {
            // So that what comes next finds what it would find.
            host.run(&["xlrs", "destroy", "wrong"])?;
        }
        Ok(ran)
    };
    let (theirs, ours) = (run("xl")?, run("xlrs")?);
    println!("    {} {}", ours.status, words.join(" "));
    // What to do, or where in the configuration it is.
    let remedies = ["help:", "--help", "^"];
    let has_one = remedies.iter().any(|part| ours.stderr.contains(part));
    demand!(ours.status == 0 || has_one, "no remedy: {ours}");
    Ok((theirs, ours))
}
