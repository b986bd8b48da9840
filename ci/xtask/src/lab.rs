//! A lab: real Xen and dom0 running in QEMU, with our programs in it, ready for commands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lab_agent::message::Command;

use crate::builds::{self, Built, Profile};
use crate::channel::{Channel, Event, Running};
use crate::disguise;
use crate::error::{Context, Result, fail};
use crate::extras;
use crate::image::{self, Image};
use crate::packages::{self, XenVersion};
use crate::paths::{self, make_dir};
use crate::qemu::Qemu;
use crate::qemu_img;
use crate::runs::{self, RunFolder};
use crate::snapshot;
use crate::ui;

/// What all labs of one `cargo xtask` need, got ready once.
pub struct Prepared {
    /// The lab folder.
    pub lab: PathBuf,
    images: BTreeMap<XenVersion, Image>,
    /// Our programs and guests.
    pub built: Built,
    /// The host's qemu-img and what it needs.
    qemu_img: BTreeMap<String, PathBuf>,
    /// What single scenarios unpack in dom0.
    extras: PathBuf,
    /// Keep the folders of runs.
    pub keep: bool,
}

/// A running lab. Dropped: QEMU is killed, and its folder removed unless it is to be kept.
pub struct Lab {
    channel: Channel,
    qemu: Qemu,
    how: String,
    folder: RunFolder,
}

/// Where a lab comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The machine as it was kept after an earlier boot.
    Snapshot,
    /// A boot.
    Boot,
    /// A boot of a Xen that calls itself a release that nobody knows.
    Disguised,
}

/// How a command ended, and what it wrote.
pub struct Output {
    /// Exit status; 128 + signal if one ended it.
    pub status: i32,
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
}

impl Prepared {
    /// Host tools, packages, images for `versions`, and our programs if they are to be built.
    pub fn new(
        versions: &[XenVersion],
        refresh: bool,
        build: Option<Profile>,
        keep: bool,
    ) -> Result<Prepared> {
        crate::host::require_tools()?;
        let lab = paths::lab_dir()?;
        let agent = builds::agent(&lab)?;
        let base = packages::base(&lab, refresh)?;
        let mut images = BTreeMap::new();
        for version in versions {
            let xen = packages::xen(&lab, *version, refresh)?;
            let image = image::obtain(&lab, *version, &base, &xen, &agent)?;
            images.insert(*version, image);
        }
        let built = match build {
            Some(profile) => builds::all(profile)?,
            None => Built::default(),
        };
        for name in &built.absent {
            ui::detail(format!(
                "no crate has the program {name} yet: /lab/bin goes without it"
            ));
        }
        let qemu_img = qemu_img::obtain(&lab)?;
        runs::sweep(&lab);
        let extras = extras::obtain(&lab)?;
        Ok(Prepared {
            qemu_img,
            lab,
            images,
            built,
            extras,
            keep,
        })
    }

    /// The image of one Xen release.
    pub fn image(&self, version: XenVersion) -> Result<&Image> {
        match self.images.get(&version) {
            Some(image) => Ok(image),
            None => fail(format!("no image for Xen {} was prepared", version.name())),
        }
    }
}

impl Lab {
    /// Starts Xen and dom0 and brings our programs in.
    pub fn start_from(
        prepared: &Prepared,
        version: XenVersion,
        memory_mib: u32,
        origin: Origin,
    ) -> Result<Lab> {
        let folder = RunFolder::new(&prepared.lab, prepared.keep)?;
        let dir = folder.path();
        snapshot::furnish(dir)?;
        let image = prepared.image(version)?;
        fill_share(&dir.join("share"), prepared, image)?;
        let begun = Instant::now();
        let started = match origin {
            Origin::Snapshot => snapshot::start(&prepared.lab, image, version, memory_mib, dir)?,
            Origin::Boot => snapshot::boot_anew(&prepared.lab, image, memory_mib, dir)?,
            Origin::Disguised => {
                let image = disguise::disguised(image, dir)?;
                snapshot::boot_anew(&prepared.lab, &image, memory_mib, dir)?
            }
        };
        let lab = Lab {
            channel: started.channel,
            qemu: started.qemu,
            how: started.how,
            folder,
        };
        let out = lab.output(&["/usr/lib/lab/attach"], Duration::from_secs(30))?;
        if out.status != 0 {
            return fail(format!(
                "bringing /lab into dom0: status {}\n{}",
                out.status, out.stderr
            ));
        }
        ui::detail(format!(
            "Xen {} with dom0 is there after {:.2} s: {}; run folder {}",
            version.name(),
            begun.elapsed().as_secs_f64(),
            lab.how,
            lab.dir().display()
        ));
        Ok(lab)
    }

    /// How it came up: accelerator, restored or booted, time.
    pub fn how(&self) -> &str {
        &self.how
    }

    /// Where logs of dom0's daemons appear on the host.
    pub fn logs(&self) -> PathBuf {
        self.dir().join("rw/logs")
    }

    /// The folder of this run.
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// Keeps the run's folder after the end, and says where it is.
    pub fn keep(&self) {
        self.folder.keep_and_say();
    }

    /// Keeps the run's folder after the end.
    pub fn keep_quietly(&self) {
        self.folder.keep();
    }

    /// Starts a command.
    pub fn spawn(&self, command: Command) -> Result<Running> {
        self.channel.spawn(command)
    }

    /// Runs a command to its end and collects what it writes.
    pub fn output(&self, argv: &[&str], limit: Duration) -> Result<Output> {
        output(&self.channel, argv, limit)
    }

    /// Runs a shell script to its end; anything but status 0 is an error with its last words.
    pub fn sh(&self, script: &str, limit: Duration) -> Result<String> {
        let out = self.output(&["sh", "-c", script], limit)?;
        if out.status != 0 {
            return fail(format!(
                "`{script}` in dom0 ended with {}\n{}",
                out.status,
                ui::tail(&(out.stdout + &out.stderr), 15)
            ));
        }
        Ok(out.stdout)
    }

    /// Runs a command to its end, giving each piece of output (stderr?, bytes) to `sink`.
    pub fn follow(
        &self,
        command: Command,
        limit: Duration,
        sink: impl FnMut(bool, &[u8]),
    ) -> Result<i32> {
        follow(&self.channel, command, limit, sink)
    }

    /// What the machine's console, QEMU and the logs of dom0's daemons said last, and where they are.
    pub fn words(&self) -> String {
        let mut logs = Vec::new();
        files_below(&self.logs(), &mut logs);
        logs.sort_by_key(|p| std::fs::metadata(p).and_then(|m| m.modified()).ok());
        let mut out = self.qemu.words();
        for path in logs.iter().rev().take(TOLD_LOGS).rev() {
            let bytes = std::fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).replace('\r', "");
            if !text.trim().is_empty() {
                out += &format!(
                    "  last lines of {}:\n{}",
                    path.display(),
                    ui::tail(&text, 15)
                );
            }
        }
        out + &format!("  all logs: {}\n", self.dir().display())
    }
}

/// Runs a command to its end and collects what it writes.
pub fn output(channel: &Channel, argv: &[&str], limit: Duration) -> Result<Output> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let command = Command {
        argv: argv.iter().map(|s| s.to_string()).collect(),
        ..Command::default()
    };
    let status = follow(channel, command, limit, |is_stderr, data| {
        if is_stderr { &mut err } else { &mut out }.extend_from_slice(data);
    })?;
    Ok(Output {
        status,
        stdout: String::from_utf8_lossy(&out).into_owned(),
        stderr: String::from_utf8_lossy(&err).into_owned(),
    })
}

fn follow(
    channel: &Channel,
    command: Command,
    limit: Duration,
    mut sink: impl FnMut(bool, &[u8]),
) -> Result<i32> {
    let name = command.argv.join(" ");
    let running = channel.spawn(command)?;
    running.stdin().close()?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match running.next(Some(left))? {
            Some(Event::Stdout(data)) => sink(false, &data),
            Some(Event::Stderr(data)) => sink(true, &data),
            Some(Event::Exit(status)) => return Ok(status),
            Some(Event::Failed(reason)) => return fail(reason),
            None => {
                running.signal(9)?;
                return fail(format!("`{name}` in dom0 was not done after {limit:?}"));
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.channel.close();
    }
}

/// How many of dom0's logs, the latest ones, are quoted after a failure.
const TOLD_LOGS: usize = 4;

fn files_below(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files_below(&path, out);
        } else if !path.ends_with("console/hypervisor.log") {
            // Xen's own log is in the machine's console.
            out.push(path);
        }
    }
}

fn fill_share(share: &Path, prepared: &Prepared, image: &Image) -> Result<()> {
    for sub in ["bin", "guests", "debian", "units", "tmp", "logs"] {
        make_dir(&share.join(sub))?;
    }
    for (sub, files) in [
        ("bin", &prepared.built.programs),
        ("guests", &prepared.built.guests),
    ] {
        for (name, from) in files {
            copy(from, &share.join(sub).join(name))?;
        }
    }
    let qemu_img = share.join("qemu-img");
    make_dir(&qemu_img)?;
    for (name, from) in &prepared.qemu_img {
        link_or_copy(from, &qemu_img.join(name))?;
    }
    for unit in extras::units(&paths::workspace())? {
        let name = unit.file_name().unwrap_or_default();
        copy(&unit, &share.join("units").join(name))?;
    }
    for (from, to) in [
        (&image.vmlinuz, "vmlinuz"),
        (&image.guest_initrd, "initrd"),
        (&prepared.extras, "extras.cpio"),
    ] {
        link_or_copy(from, &share.join("debian").join(to))?;
    }
    Ok(())
}

fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    match std::fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(_) => copy(from, to),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)
        .map(|_| ())
        .context(|| format!("copying {} to {}", from.display(), to.display()))
}
