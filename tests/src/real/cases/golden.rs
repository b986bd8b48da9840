//! `xlrs` beside stock `xl` in the same boot, for the same guests: the same text or JSON on the standard
//! output, and the same exit status. What may differ is listed here with its reason.

use std::time::Duration;

use scenarios::{OrStop, Outcome, Stop, demand};
use serde_json::Value;

use crate::real::driver::Driver;
use crate::real::guest::Config;
use crate::real::host::{Host, Ran};
use crate::real::snapshot::leaves_nothing;

/// Numbers move between two commands; so often both are run again.
const TRIES: usize = 5;

/// How two outputs are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum As {
    /// Byte by byte, but for the numbers that move: CPU seconds and times of day.
    Text,
    /// As JSON.
    Json,
    /// Only the exit status.
    Status,
}

/// Read-only commands: GUEST stands for the guest's name, DOM for its number.
const LOOKS: &[(As, &[&str])] = &[
    (As::Text, &["list"]),
    (As::Text, &["list", "-v"]),
    (As::Text, &["list", "-Z"]),
    (As::Text, &["list", "-c"]),
    (As::Text, &["list", "-n"]),
    (As::Text, &["list", "-cn"]),
    (As::Text, &["list", "GUEST"]),
    (As::Text, &["list", "DOM"]),
    (As::Text, &["list", "--verbose", "GUEST"]),
    (As::Json, &["list", "-l"]),
    (As::Json, &["list", "-l", "GUEST"]),
    (As::Json, &["list", "--long", "0"]),
    (As::Text, &["list", "nobody"]),
    (As::Text, &["list", "4444"]),
    (As::Text, &["vm-list"]),
    (As::Text, &["info"]),
    (As::Text, &["info", "-n"]),
    (As::Text, &["info", "total_memory"]),
    (As::Text, &["info", "free"]),
    (As::Text, &["info", "xen_m"]),
    (As::Text, &["info", "nonsense"]),
    (As::Text, &["dmesg"]),
    (As::Text, &["domid", "GUEST"]),
    (As::Text, &["domid", "Domain-0"]),
    (As::Text, &["domid", "nobody"]),
    (As::Text, &["domname", "DOM"]),
    (As::Text, &["domname", "0"]),
    (As::Text, &["domname", "4444"]),
    (As::Text, &["domname", "nobody"]),
    (As::Text, &["uptime"]),
    (As::Text, &["uptime", "GUEST"]),
    (As::Text, &["uptime", "-s"]),
    (As::Text, &["uptime", "-s", "GUEST"]),
    (As::Text, &["uptime", "nobody"]),
    (As::Text, &["vcpu-list"]),
    (As::Text, &["vcpu-list", "GUEST"]),
    (As::Text, &["vcpu-list", "0", "GUEST"]),
    (As::Status, &["vcpu-list", "nobody"]),
    (As::Text, &["block-list", "GUEST"]),
    (As::Text, &["block-list", "nobody"]),
    (As::Text, &["network-list", "GUEST"]),
    (As::Text, &["network-list", "nobody"]),
    (As::Text, &["channel-list", "GUEST"]),
    (As::Text, &["claims"]),
    (As::Text, &["sched-credit"]),
    (As::Text, &["sched-credit2"]),
    (As::Text, &["sched-credit2", "-d", "GUEST"]),
    (As::Text, &["sched-credit2", "-s"]),
    (As::Text, &["sched-credit2", "-s", "-p", "Pool-0"]),
    (As::Text, &["sched-credit2", "-p", "Pool-0"]),
    (As::Status, &["sched-credit", "-d", "GUEST"]),
    (As::Text, &["sched-rtds"]),
    (As::Status, &["sched-credit2", "-d", "nobody"]),
    (As::Text, &["cpupool-list"]),
    (As::Text, &["cpupool-list", "-c"]),
    (As::Text, &["cpupool-list", "Pool-0"]),
    (As::Text, &["cpupool-list", "nobody"]),
    (As::Text, &["cpupool-create", "-n", "name=\"p\""]),
    (As::Text, &["-N", "vcpu-pin", "GUEST", "0", "0"]),
    (As::Text, &["-N", "vcpu-pin", "GUEST", "0", "-", "all"]),
    (As::Json, &["create", "-q", "-n", "CONFIG"]),
    (
        As::Json,
        &["create", "--quiet", "--dryrun", "--defconfig", "CONFIG"],
    ),
    (
        As::Text,
        &[
            "-N",
            "network-attach",
            "GUEST",
            "bridge=xenbr0",
            "mac=00:16:3e:5c:00:33",
        ],
    ),
    (
        As::Text,
        &["-N", "block-attach", "GUEST", "/tmp/x.img,raw,xvdb,w"],
    ),
    (
        As::Json,
        &[
            "create",
            "-q",
            "-n",
            "CONFIG",
            "cpus=\"0,2-3\"",
            "cpu_weight=512",
            "cap=50",
        ],
    ),
    (
        As::Json,
        &[
            "create",
            "-q",
            "-n",
            "CONFIG",
            "cpus_soft=[\"0\", \"1\"]",
            "vcpus=2",
        ],
    ),
    (
        As::Json,
        &[
            "create",
            "-q",
            "-n",
            "CONFIG",
            "tsc_mode=\"native\"",
            "localtime=1",
        ],
    ),
    (
        As::Json,
        &[
            "create",
            "-q",
            "-n",
            "CONFIG",
            "rtc_timeoffset=60",
            "pool=\"Pool-0\"",
        ],
    ),
    // Prefixes, as long as they are unambiguous.
    (As::Text, &["cpupool-l"]),
    (As::Text, &["vcpu-l"]),
    (As::Text, &["upt", "GUEST"]),
    // What scripts get wrong.
    (As::Status, &["nonsense"]),
    (As::Status, &[]),
    (As::Status, &["help"]),
    (As::Status, &["list", "-h"]),
    (As::Status, &["list", "--nonsense"]),
    (As::Status, &["vcpu-pin"]),
    (As::Status, &["vcpu-pin", "GUEST", "0", "7"]),
    (As::Status, &["vcpu-pin", "GUEST", "9", "0"]),
    (As::Status, &["vcpu-pin", "GUEST", "x", "0"]),
    (As::Status, &["vcpu-set", "GUEST", "99"]),
    (As::Status, &["mem-set", "GUEST", "4000"]),
    (As::Status, &["mem-set", "GUEST", "x"]),
    (As::Status, &["mem-max", "GUEST", "1"]),
    (As::Status, &["mem-set", "nobody", "32"]),
    (As::Status, &["rename", "nobody", "x"]),
    (As::Status, &["rename", "GUEST", "Domain-0"]),
    (As::Status, &["sysrq", "GUEST", "hh"]),
    (As::Status, &["sysrq", "nobody", "h"]),
    (As::Status, &["trigger", "nobody", "nmi"]),
    (As::Status, &["set-parameters", "nonsense=1"]),
    (As::Status, &["debug-keys"]),
    (As::Status, &["pause", "nobody"]),
    (As::Status, &["unpause", "nobody"]),
    (As::Status, &["shutdown", "nobody"]),
    (As::Status, &["reboot", "nobody"]),
    (As::Status, &["destroy", "nobody"]),
    (As::Status, &["destroy", "0"]),
    (As::Status, &["console", "-t", "pv", "nobody"]),
    (As::Status, &["block-detach", "GUEST", "xvdz"]),
    (
        As::Status,
        &["block-attach", "GUEST", "/no/such/file,raw,xvdb,w"],
    ),
    (
        As::Status,
        &["block-attach", "nobody", "/dev/null,raw,xvdb,w"],
    ),
    (As::Status, &["network-detach", "GUEST", "9"]),
    (As::Status, &["network-attach", "nobody"]),
    (As::Status, &["dump-core", "nobody", "/tmp/x"]),
    (As::Status, &["cpupool-destroy", "nobody"]),
    (As::Status, &["cpupool-destroy", "Pool-0"]),
    (As::Status, &["cpupool-migrate", "GUEST", "nobody"]),
    (As::Status, &["cpupool-rename", "nobody", "x"]),
    (As::Status, &["cpupool-cpu-add", "nobody", "0"]),
    (As::Status, &["cpupool-cpu-remove", "Pool-0", "0"]),
    (As::Status, &["create", "/no/such/file"]),
    (As::Status, &["save", "nobody", "/tmp/x"]),
];

/// What changes something: run with one of the two, after which both must show the same; then undone.
/// The command, the command that shows it, the command that undoes it.
type Change = (
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
);
const CHANGES: &[Change] = &[
    (
        &["rename", "GUEST", "other"],
        &["list"],
        &["rename", "other", "GUEST"],
    ),
    (
        &["rename", "GUEST", "other"],
        &["list", "-l", "other"],
        &["rename", "other", "GUEST"],
    ),
    (
        &["sched-credit2", "-d", "GUEST", "-w", "512", "-c", "50"],
        &["sched-credit2"],
        &["sched-credit2", "-d", "GUEST", "-w", "256", "-c", "0"],
    ),
    (
        &["sched-credit2", "-s", "-r", "2000"],
        &["sched-credit2", "-s"],
        &["sched-credit2", "-s", "-r", "1000"],
    ),
    (
        &["vcpu-pin", "GUEST", "0", "0"],
        &["vcpu-list"],
        &["vcpu-pin", "GUEST", "all", "all", "all"],
    ),
    (
        &["mem-max", "GUEST", "64"],
        &["list", "-l", "GUEST"],
        &["mem-max", "GUEST", "48"],
    ),
    (
        &["mem-set", "GUEST", "24m"],
        &["list", "-l", "GUEST"],
        &["mem-set", "GUEST", "32"],
    ),
    (
        &["vcpu-set", "GUEST", "1"],
        &["list", "-l", "GUEST"],
        &["vcpu-set", "--ignore-host", "GUEST", "2"],
    ),
    (
        &["cpupool-create", "name=\"empty\"", "sched=\"credit\""],
        &["cpupool-list"],
        &["cpupool-destroy", "empty"],
    ),
    (
        &["cpupool-rename", "Pool-0", "renamed"],
        &["cpupool-list"],
        &["cpupool-rename", "renamed", "Pool-0"],
    ),
    (&["pause", "GUEST"], &["list"], &["unpause", "GUEST"]),
    (
        &["block-attach", "GUEST", "DISK,raw,xvdc,w"],
        &["block-list", "GUEST"],
        &["block-detach", "-f", "GUEST", "xvdc"],
    ),
    (
        &[
            "network-attach",
            "GUEST",
            "bridge=xenbr0",
            "mac=00:16:3e:5c:00:33",
        ],
        &["network-list", "GUEST"],
        &["network-detach", "GUEST", "1"],
    ),
    (
        &[
            "network-attach",
            "GUEST",
            "mac=00:16:3e:5c:00:34,bridge=xenbr0",
        ],
        &["list", "-l", "GUEST"],
        &["network-detach", "GUEST", "00:16:3e:5c:00:34"],
    ),
    (&["debug-keys", "h"], &["dmesg"], &["dmesg", "-c"]),
    (
        &["set-parameters", "loglvl=info"],
        &["list"],
        &["set-parameters", "loglvl=warning"],
    ),
    (&["sysrq", "GUEST", "h"], &["list"], &["list"]),
];

/// What may differ: the command's beginning, and why.
const ALLOWED: &[(&[&str], &str)] = &[(&["save"], "saving comes later: a non-zero status says so")];

/// A guest of ours.
pub fn ours(host: &Host) -> Outcome {
    demand!(!host.is_stock("xl"), "this one is for our toolstack");
    both(host)
}

/// A guest of a stock xl.
pub fn stock(host: &Host) -> Outcome {
    demand!(host.is_stock("xl"), "this one is for the stock toolstack");
    both(host)
}

fn both(host: &Host) -> Outcome {
    let image = host.zero_file("disk.img", 8)?;
    let second = host.zero_file("second.img", 8)?;
    let kernel = host.lab_file("/lab/guests/driver")?.display().to_string();
    let bridge = host.bridge()?;
    let words = Words {
        config: Config::new("dry", &kernel, 32)
            .string("uuid", "20d34491-7d9f-43ce-9575-155cdd374617")
            .disk(&image)
            .vif(bridge)
            .string("on_crash", "coredump-destroy")
            .line("maxmem = 48\nmaxvcpus = 3")
            .write(host, "dry.cfg")?
            .display()
            .to_string(),
        disk: second.display().to_string(),
        guest: "golden".into(),
        dom: String::new(),
    };
    // So that both find what the other would else have to make.
    host.run(&["xl", "list", "-l"])?;
    leaves_nothing(host, || {
        let mut driver = Driver::create(host, "golden", |config| {
            config
                .line("vcpus = 2\nmaxvcpus = 3\nmaxmem = 48")
                .disk(&image)
                .vif(bridge)
        })?;
        let words = Words {
            dom: driver.dom().to_string(),
            ..words
        };
        let mut differences = Vec::new();
        for (how, command) in LOOKS {
            differences.extend(look(host, &words, *how, command)?);
        }
        host.step("commands that change something");
        for change in CHANGES {
            for doer in ["xlrs", "xl"] {
                differences.extend(alter(host, &words, doer, change)?);
            }
        }
        demand!(
            differences.is_empty(),
            "{} differences:\n{}",
            differences.len(),
            differences.join("\n")
        );
        driver.guest().listed()?;
        driver.shutdown()
    })
}

/// What stands for the placeholders.
struct Words {
    guest: String,
    dom: String,
    config: String,
    disk: String,
}

impl Words {
    fn of(&self, program: &str, command: &[&str]) -> Vec<String> {
        let word = |word: &&str| {
            word.replace("GUEST", &self.guest)
                .replace("DOM", &self.dom)
                .replace("CONFIG", &self.config)
                .replace("DISK", &self.disk)
        };
        std::iter::once(program.to_string())
            .chain(command.iter().map(word))
            .collect()
    }
}

fn run(host: &Host, words: &[String]) -> Outcome<Ran> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    host.run_for(&words, Duration::from_secs(60))
}

/// Runs a command with both; the difference, if there is one that is not allowed.
fn look(host: &Host, words: &Words, how: As, command: &[&str]) -> Outcome<Option<String>> {
    let mut last = None;
    for _ in 0..TRIES {
        let theirs = run(host, &words.of("xl", command))?;
        let ours = run(host, &words.of("xlrs", command))?;
        last = difference(how, &theirs, &ours)?;
        if last.is_none() {
            return Ok(None);
        }
    }
    let allowed = ALLOWED
        .iter()
        .find(|(beginning, _)| command.starts_with(beginning));
    if let (Some((_, why)), Some(said)) = (allowed, &last) {
        println!("    allowed ({why}): {said}");
        return Ok(None);
    }
    Ok(last)
}

/// Changes something with one of the two, compares what both show, undoes it with the other.
fn alter(host: &Host, words: &Words, doer: &str, change: &Change) -> Outcome<Option<String>> {
    let (act, show, undo) = change;
    let undoer = if doer == "xl" { "xlrs" } else { "xl" };
    let done = run(host, &words.of(doer, act))?;
    if done.status != 0 {
        return Ok(Some(format!("  {done}")));
    }
    let how = match show.contains(&"-l") {
        true => As::Json,
        false => As::Text,
    };
    let seen = look(host, words, how, show)?;
    let undone = run(host, &words.of(undoer, undo))?;
    Ok(match (seen, undone.status) {
        (None, 0) => None,
        (Some(seen), _) => Some(format!("  after {doer} {}:\n{seen}", act.join(" "))),
        (None, _) => Some(format!("  undoing it with {undoer}: {undone}")),
    })
}

fn difference(how: As, theirs: &Ran, ours: &Ran) -> Outcome<Option<String>> {
    let told = |what: &str| {
        Some(format!(
            "  {}: {what}\n    xl:   {}\n    xlrs: {}",
            ours.command, theirs, ours
        ))
    };
    if theirs.status != ours.status {
        return Ok(told("the status"));
    }
    let same = match how {
        As::Status => true,
        As::Text => still(&theirs.stdout) == still(&ours.stdout),
        As::Json => {
            let read = |ran: &Ran| {
                serde_json::from_str::<Value>(&ran.stdout)
                    .or_broken(format!("read the JSON of {ran}"))
            };
            let (theirs, ours) = match (read(theirs), read(ours)) {
                (Ok(theirs), Ok(ours)) => (theirs, ours),
                (Err(stop), _) | (_, Err(stop)) => return Err(Stop::Failed(stop.to_string())),
            };
            theirs == ours
        }
    };
    Ok(if same { None } else { told("the output") })
}

/// The text with what moves made equal: numbers with a point or colons in them.
fn still(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        for word in line.split_inclusive(' ') {
            let plain = word.trim_end();
            let moves = plain.len() > 2
                && plain.contains(['.', ':'])
                && plain
                    .bytes()
                    .all(|b| b.is_ascii_digit() || b == b'.' || b == b':');
            // CPU seconds have one digit behind the point, times of day and spans two.
            let seconds = plain
                .rsplit_once('.')
                .is_some_and(|(_, tail)| tail.len() == 1);
            if moves && (seconds || plain.contains(':')) && !plain.contains("::") {
                out.push_str(&word.replace(|c: char| c.is_ascii_digit(), "#"));
            } else {
                out.push_str(word);
            }
        }
        out.push('\n');
    }
    out
}
