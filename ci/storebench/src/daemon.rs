//! A store daemon, ours or a stock one, in a folder of its own on a processor of its own.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fakexen::Folder;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::error::{Context, Result, fail};
use crate::plain::Plain;

/// How long a daemon may take to serve.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long one may take to be gone after it was killed.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Whose daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// Ours.
    Xlrs,
    /// C xenstored of Xen 4.17.
    C,
    /// oxenstored of Xen 4.17.
    Oxenstored,
}

impl Kind {
    /// All of them, ours first.
    pub const ALL: [Kind; 3] = [Kind::Xlrs, Kind::C, Kind::Oxenstored];

    /// For people and rows.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Xlrs => "xlrs",
            Kind::C => "c-xenstored",
            Kind::Oxenstored => "oxenstored",
        }
    }
}

/// Ways to run our daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ours {
    /// It keeps its state.
    Alone,
    /// It keeps nothing.
    WithoutState,
    /// It keeps its state, and a keeper holds its sockets.
    WithKeeper,
}

/// What is needed to start daemons.
pub struct Place {
    xenstored: PathBuf,
    stock: PathBuf,
    preload: PathBuf,
    /// Where folders are made: memory, so that a ring's pages are never written to a disk.
    top: PathBuf,
    daemon_cpu: usize,
}

impl Place {
    /// Takes the first processor for daemons and puts this process on the next.
    pub fn new(xenstored: &Path, stock: &Path, preload: &Path) -> Result<Place> {
        let allowed = sched_getaffinity(None).context(|| "asking for the processors".into())?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let daemon_cpu = cpus.next().unwrap_or(0);
        let load_cpu = cpus.next().unwrap_or_else(|| {
            eprintln!("storebench: only one processor: the load takes time from the daemons");
            daemon_cpu
        });
        pin(None, load_cpu)?;
        // Thousands of sockets, here and in each daemon, which inherit the limit.
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        setrlimit(Resource::Nofile, raised).context(|| "raising the limit of files".into())?;
        let memory = PathBuf::from("/dev/shm");
        let top = if memory.is_dir() {
            memory
        } else {
            std::env::temp_dir()
        };
        remove_left(&top);
        let absolute = |path: &Path| {
            path.canonicalize()
                .context(|| format!("finding {}", path.display()))
        };
        Ok(Place {
            xenstored: absolute(xenstored)?,
            stock: absolute(stock)?,
            preload: absolute(preload)?,
            top,
            daemon_cpu,
        })
    }

    /// Starts a daemon and waits until it serves.
    pub fn start(&self, kind: Kind) -> Result<Daemon> {
        self.start_as(kind, Ours::Alone)
    }

    /// Starts our daemon in one of these ways.
    pub fn start_ours(&self, ours: Ours) -> Result<Daemon> {
        self.start_as(Kind::Xlrs, ours)
    }

    fn start_as(&self, kind: Kind, ours: Ours) -> Result<Daemon> {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let path = self
            .top
            .join(format!("storebench-{}-{number}", std::process::id()));
        let folder = Folder::create(&path).context(|| format!("making {}", path.display()))?;
        let log = fs::File::create(path.join("log")).context(|| "making a log".into())?;
        let mut command = self.command(kind, &folder);
        match ours {
            Ours::Alone => {}
            Ours::WithoutState => _ = command.arg("--no-state"),
            Ours::WithKeeper => _ = command.arg("--keep"),
        }
        let process = command
            .env("FAKEXEN", &path)
            .current_dir(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context(|| "sharing a log".into())?)
            .stderr(log)
            .spawn()
            .context(|| format!("starting {}", kind.name()))?;
        let server = Pid::from_child(&process);
        let mut daemon = Daemon {
            kind,
            folder,
            process,
            server,
        };
        pin(Some(server), self.daemon_cpu)?;
        daemon.wait_until_up()?;
        if ours == Ours::WithKeeper {
            daemon.server = only_child(server)?;
            pin(Some(daemon.server), self.daemon_cpu)?;
        }
        Ok(daemon)
    }

    /// The program to go on with in a live update to a daemon of this kind.
    pub fn next(&self, kind: Kind, folder: &Folder) -> Result<PathBuf> {
        if kind == Kind::Xlrs {
            return Ok(self.xenstored.clone());
        }
        // A daemon starts a program by its name alone, and the stock ones need their own loader.
        let (loader, arguments) = self.stock_loader(kind);
        let arguments: Vec<String> = arguments
            .iter()
            .map(|word| format!("'{}'", word.to_string_lossy()))
            .collect();
        let text = format!(
            "#!/bin/sh\nexec '{}' {} \"$@\"\n",
            loader.display(),
            arguments.join(" ")
        );
        let path = folder.path().join(format!("next-{}", kind.name()));
        let named = || format!("writing {}", path.display());
        fs::write(&path, text).context(named)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context(named)?;
        Ok(path)
    }

    /// Debian's own loader and libraries, whatever this machine has: the loader, and its arguments with the program.
    fn stock_loader(&self, kind: Kind) -> (PathBuf, Vec<OsString>) {
        let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
        let libraries = libraries.map(|dir| self.stock.join(dir).display().to_string());
        let programs = self.stock.join("usr/lib/xen-4.17/bin");
        let program = match kind {
            Kind::C => programs.join("xenstored"),
            _ => programs.join("oxenstored"),
        };
        let arguments = vec![
            "--library-path".into(),
            libraries.join(":").into(),
            "--preload".into(),
            self.preload.clone().into(),
            program.into(),
        ];
        let loader = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
        (self.stock.join(loader), arguments)
    }

    fn command(&self, kind: Kind, folder: &Folder) -> Command {
        let socket = socket(folder);
        // The daemon ends with us, however we end.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if kind == Kind::Xlrs {
            command.arg(&self.xenstored).arg("--no-fork");
            command.args([Path::new("--fakexen"), folder.path()]);
            command.args([Path::new("--socket"), &socket]);
            return command;
        }
        let (loader, arguments) = self.stock_loader(kind);
        command.arg(loader).args(arguments).arg("--no-fork");
        if kind == Kind::Oxenstored {
            command.arg("--no-access-log");
            command.args([
                Path::new("--config-file"),
                &self.stock.join("etc/xen/oxenstored.conf"),
            ]);
        }
        command
    }
}

/// A running daemon. Dropped: killed, and its folder removed.
pub struct Daemon {
    kind: Kind,
    folder: Folder,
    process: Child,
    /// The process that serves: the one that we started, or its child.
    server: Pid,
}

impl Daemon {
    /// Its folder.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        socket(&self.folder)
    }

    /// Processor time that it has taken, all threads together.
    pub fn cpu_time(&self) -> Result<Duration> {
        let tasks = format!("/proc/{}/task", self.server.as_raw_pid());
        let mut total = 0;
        for task in fs::read_dir(&tasks).context(|| format!("reading {tasks}"))? {
            let path = task
                .context(|| format!("reading {tasks}"))?
                .path()
                .join("schedstat");
            let text =
                fs::read_to_string(&path).context(|| format!("reading {}", path.display()))?;
            let nanos = text
                .split_whitespace()
                .next()
                .and_then(|word| word.parse::<u64>().ok());
            total += nanos.context_none(|| format!("{} has no times", path.display()))?;
        }
        Ok(Duration::from_nanos(total))
    }

    /// Bytes of memory that it has in use (VmRSS).
    pub fn resident_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.server.as_raw_pid());
        let text = fs::read_to_string(&path).context(|| format!("reading {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line
            .and_then(|line| line.split_whitespace().next())
            .and_then(|word| word.parse::<u64>().ok());
        Ok(kib.context_none(|| format!("{path} has no VmRSS"))? * 1024)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if UnixStream::connect(self.socket()).is_ok() {
                return Plain::connect(&self.socket())?
                    .ask(xs_wire::Op::Directory, 0, &[b"/\0"])
                    .map(drop);
            }
            let ended = self.process.try_wait().context(|| "waiting".into())?;
            if let Some(status) = ended {
                return fail(format!("it ended with {status}\n{}", self.log()));
            }
            if Instant::now() > deadline {
                return fail(format!("it does not serve\n{}", self.log()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the process that serves is gone; it is not our child.
    fn wait_for_server(&self) {
        let path = PathBuf::from(format!("/proc/{}", self.server.as_raw_pid()));
        let deadline = Instant::now() + END_LIMIT;
        while path.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What it has said.
    pub fn log(&self) -> String {
        let text = fs::read(self.folder.path().join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let name = self.kind.name();
        text.lines()
            .map(|line| format!("  {name}: {line}\n"))
            .collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The keeper first, which would start another. They may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if self.server.as_raw_pid() != self.process.id() as i32 {
            let _ = kill_process(self.server, Signal::KILL);
            self.wait_for_server();
        }
        if let Err(error) = fs::remove_dir_all(self.folder.path()) {
            let path = self.folder.path().display();
            eprintln!("storebench: cannot remove {path}: {error}");
        }
    }
}

/// `None` as an error.
trait ContextNone<T> {
    fn context_none(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> ContextNone<T> for Option<T> {
    fn context_none(self, what: impl FnOnce() -> String) -> Result<T> {
        self.ok_or_else(|| crate::error::Error(what()))
    }
}

/// The child of a process that has one.
fn only_child(parent: Pid) -> Result<Pid> {
    let parent = parent.as_raw_pid();
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = fs::read_to_string(&path).context(|| format!("reading {path}"))?;
    let child = text.trim().parse().ok().and_then(Pid::from_raw);
    child.context_none(|| format!("{path} names no child, or several: {text:?}"))
}

/// Where the stock daemons' library puts their socket.
fn socket(folder: &Folder) -> PathBuf {
    folder.path().join("xenstored/socket")
}

/// Removes folders of earlier runs that were killed.
fn remove_left(top: &Path) {
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix("storebench-")?.split('-').next())
            .filter(|pid| pid.parse::<u32>().is_ok());
        if let Some(pid) = owner
            && !Path::new("/proc").join(pid).exists()
        {
            // Somebody else may do the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn pin(process: Option<Pid>, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(process, &set).context(|| format!("pinning to processor {cpu}"))
}
