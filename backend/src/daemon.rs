//! What makes a program a daemon: arguments, log, forking, signals, and whether the kernel's own backend
//! is in the way.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use xen_hal::{Store, StoreExt};

use crate::quota::{Quota, Verdict};
use crate::{Bus, Driver, Wake};

/// Arguments that every daemon takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Common {
    /// Go to the background; the command returns once the daemon is ready
    #[arg(long)]
    pub daemon: bool,
    /// Write the process number to this file, and remove it at the end
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Append messages to this file instead of the standard error
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
}

/// Why a daemon could not go on, for its user.
pub type Failure = Box<dyn std::error::Error>;

/// Runs `body` as the arguments ask; it calls [`Ready::announce`] when it serves. The exit code is for
/// `main` to return.
pub fn run(
    name: &str,
    common: &Common,
    body: impl FnOnce(Ready) -> Result<(), Failure>,
) -> ExitCode {
    match try_run(name, common, body) {
        Ok(code) => code,
        Err(error) => {
            log(&format!("{name}: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn try_run(
    name: &str,
    common: &Common,
    body: impl FnOnce(Ready) -> Result<(), Failure>,
) -> Result<ExitCode, Failure> {
    // Opened before forking, so that what is wrong with it is still seen.
    let log_file = common.log_file.as_deref().map(open_log).transpose()?;
    let mut parent = None;
    if common.daemon {
        match fork()? {
            Fork::Parent(pipe) => return Ok(wait_for_child(name, common, pipe)),
            Fork::Child(pipe) => parent = Some(pipe),
        }
        rustix::process::setsid().map_err(|error| format!("cannot start a session: {error}"))?;
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        if log_file.is_none() {
            rustix::stdio::dup2_stderr(&null)?;
        }
    }
    if let Some(file) = &log_file {
        rustix::stdio::dup2_stderr(file)?;
    }
    let ready = Ready {
        parent,
        pid_file: common.pid_file.clone(),
        pid_written: false,
    };
    let mut parent = ready
        .parent
        .as_ref()
        .map(|pipe| pipe.try_clone())
        .transpose()?;
    body(ready)
        .map(|()| ExitCode::SUCCESS)
        .inspect_err(|error| {
            if let Some(pipe) = &mut parent {
                let _ = write!(pipe, "{error}");
            }
        })
}

/// What is still to be done when a daemon becomes ready and when it ends.
#[derive(Debug)]
pub struct Ready {
    parent: Option<File>,
    pid_file: Option<PathBuf>,
    pid_written: bool,
}

impl Ready {
    /// Writes the pid file and tells whoever started the daemon that it serves. Not earlier: a second
    /// process that finds it is not alone leaves the first one's file as it is.
    pub fn announce(&mut self) -> Result<(), Failure> {
        self.write_pid()?;
        if let Some(mut pipe) = self.parent.take() {
            // Whoever started it may have gone meanwhile.
            let _ = pipe.write_all(&[READY]);
        }
        Ok(())
    }

    fn write_pid(&mut self) -> Result<(), Failure> {
        if let Some(path) = &self.pid_file {
            fs::write(path, format!("{}\n", std::process::id())).map_err(|error| {
                format!("cannot write the pid file {}: {error}", path.display())
            })?;
            self.pid_written = true;
        }
        Ok(())
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        if let (true, Some(path)) = (self.pid_written, &self.pid_file) {
            // It may be gone; nobody is left to tell.
            let _ = fs::remove_file(path);
        }
    }
}

/// The byte that says "ready"; no error message begins with it.
const READY: u8 = 0;

enum Fork {
    Parent(File),
    Child(File),
}

fn fork() -> Result<Fork, Failure> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    #[allow(unsafe_code)]
    // SAFETY: no thread has been started yet, so the child may do everything the parent may.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(format!("cannot fork: {}", io::Error::last_os_error()).into()),
        0 => Ok(Fork::Child(write.into())),
        _ => Ok(Fork::Parent(read.into())),
    }
}

fn wait_for_child(name: &str, common: &Common, mut pipe: File) -> ExitCode {
    // The daemon keeps its end open while it runs: the first byte decides.
    let mut answer = vec![READY];
    let first = pipe.read(&mut answer);
    if matches!(first, Ok(1)) && answer == [READY] {
        return ExitCode::SUCCESS;
    }
    let rest = pipe.read_to_end(&mut answer);
    match (first, rest) {
        (Ok(1), Ok(_)) => eprintln!("{name}: {}", String::from_utf8_lossy(&answer)),
        _ => eprintln!("{name}: the daemon ended before it was ready"),
    }
    if let Some(path) = &common.log_file {
        eprintln!("{name}: its log is {}", path.display());
    }
    ExitCode::FAILURE
}

fn open_log(path: &Path) -> Result<File, Failure> {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.map_err(|error| format!("cannot open the log file {}: {error}", path.display()).into())
}

/// Writes one line about a device, `NAME: WHAT`, to the log. A guest makes its devices connect, fail and
/// close as often as it likes, so each name has a [`Quota`].
pub fn log_device(line: &str) {
    static QUOTA: Mutex<Quota> = Mutex::new(Quota::new());
    let name = line.split_once(": ").map_or(line, |(name, _)| name);
    let verdict = QUOTA
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .admit(name, Instant::now());
    match verdict {
        Verdict::Log { missed: 0 } => log(line),
        Verdict::Log { missed } => {
            log(&format!("{name}: {missed} lines were left out"));
            log(line);
        }
        Verdict::Last => {
            log(line);
            log(&format!(
                "{name}: too much to say; nothing more for a while"
            ));
        }
        Verdict::Drop => {}
    }
}

/// Writes one line to the log, with the time.
pub fn log(line: &str) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let (day_s, ms) = (now.as_secs() % 86_400, now.subsec_millis());
    let (h, m, s) = (day_s / 3600, day_s / 60 % 60, day_s % 60);
    eprintln!("{h:02}:{m:02}:{s:02}.{ms:03} {line}");
}

/// SIGTERM, SIGINT and SIGHUP as a descriptor that becomes readable.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Takes the signals over; to be called before any thread is started.
    pub fn take() -> io::Result<Signals> {
        #[allow(unsafe_code)]
        // SAFETY: `set` is initialised by sigemptyset before its first use; the new descriptor is
        // owned by nobody else.
        unsafe {
            let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            match libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Signals(OwnedFd::from_raw_fd(fd))),
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sees to it that one process at a time serves a class of devices: two would both answer the same rings.
/// A process that was killed holds the lock until all its I/O has ended, so it is waited for.
pub fn only_one(name: &str) -> Result<File, Failure> {
    lock(Path::new("/run/xlrs"), name, LOCK_TIMEOUT)
}

/// How long a process that is just ending is waited for.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

fn lock(folder: &Path, name: &str, timeout: Duration) -> Result<File, Failure> {
    let path = folder.join(format!("{name}.lock"));
    let failed = |error: io::Error| format!("cannot lock {}: {error}", path.display());
    fs::create_dir_all(folder).map_err(failed)?;
    let mut open = OpenOptions::new();
    open.read(true).write(true).create(true).truncate(false);
    let mut file = open.open(&path).map_err(failed)?;
    let deadline = Instant::now() + timeout;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                return Err(format!("{name} is running already, as process {}", pid.trim()).into());
            }
            Err(error) => return Err(failed(error.into()).into()),
        }
    }
    file.set_len(0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// Why a daemon serves no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A signal has asked for it.
    Asked,
    /// [`Driver::over`]
    Over,
}

/// Serves the devices of a bus until a signal asks for an end, or the driver says that all is over. While it serves, `node` in the store holds
/// the process number: a toolstack sees by it who serves this class.
pub fn serve<D: Driver, S: Store + AsFd>(
    bus: &mut Bus<D>,
    store: &S,
    signals: &Signals,
    wake: &Wake,
    node: &str,
    ready: &mut Ready,
) -> Result<Ending, Failure> {
    serve_until(bus, store, store.as_fd(), signals, wake, node, ready)
}

fn serve_until<D: Driver>(
    bus: &mut Bus<D>,
    store: &dyn Store,
    store_fd: BorrowedFd<'_>,
    signals: &Signals,
    wake: &Wake,
    node: &str,
    ready: &mut Ready,
) -> Result<Ending, Failure> {
    bus.start(store)?;
    bus.step(store)?;
    store.write_display(None, node, &std::process::id())?;
    ready.announce()?;
    let (known, connected) = bus.counts();
    log(&format!("ready: {known} devices, {connected} connected"));
    // Replies may have brought events along, of which the descriptor tells nothing. And one step a round: a
    // guest that writes without end must keep neither signals nor the other devices' workers waiting.
    let mut more = true;
    loop {
        let mut fds = [
            PollFd::new(&store_fd, PollFlags::IN),
            PollFd::new(wake, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        let at_once = Timespec::default();
        match poll(&mut fds, more.then_some(&at_once)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(format!("poll: {error}").into()),
        }
        if !fds[2].revents().is_empty() {
            break;
        }
        wake.clear();
        if bus.driver().over() {
            return Ok(Ending::Over);
        }
        bus.check(store)?;
        more = bus.step(store)?;
    }
    log("ending; running guests wait for the next process");
    store.rm_if_present(None, node)?;
    Ok(Ending::Asked)
}

/// An error that names the remedy if the kernel's own backend `module` is loaded: it would take the same
/// devices.
pub fn refuse_if_loaded(module: &str) -> Result<(), Failure> {
    check_module(Path::new("/sys/module"), module)
}

fn check_module(sysfs: &Path, module: &str) -> Result<(), Failure> {
    if !sysfs.join(module).exists() {
        return Ok(());
    }
    Err(format!(
        "the kernel module {module} is loaded and serves the same devices; unload it \
         (modprobe -r {dashed}) and keep it away (echo blacklist {dashed} > /etc/modprobe.d/xlrs.conf)",
        dashed = module.replace('_', "-")
    )
    .into())
}

#[cfg(test)]
mod tests {
    use xen_hal::Error;
    use xen_sys::DomId;

    use super::*;
    use crate::testing::MemoryStore;
    use crate::{DeviceId, Node, Site};

    #[test]
    fn one_process_at_a_time() {
        let folder = std::env::temp_dir().join(format!("xen-backend-lock-{}", std::process::id()));
        let held = lock(&folder, "x", Duration::ZERO).unwrap();
        let error = lock(&folder, "x", Duration::ZERO).unwrap_err().to_string();
        let pid = std::process::id().to_string();
        assert!(error.contains(&pid), "{error}");
        drop(held);
        lock(&folder, "x", Duration::ZERO).unwrap();
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_process_that_never_serves_leaves_the_pid_file_alone() {
        let path = std::env::temp_dir().join(format!("xen-backend-pid-{}", std::process::id()));
        fs::write(&path, "17\n").unwrap();
        let common = Common {
            daemon: false,
            pid_file: Some(path.clone()),
            log_file: None,
        };
        run("x", &common, |_| Err("x is running already".into()));
        assert_eq!(fs::read_to_string(&path).unwrap(), "17\n");
        let served = run("x", &common, |mut ready| {
            ready.announce()?;
            let pid = fs::read_to_string(&path)?;
            assert_eq!(pid, format!("{}\n", std::process::id()));
            Ok(())
        });
        assert_eq!(served, ExitCode::SUCCESS);
        assert!(!path.exists());
    }

    /// Its device never connects. The third time it is asked to, a signal ends the daemon.
    struct Idle(u32);

    impl Driver for Idle {
        const CLASS: &'static str = "vbd";
        type Device = ();
        type Connection = ();

        fn open(&mut self, _: &Site<'_>) -> Result<((), Vec<Node>), Error> {
            Ok(((), Vec::new()))
        }

        fn connect(&mut self, _: &Site<'_>, (): &mut ()) -> Result<Option<((), Vec<Node>)>, Error> {
            self.0 += 1;
            if self.0 == 3 {
                #[allow(unsafe_code)]
                // SAFETY: sends a signal, which is blocked, to this thread.
                let sent = unsafe { libc::raise(libc::SIGTERM) };
                assert_eq!(sent, 0);
            }
            Ok(None)
        }

        fn failure(&self, (): &()) -> Option<Error> {
            None
        }

        fn close(&mut self, _: DeviceId, (): ()) {}
    }

    #[test]
    fn a_flood_of_events_keeps_no_signal_waiting() {
        // In a thread of its own: the signals are blocked, and sent, for that thread alone.
        let flooded = || {
            let signals = Signals::take().unwrap();
            let (store, wake) = (MemoryStore::new(), Wake::new().unwrap());
            let mut bus = Bus::new(Idle(0), DomId::DOM0, |_| {});
            store.fill(
                "/local/domain/0/backend/vbd/1/7",
                &[("frontend", "/f"), ("state", "1")],
            );
            store.fill("/f", &[("state", "4")]);
            store.flood("1/7", 1, 100_000);
            let mut ready = Ready {
                parent: None,
                pid_file: None,
                pid_written: false,
            };
            // Its descriptor says that nothing waits.
            let fd = wake.as_fd();
            serve_until(&mut bus, &store, fd, &signals, &wake, "/node", &mut ready).unwrap();
            assert!(store.flood_left() > 0, "the flood was waited out");
        };
        std::thread::spawn(flooded).join().unwrap();
    }

    #[test]
    fn a_loaded_module_is_refused_with_the_remedy() {
        let sysfs = std::env::temp_dir().join(format!("xen-backend-{}", std::process::id()));
        fs::create_dir_all(sysfs.join("xen_blkback")).unwrap();
        let error = check_module(&sysfs, "xen_blkback").unwrap_err().to_string();
        assert!(error.contains("modprobe -r xen-blkback"), "{error}");
        check_module(&sysfs, "xen_netback").unwrap();
        fs::remove_dir_all(&sysfs).unwrap();
    }
}
