//! Live update: another program goes on in this process's place, and no client notices.
//!
//! `CONTROL live-update` comes in steps, as xenstore-control sends them ([`session`]): which program, which command line,
//! start. Then the state is written to a file in the stream of C xenstored ([`write`]), and this process becomes the new
//! program, which is started with `-U` and goes on from that file ([`resume`]). Descriptors are inherited: the
//! listening socket, clients, event channels. The reply to the start is among what the new daemon is to send.
//!
//! A program of ours is told everything, in a record of our own, and open transactions go on there. It is first asked
//! whether it can read the state, so that one that cannot is never become. A C xenstored is told what it has
//! words for, once no transaction is open ([`foreign`]).

mod extra;
mod foreign;
mod resume;
mod session;
mod write;

use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use xen_sys::Errno;
use xs_wire::{Header, Op};

use super::Daemon;
use super::world::StoreWorld;
use crate::core::{ConnId, Host};

pub use resume::{Inheritance, check, resume};
pub use session::Session;
pub use write::{Handover, Own, Reader};

use session::Start;

/// Stands near the beginning of every program of ours that can go on from [`extra`]'s record.
pub const MARK: &[u8] = b"xlrs xenstored live update 1";

/// How long a program may take to say whether it can read the state.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// What is to be done about a live update.
pub enum Due {
    /// Nothing yet.
    Wait,
    /// To become the new program.
    Go(Handover),
    /// To tell the client why not.
    Refuse(String),
}

/// Lets calls on a descriptor wait, or not. Ours never wait; C xenstored's wait for the rest of a message.
fn set_blocking(fd: BorrowedFd<'_>, blocking: bool) -> Result<(), String> {
    let set = |flags: OFlags| match blocking {
        true => flags - OFlags::NONBLOCK,
        false => flags | OFlags::NONBLOCK,
    };
    let done = fcntl_getfl(fd).and_then(|flags| fcntl_setfl(fd, set(flags)));
    done.map_err(|error| {
        let number = fd.as_raw_fd();
        format!("cannot set the flags of descriptor {number}: {error}")
    })
}

impl<W: StoreWorld> Daemon<W> {
    /// Whether a live update was started, so that [`live_update`](Self::live_update) is to be asked now and again.
    pub fn is_updating(&self) -> bool {
        let session = self.io.session.as_ref();
        session.is_some_and(|session| session.start.is_some())
    }

    /// Looks what is to be done about a live update that was started.
    pub fn live_update(&mut self) -> Due {
        let Some((session, start)) = self
            .io
            .session
            .as_mut()
            .and_then(|session| session.start.take().map(|start| (session, start)))
        else {
            return Due::Wait;
        };
        let (ours, file) = (session.ours, session.file.clone());
        let due = if ours {
            self.when_checked(&file, start)
        } else {
            self.when_quiet(start)
        };
        match due {
            Ok(start) => match start {
                Progress::Ready(start) => self.handover(start),
                Progress::Waits(start) => {
                    if let Some(session) = &mut self.io.session {
                        session.start = Some(start);
                    }
                    Due::Wait
                }
            },
            Err((start, why)) => {
                self.refuse(&start, &why);
                Due::Refuse(why)
            }
        }
    }

    /// The live update failed: the client is told why, and everything goes on.
    pub fn refuse(&mut self, start: &Start, why: &str) {
        self.io.log(&format!("no live update: {why}"));
        if let Some(session) = self.io.session.take() {
            let body = [why.as_bytes(), b"\0"].concat();
            self.io
                .reply(session.conn, Op::Control, &start.header, &body);
            self.io.journal.commit();
        }
        self.io.go_on();
    }

    /// A program of ours says whether it can read the state, while this one serves.
    fn when_checked(&mut self, file: &Path, mut start: Start) -> Step {
        let Some(check) = &mut start.check else {
            return match self.start_check(file) {
                Ok(child) => {
                    start.check = Some(child);
                    Ok(Progress::Waits(start))
                }
                Err(why) => Err((start, why)),
            };
        };
        match check.try_wait() {
            Ok(Some(status)) if status.success() => Ok(Progress::Ready(start)),
            Ok(Some(status)) => {
                let mut said = String::new();
                if let Some(stderr) = &mut check.stderr {
                    // What it has said is an addition to that it failed.
                    let _ = stderr.take(1000).read_to_string(&mut said);
                }
                let why = format!("the new program cannot go on: {status} {}", said.trim());
                Err((start, why))
            }
            Ok(None) if start.since.elapsed() < CHECK_LIMIT => Ok(Progress::Waits(start)),
            Ok(None) => {
                // It may have ended just now.
                let _ = check.kill();
                let _ = check.wait();
                Err((
                    start,
                    "the new program does not say whether it can go on".to_owned(),
                ))
            }
            Err(error) => Err((start, format!("cannot wait for the new program: {error}"))),
        }
    }

    fn start_check(&mut self, file: &Path) -> Result<Child, String> {
        let stream = self.stream(write::Reader::Ours, None, None)?;
        let start = || -> io::Result<Child> {
            let memory = rustix::fs::memfd_create("state", rustix::fs::MemfdFlags::CLOEXEC)?;
            let mut memory = std::fs::File::from(memory);
            memory.write_all(&stream)?;
            memory.rewind()?;
            Command::new(file)
                .arg("--check-state")
                .stdin(memory)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
        };
        start().map_err(|error| format!("cannot run {}: {error}", file.display()))
    }

    /// As C xenstored: once there is no transaction; after the time that was given, all the same if forced.
    fn when_quiet(&mut self, start: Start) -> Step {
        let open = self.core.open_transactions();
        if open == 0 {
            return Ok(Progress::Ready(start));
        }
        if start.since.elapsed() < start.timeout {
            return Ok(Progress::Waits(start));
        }
        if start.force {
            self.io
                .log(&format!("live update: {open} open transactions are lost"));
            return Ok(Progress::Ready(start));
        }
        let why = format!("{open} transactions are open, which the new program cannot take over");
        Err((start, why))
    }

    fn handover(&mut self, start: Start) -> Due {
        match &self.io.session {
            Some(session) => Due::Go(Handover::new(session, start)),
            None => Due::Wait,
        }
    }
}

type Step = Result<Progress, (Start, String)>;

enum Progress {
    Ready(Start),
    Waits(Start),
}

/// A step of `CONTROL live-update`; `None` if the reply is to come later.
pub(super) fn control(
    session: &mut Option<Session>,
    conn: ConnId,
    header: &Header,
    words: &[&[u8]],
) -> Result<Option<String>, Errno> {
    session::control(session, conn, header, words, Instant::now())
}
