//! The command is killed in the middle of its work, at many moments: the supervisor clears away what it left.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use scenarios::{OrStop, Outcome, demand};

use crate::real::guest::Config;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

const KERNEL: &str = "/lab/guests/hello";
const NAME: &str = "killed";
/// Moments at which it is killed, spread over the time that it takes.
const MOMENTS: u32 = 16;
/// How long the supervisor may take.
const CLEARED: Duration = Duration::from_secs(10);

/// Kills `create` and `destroy` of a guest with a disk and a card.
pub fn create_and_destroy(host: &Host) -> Outcome {
    let kernel = host.lab_file(KERNEL)?.display().to_string();
    let image = host.zero_file("disk.img", 4)?;
    let config = Config::new(NAME, &kernel, 16)
        .disk(&image)
        .vif(host.bridge()?);
    let file = config.write(host, "killed.cfg")?.display().to_string();
    let create = ["create", "-q", &file];
    let destroy = ["destroy", NAME];
    let took = |words: &[&str]| -> Outcome<Duration> {
        let begun = Instant::now();
        host.toolstack(words)?;
        Ok(begun.elapsed())
    };
    let create_takes = took(&create)?;
    let destroy_takes = took(&destroy)?;
    host.step(format!(
        "create takes {create_takes:?}, destroy {destroy_takes:?}"
    ));
    let mut cut_short = 0;
    for moment in 0..MOMENTS {
        leaves_nothing(host, || {
            cut_short += u32::from(kill_after(&create, create_takes * moment / MOMENTS)?);
            clear(host)
        })?;
    }
    demand!(
        cut_short > MOMENTS / 4,
        "create was killed only {cut_short} times"
    );
    cut_short = 0;
    for moment in 0..MOMENTS {
        leaves_nothing(host, || {
            host.toolstack(&create)?;
            cut_short += u32::from(kill_after(&destroy, destroy_takes * moment / MOMENTS)?);
            clear(host)
        })?;
    }
    demand!(
        cut_short > MOMENTS / 4,
        "destroy was killed only {cut_short} times"
    );
    Ok(())
}

/// Kills the command after this time; whether it was still at work.
fn kill_after(words: &[&str], time: Duration) -> Outcome<bool> {
    let mut child = Command::new("xlrs")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .or_broken("run xlrs")?;
    std::thread::sleep(time);
    let ended = child.try_wait().or_broken("wait for xlrs")?.is_some();
    let _ = child.kill();
    child.wait().or_broken("wait for xlrs")?;
    Ok(!ended)
}

/// Waits until the supervisor is done; a guest that was not touched, or is whole, is removed.
fn clear(host: &Host) -> Outcome {
    host.wait_for("what was underway is cleared away", CLEARED, || {
        let marks = std::fs::read_dir(Path::new("/run/xlrs")).or_broken("read /run/xlrs")?;
        let mut names = marks.flatten().map(|entry| entry.file_name());
        let any = names.any(|name| name.to_string_lossy().starts_with("creating."));
        Ok((!any).then_some(()))
    })?;
    if host.run_toolstack(&["domid", NAME])?.status == 0 {
        host.toolstack(&["destroy", NAME])?;
    }
    Ok(())
}
