//! The block back end as two processes: which they are, and starting it again.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use scenarios::{OrStop, Outcome, Stop, demand};

use crate::real::host::Host;

/// How long it may take to be there again, or to be gone.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Who opens files, starts the other and ends with all.
pub const BROKER: &str = "blkback";
/// Who moves the data.
pub const WORKER: &str = "blkback-worker";

/// The process that stands for the whole, and its command line.
pub fn process() -> Outcome<(Pid, Vec<String>)> {
    find(BROKER)?.ok_or_else(|| Stop::Failed("no back end is running".into()))
}

/// The same for one that may just be starting.
pub fn part(name: &str) -> Outcome<(Pid, Vec<String>)> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = find(name)? {
            return Ok(found);
        }
        demand!(Instant::now() < deadline, "no {name} is running");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn find(part: &str) -> Outcome<Option<(Pid, Vec<String>)>> {
    let processes = std::fs::read_dir("/proc").or_broken("read /proc")?;
    for entry in processes.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<String> = line
            .split(|&byte| byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let is_it = words
            .first()
            .is_some_and(|first| Path::new(first).ends_with(part));
        if let (true, Some(pid)) = (is_it, Pid::from_raw(number)) {
            return Ok(Some((pid, words)));
        }
    }
    Ok(None)
}

/// Starts it, once the one before has ended.
pub fn start(words: &[String]) -> Outcome {
    let deadline = Instant::now() + TIMEOUT;
    // The store's node stays when the process is killed; the daemon waits for its predecessor's end.
    loop {
        let started = Command::new(&words[0]).args(&words[1..]).status();
        match started {
            Ok(status) if status.success() => return Ok(()),
            _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            other => return Err(Stop::Failed(format!("{}: {other:?}", words.join(" ")))),
        }
    }
}

/// Ends it in order and starts it with more words; the command line that it had before.
pub fn restart_with(host: &Host, more: &[String]) -> Outcome<Vec<String>> {
    let (_, usual) = process()?;
    let mut words = usual.clone();
    words.extend_from_slice(more);
    restart_as(host, &words)?;
    Ok(usual)
}

/// Ends it in order and starts it by this command line.
pub fn restart_as(host: &Host, words: &[String]) -> Outcome {
    let (pid, _) = process()?;
    kill_process(pid, Signal::TERM).or_broken("end the back end")?;
    host.wait_for("the back end ends", TIMEOUT, || {
        Ok(test_kill_process(pid).is_err().then_some(()))
    })?;
    start(words)
}

/// Descriptors that a process has open.
pub fn descriptors(pid: Pid) -> Outcome<usize> {
    let path = format!("/proc/{}/fd", pid.as_raw_nonzero());
    let entries = std::fs::read_dir(&path).or_broken(format!("read {path}"))?;
    Ok(entries.count())
}

/// A size that /proc tells of a process: `RssAnon` is its own memory, `VmHWM` the most that it had of all kinds.
pub fn memory_kib(pid: Pid, name: &str) -> Outcome<u64> {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let text = std::fs::read_to_string(&path).or_broken(format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let line = line.and_then(|line| line.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.or_broken(format!("no {name} in {path}"))
}

/// Has the most that it had (`VmHWM`) begin again with what it has.
pub fn forget_peak(pid: Pid) -> Outcome {
    let path = format!("/proc/{}/clear_refs", pid.as_raw_nonzero());
    std::fs::write(&path, "5").or_broken(format!("write {path}"))
}
