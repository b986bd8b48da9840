//! A host changes over from C xenstored to ours, without a reboot and without its guests noticing.

use std::path::{Path, PathBuf};

use scenarios::{OrStop, Outcome, Stop, demand};
use xen_hal::Store;
use xs_client::Connection;

use crate::real::driver::Driver;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

const PID_FILE: &str = "/run/xenstored.pid";
const OURS: &str = "/lab/bin/xenstored";
const ROOT: &str = "/xlrs-changeover";

/// There, to ours again, back and there once more; guests with disks before, through and after each. At last the daemon is
/// killed, which only knows from Xen where the guests' event channels end.
pub fn all(host: &Host) -> Outcome {
    let theirs = running()?;
    let image = host.zero_file("disk.img", 16)?;
    leaves_nothing(host, || {
        let witness = Driver::create(host, "witness", |config| config.disk(&image))?;
        witness.fill_and_check(1, 0, 512)?;
        let old = host.store()?;
        let bell = format!("{ROOT}/bell");
        old.watch(&bell, "bell").or_fail("watch")?;
        let programs = [
            OURS.as_ref(),
            OURS.as_ref(),
            theirs.as_path(),
            OURS.as_ref(),
        ];
        for (round, program) in programs.into_iter().enumerate() {
            // The toolstack's process waits for its end through a connection of before.
            let image = host.zero_file("leaver.img", 16)?;
            let leaver = Driver::create(host, "leaver", |config| config.disk(&image))?;
            let kept = format!("{ROOT}/kept");
            let value = round.to_string();
            old.write(None, &kept, value.as_bytes()).or_fail("write")?;
            update(host, program)?;
            let read = old.read(None, &kept).or_fail("read what was kept")?;
            demand!(read == value.as_bytes(), "{kept} is {read:?}");
            rings(&old, &bell, &value)?;
            host.step("the guest writes to the store and its disk");
            witness.ping()?;
            let home = format!("/local/domain/{}/data/seen", witness.dom());
            let store = witness.store();
            store.write(None, &home, b"it").or_fail("a guest's write")?;
            witness.fill_and_check(round as u64 + 2, 0, 512)?;
            host.step("a guest of before ends");
            leaver.shutdown()?;
            host.step("a new guest, whose back end dom0's kernel must hear of");
            let image = host.zero_file("other.img", 16)?;
            let other = Driver::create(host, "newcomer", |config| config.disk(&image))?;
            other.fill_and_check(7, 0, 512)?;
            match round {
                0 => other.shutdown()?,
                _ => other.destroy()?,
            }
        }
        killed(host)?;
        host.step("the guest writes to the store");
        let home = format!("/local/domain/{}/data/seen", witness.dom());
        let store = witness.store();
        store
            .write(None, &home, b"still")
            .or_fail("a guest's write")?;
        host.step("what stood on the dead daemon's sockets goes: nobody has kept them");
        stop(host, "witness.cfg")?;
        let console = stop(host, "xenconsoled")?;
        let console: Vec<&str> = console.iter().map(String::as_str).collect();
        host.run(&console)?.succeeded()?;
        witness.destroy()?;
        host.store()?
            .rm(None, ROOT)
            .or_fail("remove what was written")
    })
}

/// The program that the daemon is now.
fn running() -> Outcome<PathBuf> {
    let pid = std::fs::read_to_string(PID_FILE).or_broken(format!("read {PID_FILE}"))?;
    let exe = format!("/proc/{}/exe", pid.trim());
    std::fs::read_link(&exe).or_broken(format!("read {exe}"))
}

/// Has the daemon become another program, in the same process.
fn update(host: &Host, program: &Path) -> Outcome {
    let pid = std::fs::read_to_string(PID_FILE).or_broken(format!("read {PID_FILE}"))?;
    let name = program.display().to_string();
    host.step(format!("live update of {} to {name}", pid.trim()));
    let said = host.run(&["xenstore-control", "live-update", &name])?;
    said.succeeded()?;
    let now = running()?;
    demand!(
        now == program,
        "process {} runs {}",
        pid.trim(),
        now.display()
    );
    Ok(())
}

/// The daemon is killed, and another started that goes on.
fn killed(host: &Host) -> Outcome {
    let pid = std::fs::read_to_string(PID_FILE).or_broken(format!("read {PID_FILE}"))?;
    host.step(format!("{} is killed and started again", pid.trim()));
    host.run(&["kill", "-9", pid.trim()])?.succeeded()?;
    host.run(&[OURS, "--pid-file", PID_FILE])?.succeeded()?;
    Ok(())
}

/// Ends the process whose command line has this word; its command line.
fn stop(host: &Host, word: &str) -> Outcome<Vec<String>> {
    let all = std::fs::read_dir("/proc").or_broken("list /proc")?;
    for entry in all.flatten() {
        // It may have ended meanwhile, and others are no processes.
        let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<String> = line.split_terminator('\0').map(String::from).collect();
        if words.iter().any(|part| part.ends_with(word)) {
            let pid = entry.file_name().to_string_lossy().into_owned();
            host.run(&["kill", &pid])?.succeeded()?;
            let gone = || Ok((!entry.path().exists()).then_some(()));
            let limit = std::time::Duration::from_secs(20);
            host.wait_for(&format!("end of {word}"), limit, gone)?;
            return Ok(words);
        }
    }
    Err(Stop::Failed(format!(
        "no process has {word} in its command line"
    )))
}

/// A watch that was set before fires for what another client writes now.
fn rings(old: &Connection, bell: &str, value: &str) -> Outcome {
    let other = Connection::from_env().or_fail("a new connection to the store")?;
    other
        .write(None, bell, value.as_bytes())
        .or_fail(format!("write {bell}"))?;
    let patience = Some(std::time::Duration::from_secs(20));
    while let Some(event) = old.wait_event(patience).or_fail("wait for an event")? {
        if event.path == bell && old.read(None, bell).or_fail("read")? == value.as_bytes() {
            return Ok(());
        }
    }
    Err(Stop::Failed(format!("the watch on {bell} did not fire")))
}
