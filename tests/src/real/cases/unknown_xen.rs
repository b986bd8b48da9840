//! On a Xen of an unknown release, what only looks goes on as far as it can without the control interface, and all
//! else refuses and says why. All other parts are stock ones, which do not ask for the release.

use scenarios::{OrStop, Outcome, demand};
use serde_json::Value;

use crate::real::guest::Config;
use crate::real::host::{Host, Ran};

/// What Xen calls itself.
const NAME: &str = "Xen 4.99";
const UUID: &str = "7c1f2c0e-8d3d-4b0f-9e52-0a4c0de0f1aa";

/// Commands, and words that they print; `DOM` stands for the guest's number. Each explains why there is not more.
const WITH_LESS: &[(&[&str], &[&str])] = &[
    (
        &["info"],
        &["xen_minor              : 99", "xen_caps", "release"],
    ),
    (&["info", "xen_minor"], &["99"]),
    (&["info", "--json"], &["\"xen_minor\": \"99\""]),
    (
        &["list"],
        &["Name ", "Domain-0", "seen ", "16     -     ------        -"],
    ),
    (&["list", "seen"], &["seen "]),
    (&["list", "DOM"], &["seen "]),
    (&["list", "--json"], &["\"name\": \"seen\""]),
    (&["list", "-l"], &["\"domid\": DOM", UUID, "\"kernel\""]),
    (&["vm-list"], &[UUID, "seen"]),
    (&["uptime", "seen"], &["seen "]),
    (
        &["block-list", "seen"],
        &["51712", "/backend/vbd/DOM/51712"],
    ),
    (&["network-list", "seen"], &["00:16:3e:5c:00:01"]),
    (&["channel-list", "seen"], &["Idx"]),
];

/// What needs no more than the store, or nothing at all, is as ever.
const AS_EVER: &[(&[&str], &[&str])] = &[
    (&["domid", "seen"], &["DOM"]),
    (&["domname", "DOM"], &["seen"]),
    (&["store", "read", "/local/domain/DOM/name"], &["seen"]),
    (&["check", "CONFIG"], &["seen"]),
    (&["create", "-q", "-n", "CONFIG"], &["\"seen\""]),
    (
        &["-N", "block-attach", "seen", "CONFIG,raw,xvdb,r"],
        &["xvdb"],
    ),
    (&["--help"], &["Usage: xlrs"]),
];

/// All other commands, with good words.
const REFUSED: &[&[&str]] = &[
    &["create", "CONFIG", "name=\"another\""],
    &["run", "KERNEL"],
    &["config-update", "seen", "CONFIG"],
    &["destroy", "seen"],
    &["shutdown", "seen"],
    &["shutdown", "-a"],
    &["reboot", "seen"],
    &["pause", "seen"],
    &["unpause", "seen"],
    &["rename", "seen", "other"],
    &["sysrq", "seen", "h"],
    &["trigger", "seen", "nmi"],
    &["dump-core", "seen", "/tmp/core"],
    &["vcpu-list"],
    &["vcpu-pin", "seen", "0", "all"],
    &["vcpu-set", "seen", "1"],
    &["mem-set", "seen", "16"],
    &["mem-max", "seen", "32"],
    &["claims"],
    &["sched-credit"],
    &["sched-credit2"],
    &["sched-rtds"],
    &["block-attach", "seen", "KERNEL,raw,xvdb,r"],
    &["block-detach", "seen", "xvda"],
    &["block-resize", "seen", "xvda"],
    &["network-attach", "seen"],
    &["network-detach", "seen", "0"],
    &["cpupool-create", "name=\"p\""],
    &["cpupool-list"],
    &["cpupool-destroy", "p"],
    &["cpupool-rename", "Pool-0", "p"],
    &["cpupool-cpu-add", "Pool-0", "0"],
    &["cpupool-cpu-remove", "Pool-0", "0"],
    &["cpupool-migrate", "seen", "Pool-0"],
    &["cpupool-numa-split"],
    &["dmesg"],
    &["top"],
    &["debug-keys", "h"],
    &["set-parameters", "loglvl=info"],
    &["pool", "fill"],
    &["supervise"],
    &["serve-console"],
];

/// Each command, on a guest that a stock `xl` has made.
pub fn all(host: &Host) -> Outcome {
    let minor = std::fs::read_to_string("/sys/hypervisor/version/minor");
    let minor = minor.or_broken("read Xen's version")?;
    demand!(minor.trim() == "99", "this Xen is 4.{minor}: it is known");
    let kernel = host.lab_file("/lab/guests/driver")?.display().to_string();
    let image = host.zero_file("disk.img", 4)?;
    let config = Config::new("seen", &kernel, 16)
        .string("uuid", UUID)
        .disk(&image)
        .vif(host.bridge()?)
        .write(host, "seen.cfg")?;
    let config = config.display().to_string();
    host.run(&["xl", "create", "-q", &config])?.succeeded()?;
    let dom = host.run(&["xl", "domid", "seen"])?.succeeded()?.stdout;
    let put = |words: &[&str]| -> Vec<String> {
        let put = |word: &&str| {
            word.replace("CONFIG", &config)
                .replace("KERNEL", &kernel)
                .replace("DOM", dom.trim())
        };
        words.iter().map(put).collect()
    };
    let run = |words: &[&str]| -> Outcome<Ran> {
        let words = put(words);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        host.run(&[&["xlrs"], &words[..]].concat())
    };
    let before = host.run(&["xenstore-ls", "-f", "-p"])?.succeeded()?.stdout;
    for (explained, rows) in [(true, WITH_LESS), (false, AS_EVER)] {
        for (words, parts) in rows {
            let ran = run(words)?;
            demand!(ran.status == 0, "{ran}");
            for part in put(parts) {
                demand!(ran.stdout.contains(&part), "no {part:?} in {ran}");
            }
            demand!(ran.stderr.contains(NAME) == explained, "{ran}");
        }
    }
    // Programs read it.
    let listed = run(&["list", "-l", "seen"])?;
    let listed: Value = serde_json::from_str(&listed.stdout).or_fail("read the JSON")?;
    demand!(
        listed[0]["config"]["c_info"]["name"] == "seen",
        "list -l shows {listed}"
    );
    let nobody = run(&["vm-list", "--json"])?;
    let count = serde_json::from_str::<Value>(&nobody.stdout).or_fail("read the JSON")?;
    demand!(count.as_array().map(Vec::len) == Some(2), "{nobody}");
    for words in [["block-list", "nobody"], ["list", "4444"]] {
        let ran = run(&words)?;
        demand!(ran.stderr.contains("invalid domain identifier"), "{ran}");
    }
    for words in REFUSED {
        let ran = run(words)?;
        demand!(ran.status == 1 && ran.stdout.is_empty(), "{ran}");
        for part in [NAME, "its control interface is not known", "4.14 to 4.22"] {
            demand!(ran.stderr.contains(part), "no {part:?}: {ran}");
        }
    }
    println!(
        "    {} commands go on, {} refuse; such as: {}",
        WITH_LESS.len() + AS_EVER.len(),
        REFUSED.len(),
        run(&["destroy", "seen"])?.stderr.trim_end()
    );
    // Nobody has changed anything.
    let after = host.run(&["xenstore-ls", "-f", "-p"])?.succeeded()?.stdout;
    demand!(before == after, "the store was\n{before}and is\n{after}");
    host.run(&["xl", "destroy", "seen"])?.succeeded()?;
    // Our daemons do not start, either.
    let ran = host.run(&[
        "xlrs",
        "host",
        "start",
        "--stock",
        "xenstored,console,blkback,netback",
    ])?;
    demand!(ran.status == 1 && ran.stderr.contains(NAME), "{ran}");
    println!("    {}", ran.stderr.trim_end().replace('\n', "\n    "));
    Ok(())
}
