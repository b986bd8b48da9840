//! What makes a process a daemon: the background, the pid file, the socket, the service manager. The `unsafe` of
//! this crate stands here: fork and signals.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FlockOperation;
use rustix::process::{Resource, Rlimit};

use crate::daemon::live::MARK;
use crate::manager::{Kept, Manager};

/// Why the daemon could not start or go on, for its user.
pub type Failure = Box<dyn std::error::Error>;

/// The process after going to the background.
pub enum Fork {
    /// The one that was started: it waits until the daemon is ready, and ends.
    Parent {
        /// Reads "ready" from the daemon.
        ready: io::PipeReader,
        /// The daemon's process number.
        pid: i32,
    },
    /// The daemon.
    Daemon(Ready),
}

/// Tells that the daemon serves.
#[derive(Debug, Default)]
pub struct Ready {
    /// The process that waits for it.
    parent: Option<io::PipeWriter>,
    /// Whether the standard streams are given up then.
    detach: bool,
}

impl Ready {
    /// Nobody waits; the standard streams may be given up all the same.
    pub fn alone(detach: bool) -> Ready {
        Ready {
            parent: None,
            detach,
        }
    }
}

/// Goes to the background, in a session of its own.
pub fn fork() -> Result<Fork, Failure> {
    let (reader, writer) = io::pipe()?;
    // SAFETY: no thread was started yet, so the child may do whatever the parent may.
    #[allow(unsafe_code)]
    let pid = unsafe { libc::fork() };
    match pid {
        ..0 => Err(format!("cannot fork: {}", io::Error::last_os_error()).into()),
        0 => {
            rustix::process::setsid()?;
            rustix::process::chdir("/")?;
            Ok(Fork::Daemon(Ready {
                parent: Some(writer),
                detach: true,
            }))
        }
        pid => Ok(Fork::Parent { ready: reader, pid }),
    }
}

/// Waits until the daemon says that it is ready; `false` if it ended first. It has said why.
pub fn wait_ready(mut ready: io::PipeReader) -> bool {
    let mut byte = [0];
    matches!(ready.read(&mut byte), Ok(1))
}

impl Ready {
    /// Tells the starting process and the service manager that requests are served. In the background, what is said
    /// from now on goes to the log file or nowhere.
    pub fn announce(self, log_file: bool, manager: Option<&Manager>) -> Result<(), Failure> {
        if self.detach {
            let null = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/null")?;
            rustix::stdio::dup2_stdin(&null)?;
            rustix::stdio::dup2_stdout(&null)?;
            if let Some(mut writer) = self.parent {
                // The parent may have been killed; the daemon serves all the same.
                let _ = writer.write_all(b"R");
            }
            if !log_file {
                rustix::stdio::dup2_stderr(&null)?;
            }
        }
        if let Some(manager) = manager {
            let message = format!("MAINPID={}\nREADY=1\n", std::process::id());
            manager
                .say(&message)
                .map_err(|error| format!("cannot tell the service manager READY=1: {error}"))?;
        }
        Ok(())
    }
}

/// Lets messages go to a file.
pub fn log_to(path: &Path) -> Result<(), Failure> {
    let file = OpenOptions::new().append(true).create(true).open(path);
    let file = file.map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    rustix::stdio::dup2_stderr(&file)?;
    Ok(())
}

/// A pid file, locked while the daemon runs and removed at its end.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    /// Writes this process's number, unless another daemon holds the file.
    pub fn write(path: &Path) -> Result<PidFile, Failure> {
        let failed =
            |what: &str, error: io::Error| format!("cannot {what} {}: {error}", path.display());
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let mut file = file.map_err(|error| failed("open", error))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let path = path.display();
            return Err(format!("{path} is locked: another store daemon runs").into());
        }
        let written = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(|error| failed("write", error))?;
        Ok(PidFile {
            path: path.to_owned(),
            file,
        })
    }

    /// Keeps the file that another program in this process has locked.
    pub fn keep(path: &Path, file: OwnedFd) -> PidFile {
        PidFile {
            path: path.to_owned(),
            file: file.into(),
        }
    }
}

impl AsFd for PidFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Nothing is left to be done if it is gone already.
        let _ = fs::remove_file(&self.path);
    }
}

/// The socket that clients connect to, removed at the end.
#[derive(Debug)]
pub struct Listener {
    path: PathBuf,
}

impl Listener {
    /// Goes on with a socket that listens at this path already. `None` if the path leads to it no more.
    pub fn take_over(path: &Path, socket: OwnedFd) -> Option<(Listener, OwnedFd)> {
        let meta = fs::symlink_metadata(path).ok()?;
        let path = path.to_owned();
        meta.file_type()
            .is_socket()
            .then_some((Listener { path }, socket))
    }

    /// Binds the socket, for its owner only. A socket that nobody listens on any more is replaced; one that
    /// answers is another daemon's.
    pub fn bind(path: &Path) -> Result<(Listener, OwnedFd), Failure> {
        let failed =
            |what: &str, error: io::Error| format!("cannot {what} {}: {error}", path.display());
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            fs::create_dir_all(folder).map_err(|error| failed("make the folder of", error))?;
        }
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => {
                if UnixStream::connect(path).is_ok() {
                    let path = path.display();
                    return Err(format!("another store daemon serves {path}: stop it first").into());
                }
                fs::remove_file(path).map_err(|error| failed("remove", error))?;
            }
            Ok(_) => return Err(format!("{} is no socket", path.display()).into()),
            Err(_) => {}
        }
        // Nobody else may connect between bind and chmod.
        let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(old);
        let socket = bound.map_err(|error| failed("listen on", error))?;
        socket.set_nonblocking(true)?;
        // std listens with a backlog of at most 4096 already; the mode is what matters.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .map_err(|error| failed("set the mode of", error))?;
        let listener = Listener {
            path: path.to_owned(),
        };
        Ok((listener, socket.into()))
    }
}

impl Listener {
    /// Removes, in the end, the socket that was bound by another program in this process.
    pub fn keep(path: &Path) -> Listener {
        Listener {
            path: path.to_owned(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Nothing is left to be done if it is gone already.
        let _ = fs::remove_file(&self.path);
    }
}

/// The descriptors that the service manager has kept and hands over, by name.
pub fn kept_descriptors() -> Kept {
    let text = |name: &str| std::env::var(name).unwrap_or_default();
    let pid = text("LISTEN_PID");
    if pid != std::process::id().to_string() && pid != KEEPER_PID {
        return Kept::default();
    }
    let count: i32 = text("LISTEN_FDS").parse().unwrap_or(0);
    let names = text("LISTEN_FDNAMES");
    let fds = (FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + count).zip(names.split(':'));
    Kept::new(fds.filter_map(|(fd, name)| {
        // SAFETY: the protocol says that these are open and ours; nobody else in this process has taken them, as this is
        // called once, before anything is opened. Those that are not open after all are left out.
        #[allow(unsafe_code)]
        let fd = unsafe {
            if libc::fcntl(fd, libc::F_GETFD) < 0 {
                return None;
            }
            OwnedFd::from_raw_fd(fd)
        };
        Some((name.to_owned(), fd))
    }))
}

/// The first descriptor that a service manager hands over (SD_LISTEN_FDS_START).
const FIRST_DESCRIPTOR: i32 = 3;
/// Stands in the place of our process number, which our keeper cannot know in time.
const KEEPER_PID: &str = "keeper";

/// Lets a command be started with these descriptors, as a service manager would.
pub fn hand_over(command: &mut Command, fds: &[(&str, BorrowedFd<'_>)]) -> Result<(), Failure> {
    let count = i32::try_from(fds.len())?;
    // Copies above those numbers that they are to get, so that none is in another's way.
    let above = FIRST_DESCRIPTOR + count;
    let copies = fds
        .iter()
        .map(|(_, fd)| rustix::io::fcntl_dupfd_cloexec(fd, above));
    let copies = copies.collect::<Result<Vec<OwnedFd>, _>>()?;
    let names: Vec<&str> = fds.iter().map(|(name, _)| *name).collect();
    command
        .env("LISTEN_PID", KEEPER_PID)
        .env("LISTEN_FDS", count.to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    let work = move || {
        for (number, fd) in (FIRST_DESCRIPTOR..).zip(&copies) {
            // SAFETY: dup2 may be called between fork and exec; `copies` are open, and nothing of the child's lies in between
            // but what the standard library closes at exec.
            #[allow(unsafe_code)]
            if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `work` only calls dup2 and looks at memory that the child has a copy of.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(work);
    }
    Ok(())
}

/// What a live update looks for in a program, to know whether it is one of ours: an ELF note, which lies near the
/// beginning of the file.
#[repr(C, align(4))]
pub struct Note {
    name_size: u32,
    text_size: u32,
    kind: u32,
    name: [u8; 8],
    text: [u8; 28],
}

#[allow(unsafe_code)]
// SAFETY: the section is of a name that nobody else uses, and has the layout of a note.
#[unsafe(link_section = ".note.xlrs")]
#[used]
static NOTE: Note = Note {
    name_size: 5,
    text_size: MARK.len() as u32,
    kind: 1,
    name: *b"xlrs\0\0\0\0",
    text: {
        let mut text = [0; 28];
        text.copy_from_slice(MARK);
        text
    },
};

/// The note of this program; asking for it keeps it there.
pub fn note() -> &'static Note {
    &NOTE
}

/// Takes a descriptor that an earlier program in this process has left open.
pub fn inherit(fd: RawFd) -> Result<OwnedFd, String> {
    // SAFETY: these read and set a number's flags, if it is open at all.
    #[allow(unsafe_code)]
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    // All that this program opens, or has inherited already, is marked so.
    if fd <= 2 || flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return Err(format!("descriptor {fd} was not inherited"));
    }
    // SAFETY: it is open, and nothing in this program has it: it was open before, and is taken once, as it is marked
    // from now on.
    #[allow(unsafe_code)]
    unsafe {
        libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC);
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// SIGTERM and SIGINT as a descriptor that becomes readable; SIGHUP and SIGPIPE are ignored. May be called again, after
/// an attempt to become another program has undone it.
pub fn stop_signals() -> Result<OwnedFd, Failure> {
    // SAFETY: the set is initialised by sigemptyset before use; signalfd returns a descriptor that nobody else
    // owns, or -1, which is checked first.
    #[allow(unsafe_code)]
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error().into());
        }
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error().into()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Lets large pieces of memory go back to the system when they are done with. The allocator would else learn from a
/// snapshot of the whole store that such pieces are usual, and keep the memory of the next one.
pub fn steady_allocator() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: i32 = 256 << 10;
        // SAFETY: sets numbers of the allocator's own, under its lock.
        #[allow(unsafe_code)]
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        }
    }
}

/// Makes the process the last one to be killed for memory, and allows it many descriptors. Neither is possible for
/// every user, nor needed.
pub fn raise_limits() {
    if rustix::process::geteuid().is_root() {
        let _ = fs::write("/proc/self/oom_score_adj", "-500");
    }
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
}
