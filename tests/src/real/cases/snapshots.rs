//! `xlrs block-snapshot` under load, with back ends and commands that are killed: no error in the guest, no wrong byte, and
//! what a snapshot keeps stays as it was.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pv_drivers::pattern;
use rustix::process::{Signal, kill_process};
use scenarios::block::BlockGuest;
use scenarios::{OrStop, Outcome, demand, demand_eq};
use xen_fake::Schedule;

use crate::real::backend;
use crate::real::driver::Driver;
use crate::real::guest::{find, read_node};
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

use super::formats::QEMU_IMG;
use super::survival::beside_load;

const GUEST: &str = "snapped";
const SECTORS: u64 = 32768;
/// Snapshots under load.
const ROUNDS: usize = 5;
/// How long the back end may take to go on with an image.
const SETTLED: Duration = Duration::from_secs(20);
const QEMU: Duration = Duration::from_secs(100);

/// Who is killed while a snapshot is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Killed {
    Nobody,
    /// A part of the back end.
    Part(&'static str),
    Command,
}

const KILLED: [Killed; 4] = [
    Killed::Nobody,
    Killed::Part(backend::WORKER),
    Killed::Part(backend::BROKER),
    Killed::Command,
];

/// A disk's images, the latest last.
struct Chain<'a> {
    host: &'a Host,
    dom: u16,
    latest: PathBuf,
    /// Those that are kept, with what was in them then.
    kept: Vec<(PathBuf, Vec<u8>)>,
}

/// All of it, on one disk.
pub fn all(host: &Host) -> Outcome {
    host.lab_file(QEMU_IMG)?;
    let folder = host.scratch("images");
    std::fs::create_dir(&folder).or_broken("make a folder")?;
    let base = folder.join("base.img");
    std::fs::File::create(&base)
        .and_then(|file| file.set_len(SECTORS * 512))
        .or_broken("make the first image")?;
    leaves_nothing(host, || {
        let guest = Driver::create(host, GUEST, |config| {
            config.disk(&base).string("on_reboot", "restart")
        })?;
        // It connects to its disk when it is told to use it.
        guest.disk().fill(20, 0, 64)?;
        host.step("what is in the way is told");
        refusals(host, &folder)?;
        let allow = ["--backing", &folder.display().to_string()].map(String::from);
        let usual = backend::restart_with(host, &allow)?;
        let mut chain = Chain {
            host,
            dom: guest.dom(),
            latest: base.clone(),
            kept: Vec::new(),
        };
        host.step(format!("{ROUNDS} snapshots under load"));
        let (made, rounds) = beside_load(&guest, |over| chain.grow(&folder, over))?;
        host.step(format!("{made:?}; {rounds} rounds were verified"));
        host.step("what is written before and after, and a reboot");
        let last = folder.join("last.qcow2");
        let mut disk = guest.disk();
        disk.fill(21, 100, 2000)?;
        chain.snapshot(&last)?;
        disk.fill(22, 1000, 2000)?;
        // The guest that it was goes with the one that follows it, by its name.
        let again = rebooted(host, &guest)?;
        let mut disk = again.disk();
        demand!(
            disk.holds(21, 100, 900)? && disk.holds(22, 1000, 2000)?,
            "the guest that was created again has another disk"
        );
        let listed = host.toolstack(&["block-list", "--json", GUEST])?;
        let expected = format!("\"target\": \"{}\"", last.display());
        demand!(
            listed.stdout.contains(&expected) && listed.stdout.contains("\"format\": \"qcow2\""),
            "{listed}"
        );
        disk.fill(23, 5000, 100)?;
        again.destroy()?;
        drop(guest);
        chain.judge(&last)?;
        backend::restart_as(host, &usual)
    })
}

fn refusals(host: &Host, folder: &Path) -> Outcome {
    let new = folder.join("refused.qcow2").display().to_string();
    let there = folder.join("base.img").display().to_string();
    for (words, why) in [
        (["xvda", &*new], "start blkback with --backing FOLDER"),
        (["xvda", &there], "there is such a file"),
        (["xvda", "/no/such/folder/x"], "ENOENT"),
        (["xvdz", &new], "block-list"),
    ] {
        let ran = host.run_toolstack(&["block-snapshot", GUEST, words[0], words[1]])?;
        demand!(
            ran.status == 1 && ran.stderr.contains(why),
            "not refused for {why:?}: {ran}"
        );
        demand!(
            !Path::new(&new).exists(),
            "{new} was left behind by what was refused"
        );
    }
    Ok(())
}

/// Has the guest reboot; the one that follows it.
fn rebooted<'a>(host: &'a Host, guest: &Driver<'a>) -> Outcome<Driver<'a>> {
    host.toolstack(&["reboot", GUEST])?;
    let old = guest.dom().to_string();
    host.wait_for(
        "the guest is created again",
        Duration::from_secs(60),
        || {
            let words = find(host, GUEST)?;
            let number = words.and_then(|words| words.get(1).cloned());
            Ok(number.filter(|number| *number != old).map(drop))
        },
    )?;
    Driver::adopt(host, GUEST)
}

/// How many snapshots were made, and how many commands failed, for each row of [`KILLED`].
#[derive(Debug, Default)]
struct Made {
    snapshots: [usize; KILLED.len()],
    failed: usize,
}

impl Chain<'_> {
    /// Makes snapshots until there are enough.
    fn grow(&mut self, folder: &Path, over: &AtomicBool) -> Outcome<Made> {
        let mut dice = Schedule::new(0x736e_6170);
        let mut made = Made::default();
        let mut takes = Duration::ZERO;
        for round in 0..4 * ROUNDS {
            if over.load(Ordering::Acquire) || made.snapshots.iter().sum::<usize>() == ROUNDS {
                break;
            }
            std::thread::sleep(Duration::from_millis(20 + dice.pick(100) as u64));
            let way = round % KILLED.len();
            let overlay = folder.join(format!("{round}.qcow2"));
            let begun = Instant::now();
            match KILLED[way] {
                Killed::Nobody => {
                    self.snapshot(&overlay)?;
                    takes = begun.elapsed();
                }
                killed => {
                    let after = takes * dice.pick(100) as u32 / 100;
                    let failed = self.snapshot_and_kill(&overlay, killed, after)?;
                    made.failed += usize::from(failed);
                    self.settle()?;
                }
            }
            made.snapshots[way] += usize::from(self.latest == overlay);
        }
        let all: usize = made.snapshots.iter().sum();
        demand!(all == ROUNDS, "only {made:?}");
        Ok(made)
    }

    fn command(&self, overlay: &Path) -> Command {
        let mut command = Command::new("xlrs");
        command.args(["block-snapshot", "--json", GUEST, "xvda"]);
        command.arg(overlay).stdin(Stdio::null());
        command
    }

    /// Makes one that must succeed.
    fn snapshot(&mut self, overlay: &Path) -> Outcome {
        let out = self.command(overlay).output().or_broken("run xlrs")?;
        let said = String::from_utf8_lossy(&out.stdout);
        let image = format!("\"image\": \"{}\"", overlay.display());
        let backing = format!("\"backing\": \"{}\"", self.latest.display());
        demand!(
            out.status.success() && said.contains(&image) && said.contains(&backing),
            "block-snapshot: {} {said} {}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
        // Read at once: nobody writes to it any more.
        let content = std::fs::read(&self.latest).or_broken("read the old image")?;
        self.kept.push((self.latest.clone(), content));
        self.latest = overlay.to_path_buf();
        Ok(())
    }

    /// Makes one while somebody is killed, after this time; whether the command failed.
    fn snapshot_and_kill(&self, overlay: &Path, killed: Killed, after: Duration) -> Outcome<bool> {
        let mut child = self
            .command(overlay)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .or_broken("run xlrs")?;
        std::thread::sleep(after);
        match killed {
            Killed::Part(part) => {
                let (pid, words) = backend::part(part)?;
                kill_process(pid, Signal::KILL).or_broken("kill the back end")?;
                if part == backend::BROKER {
                    backend::start(&words)?;
                }
            }
            _ => child.kill().or_broken("kill xlrs")?,
        }
        let status = child.wait().or_broken("wait for xlrs")?;
        Ok(!status.success())
    }

    /// Waits until the back end has gone on with the image that the disk is to have; keeps the one before.
    fn settle(&mut self) -> Outcome {
        let back = format!("/local/domain/0/backend/vbd/{}/51712", self.dom);
        let store = self.host.store()?;
        let now = self.host.wait_for("the disk is settled", SETTLED, || {
            let params = read_node(&store, &format!("{back}/params"))?;
            let path = params.trim_start_matches("qcow2:").to_owned();
            let place = read_node(&store, &format!("{back}/physical-device-path"))?;
            Ok((place == path).then_some(PathBuf::from(path)))
        })?;
        if now != self.latest {
            // The requests of a process that was killed end a moment later.
            std::thread::sleep(Duration::from_millis(50));
            let content = std::fs::read(&self.latest).or_broken("read the old image")?;
            self.kept
                .push((std::mem::replace(&mut self.latest, now), content));
        }
        Ok(())
    }

    /// Every image is as it was when it was kept, and qemu-img finds no fault; the last of them has what was written
    /// before, and what was written after is in what lies over it.
    fn judge(&self, last: &Path) -> Outcome {
        let host = self.host;
        host.step(format!("{} images are as they were", self.kept.len()));
        for (image, content) in &self.kept {
            let now = std::fs::read(image).or_broken("read an old image")?;
            demand!(now == *content, "{} has changed", image.display());
        }
        let folder = last.parent().or_broken("no folder")?.display().to_string();
        let images = self.kept.iter().map(|(image, _)| image.as_path());
        let overlays: Vec<String> = (images.chain([last]))
            .filter(|image| image.extension().is_some_and(|kind| kind == "qcow2"))
            .map(|image| image.display().to_string())
            .collect();
        demand_eq!(overlays.len(), self.kept.len(), "overlays");
        let run = |line: String| {
            let line = format!("cd {folder} && {line}");
            host.run_for(&["sh", "-c", &line], QEMU)?.succeeded()
        };
        let names = overlays.join(" ");
        run(format!(
            "for i in {names}; do {QEMU_IMG} check -q -f qcow2 $i || exit 1; done"
        ))?;
        for (image, after) in [(last, true), (&*self.kept[self.kept.len() - 1].0, false)] {
            let from = image.display();
            run(format!(
                "exec {QEMU_IMG} convert -f qcow2 -O raw {from} whole"
            ))?;
            let whole = std::fs::read(Path::new(&folder).join("whole")).or_broken("read it")?;
            demand_eq!(whole.len() as u64, SECTORS * 512, "its length");
            let has = |seed, first: u64, count: u64| {
                let part = &whole[first as usize * 512..(first + count) as usize * 512];
                pattern::matches(seed, first, part)
            };
            let name = image.display();
            demand!(has(21, 100, 900), "{name} has not what was written first");
            let (first, later) = (
                has(21, 1000, 1100),
                has(22, 1000, 2000) && has(23, 5000, 100),
            );
            demand!(
                (first, later) == (!after, after),
                "{name} has what was written before: {first}, and after: {later}"
            );
        }
        Ok(())
    }
}
