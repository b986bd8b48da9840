//! Starts and ends daemons, with a bound on every wait.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Error, Kind, Result};
use crate::os;

/// A program of ours, with arguments.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    command: Command,
}

impl Program {
    /// Finds a program: in `folder`, beside this program, or in PATH.
    ///
    /// # Errors
    /// It is nowhere.
    pub fn find(name: &str, folder: Option<&Path>) -> Result<Program> {
        let here = std::env::current_exe().ok();
        let beside = here.as_deref().and_then(Path::parent);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = Vec::new();
        match folder {
            Some(folder) => folders.push(folder.into()),
            None => {
                folders.extend(beside.map(PathBuf::from));
                folders.extend(std::env::split_paths(&path));
            }
        }
        let found = folders.iter().map(|f| f.join(name)).find(|p| p.is_file());
        let Some(path) = found else {
            let places: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
            return Err(Error::new(
                "find the program",
                name,
                format!("it is not in {}", places.join(", ")),
            )
            .hint("install it beside xlrs, or name its folder with --programs"));
        };
        let command = Command::new(&path);
        Ok(Program { path, command })
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.command.arg(arg);
        self
    }

    /// Runs it; a daemon's first process ends when the daemon is ready.
    ///
    /// # Errors
    /// It cannot be run, fails, or takes too long and is then killed.
    pub fn run(mut self, timeout: Duration) -> Result<()> {
        let what = self.path.display().to_string();
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Error::system("run", &what, &e))?;
        let ended = wait(child.id(), timeout).map_err(|e| Error::system("wait for", &what, &e))?;
        if !ended {
            // It is our child, so the number is still its own.
            let _ = child.kill();
            let _ = child.wait();
            let cause = format!("it was not ready within {} s", timeout.as_secs());
            return Err(Error::new("start", &what, cause).kind(Kind::TimedOut));
        }
        let status = child
            .wait()
            .map_err(|e| Error::system("wait for", &what, &e))?;
        if status.success() {
            return Ok(());
        }
        let said = child.stderr.take().map(last_words).unwrap_or_default();
        let cause = match said.is_empty() {
            true => format!("it ended with {status}"),
            false => format!("it ended with {status} and said: {said}"),
        };
        Err(Error::new("start", &what, cause))
    }
}

/// The end of what a process wrote; a daemon that it left behind may still hold the pipe open.
fn last_words(mut pipe: impl Read + std::os::fd::AsFd) -> String {
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while text.len() < 64 << 10 {
        let mut fds = [PollFd::new(&pipe, PollFlags::IN)];
        let no_time = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if !matches!(poll(&mut fds, Some(&no_time)), Ok(1)) {
            break;
        }
        match pipe.read(&mut piece) {
            Ok(len) if len > 0 => text.extend_from_slice(&piece[..len]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&text).trim().to_string()
}

/// The process of a pid file, if it runs `program`: the number may be another's by now.
pub fn running(pid_file: &Path, program: &str) -> Option<u32> {
    let pid: u32 = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.trim() == program).then_some(pid)
}

/// A process with this name.
pub fn find(name: &str) -> Option<u32> {
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let pid = entry.file_name().to_str().and_then(|n| n.parse().ok());
        let comm = || fs::read_to_string(entry.path().join("comm"));
        if let Some(pid) = pid
            && comm().is_ok_and(|comm| comm.trim() == name)
        {
            return Some(pid);
        }
    }
    None
}

/// Asks a process to end and waits for it.
///
/// # Errors
/// It does not.
pub fn end(name: &str, pid: u32, timeout: Duration) -> Result<()> {
    let object = format!("{name} (process {pid})");
    os::signal(pid as i32, libc::SIGTERM).map_err(|e| Error::system("stop", &object, &e))?;
    match wait(pid, timeout).map_err(|e| Error::system("wait for", &object, &e))? {
        true => Ok(()),
        false => {
            let cause = format!("it goes on {} s after SIGTERM", timeout.as_secs());
            Err(Error::new("stop", object, cause)
                .kind(Kind::TimedOut)
                .hint(format!("kill -9 {pid}")))
        }
    }
}

/// Waits until a process has ended; `false` if it goes on.
fn wait(pid: u32, timeout: Duration) -> std::io::Result<bool> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(true);
    };
    let fd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_said_is_told() {
        let sh = || Program::find("sh", None).unwrap();
        let mut good = sh();
        good.arg("-c").arg("exit 0");
        good.run(Duration::from_secs(5)).unwrap();
        let mut bad = sh();
        bad.arg("-c").arg("echo no luck >&2; exit 3");
        let error = bad.run(Duration::from_secs(5)).unwrap_err().to_string();
        assert!(error.contains("no luck") && error.contains('3'), "{error}");
        let mut slow = sh();
        slow.arg("-c").arg("exec sleep 60");
        let begun = Instant::now();
        let error = slow.run(Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind, Kind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(5));
        let error = Program::find("no-such-program", None).unwrap_err();
        assert!(error.to_string().contains("--programs"));
    }

    #[test]
    fn processes_are_found_and_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let file = std::env::temp_dir().join(format!("xlrs-pid-{}", std::process::id()));
        fs::write(&file, format!("{}\n", child.id())).unwrap();
        assert_eq!(running(&file, "sleep"), Some(child.id()));
        assert_eq!(running(&file, "xenstored"), None, "somebody else's number");
        end("sleep", child.id(), Duration::from_secs(5)).unwrap();
        child.wait().unwrap();
        assert_eq!(running(&file, "sleep"), None);
        fs::remove_file(file).unwrap();
    }
}
