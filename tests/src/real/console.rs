//! A guest's console, through the pseudo-terminal that the console daemon names in the store.

use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use scenarios::{OrStop, Outcome, Stop};

/// How much of what the guest said is shown when something is missed.
const SHOWN: usize = 3000;

/// One end of a guest's console.
pub struct Console {
    tty: OwnedFd,
    /// All that was read so far.
    text: String,
    /// How much of it was taken by [`wait_for`](Self::wait_for).
    taken: usize,
}

impl Console {
    /// Opens the terminal, raw.
    pub fn open(path: &str) -> Outcome<Console> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let tty = open(path, flags, Mode::empty()).or_fail(format!("open the console {path}"))?;
        let mut mode = tcgetattr(&tty).or_broken(format!("look at the terminal {path}"))?;
        mode.make_raw();
        tcsetattr(&tty, OptionalActions::Now, &mode).or_broken(format!("make {path} raw"))?;
        Ok(Console::of(tty))
    }

    fn of(tty: OwnedFd) -> Console {
        Console {
            tty,
            text: String::new(),
            taken: 0,
        }
    }

    /// Runs a command on a terminal of its own; what it shows is this console.
    pub fn run(words: &[&str]) -> Outcome<(Console, Child)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).or_broken("make a terminal")?;
        unlockpt(&master).or_broken("unlock the terminal")?;
        let name = ptsname(&master, Vec::new()).or_broken("name the terminal")?;
        let slave = || {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            open(&name, flags, Mode::empty()).or_broken("open the terminal")
        };
        let child = Command::new(words[0])
            .args(&words[1..])
            .stdin(slave()?)
            .stdout(slave()?)
            .stderr(slave()?)
            .spawn()
            .or_broken(format!("run {}", words.join(" ")))?;
        rustix::io::ioctl_fionbio(&master, true).or_broken("make the terminal not block")?;
        Ok((Console::of(master), child))
    }

    /// Types a line.
    pub fn send(&mut self, line: &str) -> Outcome {
        self.type_bytes(format!("{line}\n").as_bytes())
    }

    /// Types bytes as they are.
    pub fn type_bytes(&mut self, mut rest: &[u8]) -> Outcome {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !rest.is_empty() {
            match rustix::io::write(&self.tty, rest) {
                Ok(len) => rest = &rest[len..],
                Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(Stop::Failed(format!("type {rest:?}: {error}"))),
            }
        }
        Ok(())
    }

    /// Waits for a line that `wanted` takes; what came before is passed over.
    pub fn wait_line<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> Outcome<T> {
        let deadline = Instant::now() + timeout;
        loop {
            while let Some(len) = self.text[self.taken..].find('\n') {
                let line = self.text[self.taken..self.taken + len].trim_end_matches('\r');
                let found = wanted(line);
                self.taken += len + 1;
                if let Some(found) = found {
                    return Ok(found);
                }
            }
            if !self.receive(deadline)? {
                return Err(Stop::Failed(format!(
                    "{what}: not in {timeout:?}; the console:\n{}",
                    self.tail()
                )));
            }
        }
    }

    /// Waits for a line that holds `text`, and gives it.
    pub fn wait_for(&mut self, text: &str, timeout: Duration) -> Outcome<String> {
        self.wait_line(&format!("{text:?} on the console"), timeout, |line| {
            line.contains(text).then(|| line.to_owned())
        })
    }

    /// Whether `text` was seen so far, or comes within a moment.
    pub fn has_seen(&mut self, text: &str) -> Outcome<bool> {
        while self.receive(Instant::now() + Duration::from_millis(100))? {}
        Ok(self.text.contains(text))
    }

    /// The end of what the guest has said.
    pub fn tail(&self) -> &str {
        let mut from = self.text.len().saturating_sub(SHOWN);
        while !self.text.is_char_boundary(from) {
            from += 1;
        }
        &self.text[from..]
    }

    /// Reads what there is, waiting for some until the deadline; false if none came.
    fn receive(&mut self, deadline: Instant) -> Outcome<bool> {
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(&self.tty, &mut buffer[..]) {
                // The daemon has closed its end: nothing more comes.
                Ok(0) | Err(Errno::IO) => return Ok(false),
                Ok(len) => {
                    // Our guests speak ASCII; a torn character of another's is only shown.
                    self.text.push_str(&String::from_utf8_lossy(&buffer[..len]));
                    return Ok(true);
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(Stop::Broken(format!("read the console: {error}"))),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let left = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::new(&self.tty, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Stop::Broken(format!("wait for the console: {error}"))),
            }
        }
    }
}
