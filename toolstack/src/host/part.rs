//! The parts of a host: what each is called, whether it runs, how it is started.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use xs_client::Connection;

use super::Wanted;
use super::process::{self, Program};
use crate::error::{Error, Kind, Result};
use crate::store::text;
use crate::{backends, consoled, paths, supervise};

/// A part, in the order of starting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The store daemon.
    Xenstored,
    /// The console daemon.
    Console,
    /// The block back end.
    Blkback,
    /// The network back end.
    Netback,
    /// The supervisor.
    Supervisor,
}

/// How a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Ours runs and is well.
    Running {
        /// Its process number.
        pid: u32,
    },
    /// Somebody else's does the work.
    Foreign {
        /// Who.
        what: String,
    },
    /// Nobody does.
    Stopped {
        /// What was seen.
        why: String,
    },
}

impl Part {
    /// All, in the order of starting.
    pub const ALL: [Part; 5] = [
        Part::Xenstored,
        Part::Console,
        Part::Blkback,
        Part::Netback,
        Part::Supervisor,
    ];

    /// Its name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Xenstored => "xenstored",
            Part::Console => "console",
            Part::Blkback => "blkback",
            Part::Netback => "netback",
            Part::Supervisor => "supervisor",
        }
    }

    /// The program that it is.
    const fn program(self) -> &'static str {
        match self {
            Part::Xenstored => "xenstored",
            Part::Blkback => "blkback",
            Part::Netback => "netback",
            Part::Console | Part::Supervisor => "xlrs",
        }
    }

    /// The part that is meant by `--stock`; `store` is short for the first.
    pub fn named(name: &str) -> Option<Part> {
        let name = if name == "store" { "xenstored" } else { name };
        Part::ALL.into_iter().find(|part| part.name() == name)
    }

    fn pid_file(self) -> PathBuf {
        paths::at(paths::RUN).join(format!("{}.pid", self.name()))
    }

    fn log_file(self) -> PathBuf {
        paths::at(paths::LOGS).join(format!("{}.log", self.name()))
    }

    /// The node by which a daemon of ours announces itself.
    fn node(self) -> Option<&'static str> {
        match self {
            Part::Xenstored => None,
            Part::Console => Some(consoled::NODE),
            Part::Blkback => Some("/tool/xlrs/blkback"),
            Part::Netback => Some("/tool/xlrs/netback"),
            Part::Supervisor => Some(supervise::NODE),
        }
    }

    /// How it is now.
    pub fn state(self) -> State {
        if let Some(pid) = process::running(&self.pid_file(), self.program()) {
            return match self.ill(pid) {
                None => State::Running { pid },
                Some(why) => State::Stopped { why },
            };
        }
        if let Some(what) = self.foreign() {
            return State::Foreign { what };
        }
        State::Stopped {
            why: "no process".into(),
        }
    }

    /// What is wrong with a process of ours that runs, if anything.
    fn ill(self, pid: u32) -> Option<String> {
        let Ok(store) = Connection::open(xs_client::SOCKET.as_ref()) else {
            return Some(match self {
                Part::Xenstored => {
                    format!("process {pid} does not answer on {}", xs_client::SOCKET)
                }
                _ => format!("process {pid} has no store daemon to talk to"),
            });
        };
        let node = self.node()?;
        match text(&store, None, node) {
            Ok(Some(value)) if value == pid.to_string() => None,
            Ok(_) => Some(format!("process {pid} has not announced itself in {node}")),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Who else does the work.
    fn foreign(self) -> Option<String> {
        match self {
            Part::Xenstored => {
                let answers = Connection::open(xs_client::SOCKET.as_ref()).is_ok();
                answers.then(|| "another store daemon".into())
            }
            Part::Console => {
                process::find("xenconsoled").map(|pid| format!("xenconsoled, process {pid}"))
            }
            Part::Blkback | Part::Netback => {
                let class = match self {
                    Part::Blkback => backends::Class::Block,
                    _ => backends::Class::Net,
                };
                let loaded = Path::new("/sys/module").join(class.module()).exists();
                loaded.then(|| format!("the kernel's {}", class.module().replace('_', "-")))
            }
            Part::Supervisor => None,
        }
    }

    /// What to do if somebody else does the work that ours shall do.
    pub fn foreign_hint(self) -> String {
        let stop = match self {
            Part::Blkback => "modprobe -r xen-blkback",
            Part::Netback => "modprobe -r xen-netback",
            Part::Xenstored => "stop that daemon and reboot",
            _ => "stop that daemon",
        };
        format!(
            "leave it to that one with --stock {}, or: {stop}",
            self.name()
        )
    }

    /// What to do if it does not run.
    pub fn remedy(self) -> String {
        format!("xlrs host start (its log is {})", self.log_file().display())
    }

    /// Starts it and waits until it is ready; returns its process number.
    pub(super) fn start(self, wanted: &Wanted, timeout: Duration) -> Result<u32> {
        let name = self.program();
        let first = match self {
            Part::Xenstored | Part::Blkback | Part::Netback => None,
            Part::Console => Some("serve-console"),
            Part::Supervisor => Some("supervise"),
        };
        let (pid_file, log_file) = (self.pid_file(), self.log_file());
        let mut program = Program::find(name, wanted.programs.as_deref())?;
        if let Some(first) = first {
            program.arg(first);
        }
        program.arg(match self {
            // Somebody has to start it again and hold its clients' sockets meanwhile.
            Part::Xenstored => "--keep",
            _ => "--daemon",
        });
        program.arg("--pid-file").arg(&pid_file);
        program.arg("--log-file").arg(&log_file);
        if self == Part::Blkback {
            for folder in &wanted.backing {
                program.arg("--backing").arg(folder);
            }
        }
        let help = format!("see {}", log_file.display());
        program.run(timeout).map_err(|e| e.hint(help.clone()))?;
        match self.state() {
            State::Running { pid } => Ok(pid),
            State::Stopped { why } | State::Foreign { what: why } => {
                Err(Error::new("start", self.name(), why).hint(help))
            }
        }
    }

    /// Waits until the stock part answers, as far as that can be seen.
    pub(super) fn await_stock(self, timeout: Duration) -> Result<()> {
        if self != Part::Xenstored {
            return Ok(());
        }
        let deadline = Instant::now() + timeout;
        loop {
            match Connection::open(xs_client::SOCKET.as_ref()) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline => {
                    return Err(Error::new("wait for the stock", self.name(), error)
                        .kind(Kind::TimedOut)
                        .hint("start it first, or leave --stock xenstored out"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_parts() {
        for part in Part::ALL {
            assert_eq!(Part::named(part.name()), Some(part));
        }
        assert_eq!(Part::named("store"), Some(Part::Xenstored));
        assert_eq!(Part::named("qemu"), None);
    }
}
