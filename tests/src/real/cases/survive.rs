//! The store daemon is killed again and again while guests are made and destroyed: nobody notices.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use scenarios::{OrStop, Outcome, demand};
use xen_hal::Store;

use crate::real::driver::Driver;
use crate::real::guest::Config;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

const KERNEL: &str = "/lab/guests/hello";
const PID_FILE: &str = "/run/xlrs/xenstored.pid";
/// How often it is killed unless `SURVIVE_KILLS` says otherwise.
const KILLS: u32 = 10;
/// How long the next daemon may take to be there.
const BACK: Duration = Duration::from_secs(20);
const COMMAND: Duration = Duration::from_secs(60);

/// Kills the daemon while a guest is created, or destroyed, at other moments each time; one guest, one client and the kernel
/// live through it all.
pub fn kills(host: &Host) -> Outcome {
    let count = std::env::var("SURVIVE_KILLS").ok();
    let count = count.and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let kernel = host.lab_file(KERNEL)?.display().to_string();
    let [steady_image, image] = [
        host.zero_file("steady.img", 4)?,
        host.zero_file("disk.img", 4)?,
    ];
    let bridge = host.bridge()?;
    leaves_nothing(host, || {
        let steady = Driver::create(host, "steady", |config| config.disk(&steady_image))?;
        let client = host.store()?;
        client
            .write(None, "/tool/survive", b"0")
            .or_broken("write")?;
        client.watch("/tool/survive", "mine").or_broken("watch")?;
        client.wait_event(Some(BACK)).or_fail("the first event")?;
        let config = Config::new("brief", &kernel, 16).disk(&image).vif(bridge);
        let file = config.write(host, "brief.cfg")?.display().to_string();
        let (create, destroy) = (["create", "-q", &file], ["destroy", "brief"]);
        let took = |words: &[&str]| -> Outcome<Duration> {
            let begun = Instant::now();
            host.toolstack(words)?;
            Ok(begun.elapsed())
        };
        let (create_takes, destroy_takes) = (took(&create)?, took(&destroy)?);
        host.step(format!(
            "create takes {create_takes:?}, destroy {destroy_takes:?}"
        ));
        for n in 0..count {
            let moment = |takes: Duration| takes * (n / 2 * 2 + 1) / count.max(2);
            host.step(format!("kill {} of {count}", n + 1));
            let at = |even: bool, takes| (even == n.is_multiple_of(2)).then(|| moment(takes));
            kill_during(host, &create, at(true, create_takes))?;
            kill_during(host, &destroy, at(false, destroy_takes))?;
            // Who had a connection before still has it, and its watch; nothing comes twice.
            let value = n.to_string();
            client
                .write(None, "/tool/survive", value.as_bytes())
                .or_fail("write as before")?;
            let event = client
                .wait_event(Some(BACK))
                .or_fail("an event as before")?;
            let event = event.or_fail("no event of a watch that was there before")?;
            demand!(
                event.path == "/tool/survive" && event.token == "mine",
                "{event:?}"
            );
            demand!(!client.has_event(), "an event came twice");
            let read = client
                .read(None, "/tool/survive")
                .or_fail("read as before")?;
            demand!(read == value.as_bytes(), "read {read:?}, written {value}");
            steady.ping()?;
        }
        host.step("the guest that was there goes on, and so do disks");
        steady.fill_and_check(5, 0, 2048)?;
        host.step("a new guest gets its disk from whoever serves it");
        let late = Driver::create(host, "late", |config| config.disk(&image))?;
        late.fill_and_check(6, 0, 2048)?;
        late.shutdown()?;
        let checked = host
            .run(&["xlrs", "store", "control", "check"])?
            .succeeded()?
            .stdout;
        demand!(
            checked == "OK\n",
            "the store daemon's check says {checked:?}"
        );
        client.rm(None, "/tool/survive").or_fail("remove")?;
        steady.shutdown()
    })
}

/// Runs the toolstack's command, and kills the store daemon that long after its start.
fn kill_during(host: &Host, words: &[&str], after: Option<Duration>) -> Outcome {
    let Some(after) = after else {
        return host.toolstack(words).map(drop);
    };
    let mut child = Command::new(host.tool())
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .or_broken("run the toolstack")?;
    std::thread::sleep(after);
    let old = pid()?;
    host.run(&["kill", "-9", &old.to_string()])?.succeeded()?;
    let begun = Instant::now();
    host.wait_for("the next store daemon", BACK, || {
        Ok((pid().ok() != Some(old) && host.store().is_ok()).then_some(()))
    })?;
    host.step(format!(
        "{} killed after {after:?}, back in {:?}",
        words[0],
        begun.elapsed()
    ));
    let status = host.wait_for("the command ends", COMMAND, || {
        child.try_wait().or_broken("wait for the toolstack")
    })?;
    demand!(
        status.success(),
        "{words:?} ended with {status}: {}",
        said(&mut child)
    );
    Ok(())
}

fn said(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = std::io::Read::read_to_string(stderr, &mut text);
    }
    text
}

fn pid() -> Outcome<u32> {
    let text = std::fs::read_to_string(PID_FILE).or_broken(format!("read {PID_FILE}"))?;
    text.trim()
        .parse()
        .ok()
        .or_broken("the pid file has no number")
}
