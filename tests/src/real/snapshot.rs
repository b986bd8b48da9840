//! What dom0 holds at a moment, so that what a scenario left behind is seen.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use scenarios::{OrStop, Outcome, Stop, store};

use crate::real::host::Host;

/// How long things may take to go away: a monitor that sleeps, memory that is scrubbed, a lazy unmount.
const SETTLE: Duration = Duration::from_secs(30);
/// Most lines of a difference that are shown.
const SHOWN: usize = 40;

/// Directories that the first guest's toolstack makes and that all guests share; they stay.
const SHARED_PARENTS: [&str; 6] = [
    "/vm = \"\"",
    "/libxl = \"\"",
    "/local/domain/0/backend = \"\"",
    "/local/domain/0/backend/console = \"\"",
    "/local/domain/0/backend/vbd = \"\"",
    "/local/domain/0/backend/vif = \"\"",
];

/// Domains, nodes of the store, processes, loop devices, network interfaces, free memory: one line each.
#[derive(Clone, PartialEq, Eq)]
struct Snapshot(Vec<String>);

/// Runs `body` and then looks whether everything is as it was before.
pub fn leaves_nothing(host: &Host, body: impl FnOnce() -> Outcome) -> Outcome {
    let before = Snapshot::take(host)?;
    body()?;
    host.step("nothing is left behind");
    let deadline = Instant::now() + SETTLE;
    loop {
        let after = Snapshot::take(host)?;
        if after == before {
            return Ok(());
        }
        if Instant::now() > deadline {
            let difference = before.difference(&after);
            return Err(Stop::Failed(format!(
                "left behind:\n  {}",
                difference.join("\n  ")
            )));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Snapshot {
    fn take(host: &Host) -> Outcome<Snapshot> {
        let mut lines = domains(host)?;
        let nodes = store::dump(&host.store()?)?;
        let own = nodes
            .iter()
            .filter(|line| !SHARED_PARENTS.contains(&line.as_str()));
        // Daemons announce themselves with their process number, and one may have been started anew.
        let own = own.map(|line| match line.split_once(" = ") {
            Some((name, _)) if name.starts_with("/tool/xlrs/") => name,
            _ => line.as_str(),
        });
        lines.extend(own.map(|line| format!("store {line}")));
        lines.extend(processes()?);
        lines.extend(loops());
        lines.extend(names("/sys/class/net").map(|name| format!("interface {name}")));
        let free = host.toolstack(&["info", "free_memory"])?;
        lines.push(format!("free memory {} MiB", free.stdout.trim()));
        Ok(Snapshot(lines))
    }

    /// Lines that only one of the two has.
    fn difference(&self, after: &Snapshot) -> Vec<String> {
        let mut count: BTreeMap<&str, i32> = BTreeMap::new();
        for line in &self.0 {
            *count.entry(line).or_default() -= 1;
        }
        for line in &after.0 {
            *count.entry(line).or_default() += 1;
        }
        let signed = |(line, count): (&str, i32)| match count {
            0 => None,
            count if count > 0 => Some(format!("+ {line}")),
            _ => Some(format!("- {line}")),
        };
        count.into_iter().filter_map(signed).take(SHOWN).collect()
    }
}

/// Name, number, memory and vCPUs of each domain; not its state and time, which change.
fn domains(host: &Host) -> Outcome<Vec<String>> {
    let list = host.toolstack(&["list"])?;
    let rows = list.stdout.lines().skip(1);
    let short = |row: &str| row.split_whitespace().take(4).collect::<Vec<_>>().join(" ");
    Ok(rows.map(|row| format!("domain {}", short(row))).collect())
}

/// The command lines of all processes but kernel threads and ourselves.
fn processes() -> Outcome<Vec<String>> {
    let own = std::process::id().to_string();
    let mut lines = Vec::new();
    for pid in names("/proc").filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
        // Gone meanwhile, or a kernel thread.
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if pid != own && !command.is_empty() {
            let text = String::from_utf8_lossy(&command).replace('\0', " ");
            // A live update is told by the last argument of what the process has become, and may make it the store
            // daemon of somebody else.
            let text = text.trim_end().trim_end_matches(" -U");
            let text = text.rsplit_once("/xenstored ").map_or_else(
                || text.to_owned(),
                |(_, arguments)| format!("xenstored {arguments}"),
            );
            lines.push(format!("process {text}"));
        }
    }
    lines.sort();
    (!lines.is_empty())
        .then_some(lines)
        .or_broken("no process is seen in /proc")
}

/// Loop devices in use and what they show.
fn loops() -> Vec<String> {
    let files = names("/sys/block").filter_map(|name| {
        let file = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
        Some(format!("loop device {name} {}", file.trim_end()))
    });
    files.collect()
}

fn names(folder: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names.into_iter()
}
