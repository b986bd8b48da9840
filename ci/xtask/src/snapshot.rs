//! Boots dom0 once, keeps the booted machine, and starts later labs from it.
//!
//! The machine's memory is a file that QEMU maps: shared while the snapshot is made, a private copy
//! in each restore. So a restore reads only what it touches, and labs share the rest.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::channel::Channel;
use crate::error::{Context, Result, fail};
use crate::image::Image;
use crate::packages::XenVersion;
use crate::paths::{self, Key, Lock, make_dir};
use crate::qemu::{Accel, Machine, Memory, Qemu};
use crate::ui;

/// How many snapshots are kept; the least recently used go first.
const KEEP: usize = 6;

/// Longest a cold boot may take.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// Longest a boot on KVM may take before KVM is taken for unfit.
const KVM_LIMIT: Duration = Duration::from_secs(10);
/// Longest a restore may take before it is taken for failed.
const RESTORE_LIMIT: Duration = Duration::from_secs(20);

/// A started machine whose agent answers.
pub struct Started {
    /// The process.
    pub qemu: Qemu,
    /// The agent.
    pub channel: Channel,
    /// How it came up, for people.
    pub how: String,
}

/// A finished snapshot, kept from being thrown away while this lives.
struct Snapshot {
    memory: PathBuf,
    state: PathBuf,
    _lock: Lock,
}

/// Starts a machine in `dir` from a snapshot, making it first if there is none.
pub fn start(
    lab: &Path,
    image: &Image,
    version: XenVersion,
    memory_mib: u32,
    dir: &Path,
) -> Result<Started> {
    let accel = choose_accel(lab, image, memory_mib)?;
    let snapshot = obtain(lab, image, version, accel, memory_mib);
    let begun = Instant::now();
    let restored = snapshot.and_then(|s| restore(&s, image, accel, memory_mib, dir));
    let why = match restored {
        Ok((qemu, channel)) => {
            let how = format!(
                "{accel}, restored in {:.2} s",
                begun.elapsed().as_secs_f64()
            );
            return Ok(Started { qemu, channel, how });
        }
        Err(e) => e,
    };
    ui::status(format!(
        "no start from a snapshot, booting cold instead: {why}"
    ));
    start_cold(image, accel, memory_mib, dir)
}

/// Starts a machine in `dir` by booting it.
pub fn boot_anew(lab: &Path, image: &Image, memory_mib: u32, dir: &Path) -> Result<Started> {
    start_cold(
        image,
        choose_accel(lab, image, memory_mib)?,
        memory_mib,
        dir,
    )
}

fn start_cold(image: &Image, accel: Accel, memory_mib: u32, dir: &Path) -> Result<Started> {
    let begun = Instant::now();
    let (qemu, channel) = boot(image, accel, memory_mib, Memory::Anonymous, dir, BOOT_LIMIT)?;
    channel.hello(true, RESTORE_LIMIT)?;
    let how = format!("{accel}, booted in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(Started { qemu, channel, how })
}

/// What QEMU needs in a run's folder.
pub fn furnish(dir: &Path) -> Result<()> {
    for sub in ["share", "rw/tmp", "rw/logs"] {
        make_dir(&dir.join(sub))?;
    }
    let disk = std::fs::File::create(dir.join("disk.img"))
        .context(|| format!("creating a disk in {}", dir.display()))?;
    disk.set_len(DISK_BYTES)
        .context(|| format!("sizing the disk in {}", dir.display()))
}

/// Size of the scratch disk (sparse on the host).
const DISK_BYTES: u64 = 2 << 30;

fn boot(
    image: &Image,
    accel: Accel,
    memory_mib: u32,
    memory: Memory,
    dir: &Path,
    limit: Duration,
) -> Result<(Qemu, Channel)> {
    let machine = Machine {
        image,
        initrd: &image.initrd,
        accel,
        memory_mib,
        memory,
        incoming: false,
        dir,
    };
    let mut qemu = machine.start()?;
    let channel = Channel::new(qemu.connect("lab.sock", Duration::from_secs(20))?)?;
    let mut monitor = qemu.monitor()?;
    let deadline = Instant::now() + limit;
    loop {
        match channel.hello(false, Duration::from_secs(2)) {
            Ok(()) => return Ok((qemu, channel)),
            Err(e) if Instant::now() > deadline => {
                return Err(e)
                    .context(|| format!("booting Xen and dom0 ({limit:?})\n{}", qemu.words()));
            }
            Err(_) => qemu.check()?,
        }
        // A CPU that KVM cannot go on with stands still; there is nothing to wait for.
        let state = monitor.run("query-status", json!({}))?;
        if state["status"] == "internal-error" {
            return fail(format!("the virtual CPU stopped\n{}", qemu.words()));
        }
    }
}

fn obtain(
    lab: &Path,
    image: &Image,
    version: XenVersion,
    accel: Accel,
    memory_mib: u32,
) -> Result<Snapshot> {
    let mut key = Key::default();
    key.add(&image.key)
        .add(crate::qemu::version()?)
        .add(Machine::LINUX_ARGS);
    for arg in Machine::identity(accel, memory_mib) {
        key.add(arg);
    }
    let all = lab.join("snapshots");
    make_dir(&all)?;
    let name = format!("{}-{}", version.name(), key.hex());
    let dir = all.join(&name);
    let lock_path = all.join(format!("{name}.lock"));
    let found = |lock: Lock| Snapshot {
        memory: dir.join("memory"),
        state: dir.join("state"),
        _lock: lock,
    };
    let shared = Lock::shared(&lock_path)?;
    if dir.is_dir() {
        touch(&dir);
        return Ok(found(shared));
    }
    drop(shared);
    let exclusive = Lock::exclusive(&lock_path)?;
    if !dir.is_dir() {
        discard_oldest(&all);
        let unfinished = all.join(format!("{name}.new"));
        let _ = std::fs::remove_dir_all(&unfinished);
        make_dir(&unfinished)?;
        ui::slow(
            &format!(
                "booting Xen {} and dom0 for a snapshot ({accel})",
                version.name()
            ),
            || make(image, accel, memory_mib, &unfinished),
        )?;
        std::fs::rename(&unfinished, &dir).context(|| format!("naming {}", dir.display()))?;
    }
    drop(exclusive);
    Ok(found(Lock::shared(&lock_path)?))
}

fn make(image: &Image, accel: Accel, memory_mib: u32, dir: &Path) -> Result<()> {
    furnish(dir)?;
    let memory = dir.join("memory");
    let (mut qemu, channel) = boot(
        image,
        accel,
        memory_mib,
        Memory::Kept(&memory),
        dir,
        BOOT_LIMIT,
    )?;
    // The agent must not be in the middle of a frame.
    channel.close();
    drop(channel);
    std::thread::sleep(Duration::from_millis(100));
    let mut qmp = qemu.monitor()?;
    ignore_shared_memory(&mut qmp)?;
    qmp.run(
        "migrate-set-parameters",
        json!({"max-bandwidth": 10_000_000_000u64}),
    )?;
    qmp.run("migrate", json!({"uri": "exec:cat > state"}))?;
    qmp.wait_for(
        "query-migrate",
        "completed",
        &["failed", "cancelled"],
        Duration::from_secs(60),
    )?;
    let _ = qmp.run("quit", json!({}));
    qemu.wait(Duration::from_secs(10));
    Ok(())
}

fn ignore_shared_memory(qmp: &mut crate::qmp::Qmp) -> Result<()> {
    let capability = json!({"capability": "x-ignore-shared", "state": true});
    qmp.run(
        "migrate-set-capabilities",
        json!({"capabilities": [capability]}),
    )?;
    Ok(())
}

fn restore(
    snapshot: &Snapshot,
    image: &Image,
    accel: Accel,
    memory_mib: u32,
    dir: &Path,
) -> Result<(Qemu, Channel)> {
    let machine = Machine {
        image,
        initrd: &image.initrd,
        accel,
        memory_mib,
        memory: Memory::CopyOf(&snapshot.memory),
        incoming: true,
        dir,
    };
    let mut qemu = machine.start()?;
    let mut qmp = qemu.monitor()?;
    ignore_shared_memory(&mut qmp)?;
    // QEMU's folder is the run's: the state comes in by a link there.
    let link = dir.join("state");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&snapshot.state, &link)
        .context(|| format!("linking {}", link.display()))?;
    qmp.run("migrate-incoming", json!({"uri": "exec:cat state"}))?;
    qmp.wait_for(
        "query-status",
        "running",
        &["internal-error"],
        RESTORE_LIMIT,
    )
    .context(|| format!("restoring a snapshot\n{}", qemu.words()))?;
    let channel = Channel::new(qemu.connect("lab.sock", RESTORE_LIMIT)?)?;
    channel
        .hello(true, RESTORE_LIMIT)
        .context(|| format!("after restoring a snapshot\n{}", qemu.words()))?;
    Ok((qemu, channel))
}

/// Notes the use of a snapshot.
fn touch(dir: &Path) {
    let stamp = dir.join("used");
    let _ = std::fs::write(stamp, b"");
}

fn discard_oldest(all: &Path) {
    let mut found: Vec<_> = std::fs::read_dir(all)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.is_dir())
        .collect();
    let used = |p: &PathBuf| {
        let stamp = std::fs::metadata(p.join("used")).or_else(|_| std::fs::metadata(p));
        stamp.and_then(|m| m.modified()).ok()
    };
    found.sort_by_key(used);
    while found.len() >= KEEP {
        let dir = found.remove(0);
        let name = dir
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // One in use is left alone.
        if let Ok(Some(_lock)) = Lock::try_exclusive(&all.join(format!("{name}.lock"))) {
            let _ = std::fs::remove_dir_all(&dir);
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Probe {
    boot_id: String,
    accel: Accel,
    why: String,
}

/// KVM if Xen was seen to boot on it since this machine's own boot, else emulation.
fn choose_accel(lab: &Path, image: &Image, memory_mib: u32) -> Result<Accel> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let record = lab.join("accel.json");
    let known = || {
        let probe: Probe = serde_json::from_slice(&std::fs::read(&record).ok()?).ok()?;
        (probe.boot_id == boot_id).then_some(probe)
    };
    if let Some(probe) = known() {
        ui::detail(format!("accelerator: {} ({})", probe.accel, probe.why));
        return Ok(probe.accel);
    }
    let _lock = Lock::exclusive(&lab.join("accel.lock"))?;
    if let Some(probe) = known() {
        return Ok(probe.accel);
    }
    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    let (accel, why) = match device {
        Err(e) => (Accel::Tcg, format!("/dev/kvm: {e}")),
        Ok(_) => match ui::slow("trying whether Xen boots on KVM", || {
            try_kvm(lab, image, memory_mib)
        }) {
            Ok(took) => (
                Accel::Kvm,
                format!("Xen booted on it in {:.1} s", took.as_secs_f64()),
            ),
            Err(e) => (
                Accel::Tcg,
                format!(
                    "Xen did not boot on KVM: {}",
                    e.0.lines().next().unwrap_or("")
                ),
            ),
        },
    };
    ui::status(format!("accelerator: {accel} ({why})"));
    let probe = Probe {
        boot_id,
        accel,
        why,
    };
    let text = serde_json::to_vec_pretty(&probe).context(|| "writing JSON".into())?;
    paths::write_atomically(&record, &text)?;
    Ok(accel)
}

fn try_kvm(lab: &Path, image: &Image, memory_mib: u32) -> Result<Duration> {
    let dir = lab.join("kvm-probe");
    let _ = std::fs::remove_dir_all(&dir);
    make_dir(&dir)?;
    furnish(&dir)?;
    let begun = Instant::now();
    let result = boot(
        image,
        Accel::Kvm,
        memory_mib,
        Memory::Anonymous,
        &dir,
        KVM_LIMIT,
    );
    let took = begun.elapsed();
    result.map(|_| took)
}
