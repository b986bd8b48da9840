//! A process that keeps a daemon alive: starts it again when it is killed, and holds its sockets meanwhile, so that
//! clients only wait. It speaks as much of sd_notify as the daemon needs, for hosts whose service manager does not.
//!
//! Invariant: nothing that a client sends reaches this process.

use std::collections::BTreeMap;
use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::daemon::log;
use crate::journal;
use crate::manager::NOTIFY_SOCKET;
use crate::options::Options;
use crate::os::{self, Failure, Ready};

/// Daemons in a row that did not come to serve, after which no more is started; before that, their state is given up.
const FAILURES_MAX: u32 = 30;
/// How long to wait before the next after one that did not come to serve.
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes of all names together: the kernel's bound for one variable of the environment, with room for its own name.
const NAMES_MAX: usize = (128 << 10) - 64;
/// The longest message.
const MESSAGE_MAX: usize = 4096;

/// The socket on which the daemon tells what to keep; removed at the end.
struct Socket {
    path: PathBuf,
    socket: UnixDatagram,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Nothing is left to be done if it is gone already.
        let _ = fs::remove_file(&self.path);
    }
}

/// What the daemon has said.
#[derive(Debug, Default)]
struct Said {
    ready: bool,
    fds: BTreeMap<String, OwnedFd>,
}

/// Starts daemons until one ends because it was told to; its end is ours.
///
/// # Errors
/// No daemon can be started, or none comes to serve.
pub fn run(options: &Options, ready: Ready) -> Result<ExitCode, Failure> {
    let stop = os::stop_signals()?;
    let socket = bind(options)?;
    if let Some(state) = options.state().filter(|_| options.fresh) {
        journal::forget(&state)?;
    }
    let program = std::env::current_exe()?;
    let mut ready = Some(ready);
    let mut said = Said::default();
    let mut failures = 0;
    for life in 0.. {
        said.ready = false;
        let mut child = start(&program, &socket.path, &said, life)?;
        let pid = Pid::from_child(&child);
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        loop {
            let mut fds = [
                PollFd::new(&ended, PollFlags::IN),
                PollFd::new(&socket.socket, PollFlags::IN),
                PollFd::new(&stop, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [has_ended, _, is_stopped] = fds.map(|fd| !fd.revents().is_empty());
            said.listen(&socket.socket);
            if said.ready
                && let Some(ready) = ready.take()
            {
                let manager = crate::manager::Manager::from_environment(false)?;
                ready.announce(options.log_file.is_some(), manager.as_ref())?;
            }
            if has_ended {
                break;
            }
            if is_stopped {
                return stop_child(&mut child, pid);
            }
        }
        let status = child.wait()?;
        if status.success() || ready.is_some() && status.code().is_some() {
            // It was told to end, or cannot serve: it has said why.
            return Ok(code(status));
        }
        failures = if said.ready { 0 } else { failures + 1 };
        if failures >= FAILURES_MAX {
            return Err(format!(
                "{failures} daemons in a row ended with {status} before they served"
            )
            .into());
        }
        log(&format!(
            "the daemon ended with {status}: it is started again, with {} sockets",
            said.fds.len()
        ));
        if failures > 0 {
            std::thread::sleep(PAUSE);
        }
    }
    Err("no daemon lives".into())
}

/// For the daemon's owner only.
fn bind(options: &Options) -> Result<Socket, Failure> {
    let state = options.state().ok_or("--keep needs a state file")?;
    let mut path = state.into_os_string();
    path.push(".keeper");
    let path = PathBuf::from(path);
    if let Some(folder) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let named = |error| format!("cannot listen on {}: {error}", path.display());
    if let Ok(other) = UnixDatagram::unbound()
        && other.connect(&path).is_ok()
    {
        return Err(format!("{} answers: another keeper runs", path.display()).into());
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(named(error).into());
        }
        _ => {}
    }
    let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixDatagram::bind(&path);
    rustix::process::umask(old);
    let socket = bound.map_err(named)?;
    socket.set_nonblocking(true)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(Socket { path, socket })
}

/// The daemon is this program with our own arguments, in the foreground.
fn start(program: &Path, socket: &Path, said: &Said, life: usize) -> Result<Child, Failure> {
    let mut command = Command::new(program);
    let args = std::env::args_os().skip(1);
    let ours: [&[u8]; 4] = [b"--keep", b"--fresh", b"--no-fork", b"-N"];
    command.args(args.filter(|arg| !ours.contains(&arg.as_bytes())));
    command.args(["--no-fork", "--detach"]);
    command.env(NOTIFY_SOCKET, socket);
    journal::arm_fault(&mut command, life);
    let mut room = NAMES_MAX;
    let mut fds = Vec::new();
    // The socket that we listen on first: it is the last to be left out.
    for (name, fd) in said.fds.iter().rev() {
        let Some(left) = room.checked_sub(name.len() + 1) else {
            break;
        };
        room = left;
        fds.push((name.as_str(), fd.as_fd()));
    }
    if fds.len() < said.fds.len() {
        let lost = said.fds.len() - fds.len();
        log(&format!(
            "{lost} connections are too many to be handed over and are lost"
        ));
    }
    os::hand_over(&mut command, &fds)?;
    let child = command.spawn();
    Ok(child.map_err(|error| format!("cannot start {}: {error}", program.display()))?)
}

fn stop_child(child: &mut Child, pid: Pid) -> Result<ExitCode, Failure> {
    // It may have ended by itself at the same time.
    let _ = kill_process(pid, Signal::TERM);
    Ok(code(child.wait()?))
}

fn code(status: ExitStatus) -> ExitCode {
    match status.code() {
        Some(code) => ExitCode::from(code as u8),
        None => ExitCode::from(128 + status.signal().unwrap_or(0) as u8),
    }
}

impl Said {
    /// Takes all that was said.
    fn listen(&mut self, socket: &UnixDatagram) {
        loop {
            let mut text = [0; MESSAGE_MAX];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let received = recvmsg(
                socket,
                &mut [IoSliceMut::new(&mut text)],
                &mut control,
                flags,
            );
            let len = match received {
                Ok(message) => message.bytes,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return,
            };
            let mut fds = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(more) = message {
                    fds.extend(more);
                }
            }
            self.take(&String::from_utf8_lossy(&text[..len]), fds);
        }
    }

    fn take(&mut self, message: &str, fds: Vec<OwnedFd>) {
        let value = |key: &str| {
            let mut lines = message.lines();
            lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        };
        self.ready |= value("READY") == Some("1");
        let Some(name) = value("FDNAME") else { return };
        if value("FDSTOREREMOVE") == Some("1") {
            self.fds.remove(name);
        } else if value("FDSTORE") == Some("1")
            && let Some(fd) = fds.into_iter().next()
        {
            self.fds.insert(name.to_owned(), fd);
        }
    }
}
