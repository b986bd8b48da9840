//! One QEMU process with real Xen in it: its command line, its sockets and its end.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Context, Result, fail};
use crate::image::Image;
use crate::qmp::Qmp;
use crate::ui;

/// How the virtual CPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Accel {
    /// Emulated: works on every machine.
    Tcg,
    /// The host's CPU, where Xen boots on it.
    Kvm,
    /// Emulated, with a clock that counts instructions: figures that repeat.
    Icount,
}

impl std::fmt::Display for Accel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Accel::Tcg => "emulated by QEMU (TCG)",
            Accel::Kvm => "on KVM",
            Accel::Icount => "emulated by QEMU, the clock counting instructions",
        })
    }
}

/// Where the machine's memory comes from.
pub enum Memory<'a> {
    /// Plain memory.
    Anonymous,
    /// A file that keeps what is written: the making of a snapshot.
    Kept(&'a Path),
    /// A private copy of such a file: a restore.
    CopyOf(&'a Path),
}

/// What to start.
pub struct Machine<'a> {
    /// Kernels and RAM disk.
    pub image: &'a Image,
    /// The RAM disk to use; the image's own or a longer one.
    pub initrd: &'a Path,
    /// How it runs.
    pub accel: Accel,
    /// Memory of the whole machine.
    pub memory_mib: u32,
    /// Where the memory comes from.
    pub memory: Memory<'a>,
    /// Wait for a state to come in.
    pub incoming: bool,
    /// Folder of this run; holds sockets, console log, share and disk.
    pub dir: &'a Path,
}

/// Memory of dom0; the rest of the machine is Xen's and the guests'.
pub const DOM0_MIB: u32 = 768;

/// A running QEMU. Dropped: killed.
pub struct Qemu {
    child: Child,
    dir: PathBuf,
    folder: File,
}

/// QEMU's version line, part of a snapshot's key.
pub fn version() -> Result<String> {
    let out = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .context(|| "running qemu-system-x86_64 --version".into())?;
    Ok(String::from_utf8_lossy(&out.stdout)
        .lines()
        .next()
        .unwrap_or("")
        .to_string())
}

impl Machine<'_> {
    /// The arguments that make the machine what it is; equal for a snapshot and its restores.
    pub fn identity(accel: Accel, memory_mib: u32) -> Vec<String> {
        let cpu = match accel {
            Accel::Kvm => "host,arch-capabilities=off",
            Accel::Tcg | Accel::Icount => "qemu64",
        };
        let mut args = vec![
            "-cpu",
            cpu,
            "-display",
            "none",
            "-nodefaults",
            "-no-user-config",
        ];
        args.extend(["-no-reboot", "-serial", "file:console.log"]);
        // A measuring machine has no device that the host could disturb it by.
        if accel != Accel::Icount {
            args.extend(["-chardev", "socket,id=qmp,path=qmp.sock,server=on,wait=off"]);
            args.extend(["-mon", "chardev=qmp,mode=control"]);
            args.extend(["-device", "virtio-serial-pci"]);
            args.extend(["-chardev", "socket,id=lab,path=lab.sock,server=on,wait=off"]);
            args.extend(["-device", "virtserialport,chardev=lab,name=lab"]);
            args.extend(["-fsdev", "local,id=lab,path=share,security_model=none"]);
            args.extend(["-device", "virtio-9p-pci,fsdev=lab,mount_tag=lab"]);
            args.extend(["-fsdev", "local,id=labrw,path=rw,security_model=none"]);
            args.extend(["-device", "virtio-9p-pci,fsdev=labrw,mount_tag=labrw"]);
            args.extend([
                "-drive",
                "file=disk.img,format=raw,if=none,id=disk,cache=unsafe",
            ]);
            args.extend(["-device", "virtio-blk-pci,drive=disk"]);
        }
        let mut args: Vec<String> = args.into_iter().map(String::from).collect();
        args.push("-m".into());
        args.push(memory_mib.to_string());
        match accel {
            Accel::Tcg => args.extend(["-accel", "tcg"].map(String::from)),
            Accel::Kvm => args.extend(["-accel", "kvm"].map(String::from)),
            Accel::Icount => args.extend(
                [
                    "-accel",
                    "tcg,thread=single",
                    "-icount",
                    "shift=0,sleep=off",
                    "-rtc",
                    "base=2026-01-01,clock=vm",
                ]
                .map(String::from),
            ),
        }
        args.push("-append".into());
        args.push(format!(
            "console=com1 dom0_mem={DOM0_MIB}M,max:{DOM0_MIB}M dom0_max_vcpus=1 bootscrub=0 loglvl=warning guest_loglvl=warning"
        ));
        args
    }

    /// dom0's kernel command line.
    pub const LINUX_ARGS: &'static str = "console=hvc0 quiet rdinit=/init net.ifnames=0 panic=1";

    /// Starts QEMU and waits for its sockets.
    pub fn start(&self) -> Result<Qemu> {
        let mut command = Command::new("setpriv");
        // QEMU must not outlive us.
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args(Machine::identity(self.accel, self.memory_mib));
        let escaped = |p: &Path| p.display().to_string().replace(',', ",,");
        let (file, share) = match self.memory {
            Memory::Anonymous => (None, ""),
            Memory::Kept(file) => (Some(file), "on"),
            Memory::CopyOf(file) => (Some(file), "off"),
        };
        if let Some(file) = file {
            command.arg("-object").arg(format!(
                "memory-backend-file,id=ram,size={}M,mem-path={},share={share}",
                self.memory_mib,
                escaped(file)
            ));
            command.args(["-machine", "pc,memory-backend=ram"]);
        } else {
            command.args(["-machine", "pc"]);
        }
        // Xen is told these names: by links in the run's folder they are the same in every run.
        let files = [
            ("xen", &*self.image.xen),
            ("vmlinuz", &*self.image.vmlinuz),
            ("initrd", self.initrd),
        ];
        for (name, file) in files {
            link(file, &self.dir.join(name))?;
        }
        command.args(["-kernel", "xen", "-initrd"]);
        command.arg(format!("vmlinuz {},initrd", Machine::LINUX_ARGS));
        if self.incoming {
            command.args(["-incoming", "defer"]);
        }
        Qemu::spawn(command, self.dir)
    }
}

fn link(file: &Path, name: &Path) -> Result<()> {
    let _ = std::fs::remove_file(name);
    std::os::unix::fs::symlink(file, name).context(|| format!("linking {}", name.display()))
}

/// Xen with one guest image of ours as dom0, no Linux and no devices.
pub struct BareMachine<'a> {
    /// Unpacked Xen.
    pub xen: &'a Path,
    /// The image.
    pub guest: &'a Path,
    /// Its command line.
    pub arguments: &'a str,
    /// Folder of this run; the console log comes here.
    pub dir: &'a Path,
}

impl BareMachine<'_> {
    /// Starts QEMU; it ends by itself when the guest has Xen reboot.
    pub fn start(&self) -> Result<Qemu> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args([
            "-accel", "tcg", "-cpu", "qemu64", "-m", "256", "-display", "none",
        ]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-serial",
            "file:console.log",
        ]);
        link(self.xen, &self.dir.join("xen"))?;
        link(self.guest, &self.dir.join("guest"))?;
        command.args(["-kernel", "xen"]);
        command.args([
            "-append",
            "console=com1 dom0_mem=32M dom0_max_vcpus=1 bootscrub=0 guest_loglvl=all",
        ]);
        command
            .arg("-initrd")
            .arg(format!("guest {}", self.arguments));
        Qemu::spawn(command, self.dir)
    }
}

impl Qemu {
    fn spawn(mut command: Command, dir: &Path) -> Result<Qemu> {
        let log = File::create(dir.join("qemu.log"))
            .context(|| format!("creating a log in {}", dir.display()))?;
        command
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().context(|| "starting QEMU".into())?;
        let folder = File::open(dir).context(|| format!("opening {}", dir.display()))?;
        Ok(Qemu {
            child,
            dir: dir.to_path_buf(),
            folder,
        })
    }

    /// Connects to a socket of QEMU's, waiting for it to appear.
    pub fn connect(&mut self, name: &str, limit: Duration) -> Result<UnixStream> {
        // The folder's path may be longer than a socket address: go by its descriptor.
        let path = format!("/proc/self/fd/{}/{name}", self.folder.as_raw_fd());
        let deadline = Instant::now() + limit;
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return Ok(stream),
                Err(e) if Instant::now() > deadline => {
                    return fail(format!(
                        "connecting to QEMU's {name}: {e}\n{}",
                        self.words()
                    ));
                }
                Err(_) => self.check()?,
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// The monitor.
    pub fn monitor(&mut self) -> Result<Qmp> {
        Qmp::greet(self.connect("qmp.sock", Duration::from_secs(20))?)
    }

    /// An error if QEMU has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => fail(format!("QEMU ended ({status})\n{}", self.words())),
            Err(e) => fail(format!("waiting for QEMU: {e}")),
        }
    }

    /// Waits for QEMU's own end; false if it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// The last lines of QEMU's own log and of the console.
    pub fn words(&self) -> String {
        let mut out = String::new();
        for name in ["qemu.log", "console.log"] {
            let path = self.dir.join(name);
            let bytes = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).replace('\r', "");
            if !text.trim().is_empty() {
                out += &format!(
                    "  last lines of {}:\n{}",
                    path.display(),
                    ui::tail(&text, 15)
                );
            }
        }
        out
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
