//! What a daemon needs to go on where a killed one stopped: everything it is, in a file in memory, at every instant.
//!
//! Two logs. That of the store begins with a snapshot ([`State`](crate::core::state::State)); then come the requests that were carried out since,
//! which the core, being a function of what it is given, carries out again with the same outcome ([`answers`]). That of
//! the connections tells how far each one's input was carried out and what of its output is still to be sent ([`conns`]).
//! A request counts, with its replies and events, from one store of one word on ([`file`]); nothing of it is sent before.
//!
//! Invariant: bytes leave the daemon only after the request that they come from counts, and input is taken from a ring only
//! after what was done with it counts; what a socket call did is in the file, or in the socket, before the process can be
//! killed.

pub mod answers;
pub mod conns;
pub mod count;
mod fault;
mod file;
mod map;
mod record;
mod recover;

#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use xs_wire::{Header, Op};

use crate::core::{ConnId, Core, Event};
use crate::os::Failure;
use answers::Answers;
use conns::Saved;
pub use fault::{arm as arm_fault, point as fault_point};
pub use file::BUFFER as RECEIVE_MAX;
use file::{Log, StateFile};
use record::Kind;
pub use recover::{Recovered, RecoveredConn};

/// Long texts are written in pieces of so many bytes.
const PIECE: usize = 1 << 20;

/// Writes what happens, if a file was given.
#[derive(Debug, Default)]
pub struct Journal {
    file: Option<Box<StateFile>>,
    /// What the world answered in the request under way.
    pub answers: Answers,
}

impl Journal {
    /// Keeps nothing.
    pub fn none() -> Journal {
        Journal::default()
    }

    /// Keeps the state in this file, and finds what an earlier daemon kept there. What is found but of no use is moved
    /// aside, which is told to `say`.
    ///
    /// # Errors
    /// The file cannot be used, or another daemon does.
    pub fn open(
        path: &Path,
        say: &mut dyn FnMut(String),
    ) -> Result<(Journal, Option<Recovered>), Failure> {
        let (mut file, content) = StateFile::open(path, true, say)?;
        let recovered = match content.map(recover::recover) {
            None => None,
            Some(Ok(recovered)) => {
                file.set_counts(recovered.received, recovered.sent);
                Some(recovered)
            }
            Some(Err(why)) => {
                say(format!("{}: {why}", path.display()));
                drop(file);
                file::set_aside(path, say)?;
                (file, _) = StateFile::open(path, true, say)?;
                None
            }
        };
        let journal = Journal {
            file: Some(Box::new(file)),
            answers: Answers::default(),
        };
        Ok((journal, recovered))
    }

    /// Keeps the state in this file from now on, where another daemon in this process has kept it until now.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn take_over(path: &Path, say: &mut dyn FnMut(String)) -> Result<Journal, Failure> {
        // What it holds counts until all was saved anew.
        let (file, _) = StateFile::open(path, false, say)?;
        Ok(Journal {
            file: Some(Box::new(file)),
            answers: Answers::default(),
        })
    }

    /// Whether anything is kept.
    pub fn is_kept(&self) -> bool {
        self.file.is_some()
    }

    /// Stops keeping, if the file cannot be written any more; why.
    pub fn take_failure(&mut self) -> Option<String> {
        let file = self.file.as_ref()?;
        let error = file.failed()?;
        let path = file.path().display();
        let why = format!(
            "cannot write {path}: {error}; the state is not kept any more, restart the daemon when there is room"
        );
        self.file = None;
        Some(why)
    }

    /// Whether the store's log is so long that it should be [begun anew](Self::save_core).
    pub fn wants_core(&self) -> bool {
        let file = self.file.as_ref();
        file.is_some_and(|file| file.is_long(Log::Core))
    }

    /// Whether the connections' log is so long that it should be [begun anew](Self::save_conns).
    pub fn wants_conns(&self) -> bool {
        let file = self.file.as_ref();
        file.is_some_and(|file| file.is_long(Log::Io))
    }

    /// Begins the store's log anew.
    pub fn save_core(&mut self, core: &Core) {
        if self.file.is_some() {
            self.write_core(&core.export().encode());
            self.saved(&[Log::Core]);
        }
    }

    /// Begins the connections' log anew; `last_id` is the last number given to one.
    pub fn save_conns<'a>(&mut self, last_id: u64, all: impl Iterator<Item = (ConnId, Saved<'a>)>) {
        self.write_conns(last_id, all);
        self.saved(&[Log::Io]);
    }

    /// Begins both logs anew, at once; `state` is the store's.
    pub fn save<'a>(
        &mut self,
        state: &[u8],
        last_id: u64,
        all: impl Iterator<Item = (ConnId, Saved<'a>)>,
    ) {
        self.write_core(state);
        self.write_conns(last_id, all);
        self.saved(&[Log::Core, Log::Io]);
    }

    fn write_core(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        file.restart(Log::Core);
        for piece in bytes.chunks(PIECE) {
            file.append(Log::Core, Kind::Snapshot, 0, ConnId(0), [piece, &[]]);
        }
    }

    fn write_conns<'a>(&mut self, last_id: u64, all: impl Iterator<Item = (ConnId, Saved<'a>)>) {
        let Some(file) = &mut self.file else { return };
        file.restart(Log::Io);
        let (received, sent) = file.counts();
        let counts = [received.to_le_bytes(), sent.to_le_bytes()].concat();
        file.append(Log::Io, Kind::Counts, 0, ConnId(last_id), [&counts, &[]]);
        for (conn, saved) in all {
            saved.write(&mut |kind, aux, payload| file.append(Log::Io, kind, aux, conn, payload));
        }
    }

    fn saved(&mut self, logs: &[Log]) {
        let Some(file) = &mut self.file else { return };
        file.commit();
        for log in logs {
            file.restarted(*log);
        }
    }

    /// All was taken up: the file is of use from now on.
    pub fn settled(&mut self) {
        if let Some(file) = &mut self.file {
            file.settled();
        }
    }

    #[inline]
    fn io(&mut self, kind: Kind, aux: usize, conn: ConnId, payload: [&[u8]; 2]) {
        if let Some(file) = &mut self.file {
            if kind != Kind::Output {
                file.tell_fresh();
            }
            file.append(Log::Io, kind, aux as u32, conn, payload);
        }
    }

    /// A new connection; `count` is its socket's.
    pub fn opened(&mut self, conn: ConnId, what: conns::What, count: u32) {
        self.io(Kind::Open, count as usize, conn, [&what.encode(), &[]]);
    }

    /// A ring begins anew.
    pub fn rebound(&mut self, conn: ConnId, what: conns::What) {
        self.io(Kind::Rebound, 0, conn, [&what.encode(), &[]]);
    }

    /// A connection is gone.
    pub fn closed(&mut self, conn: ConnId) {
        self.io(Kind::Close, 0, conn, [&[], &[]]);
    }

    /// Bytes of the input were carried out.
    #[inline]
    pub fn done(&mut self, conn: ConnId, len: usize) {
        if let Some(file) = &mut self.file {
            file.done(conn, len);
        }
    }

    /// Bytes of the input that follow are kept in memory.
    pub fn more(&mut self, conn: ConnId, bytes: &[u8]) {
        self.io(Kind::More, 0, conn, [bytes, &[]]);
    }

    /// Bytes are to be sent.
    #[inline]
    pub fn output(&mut self, conn: ConnId, bytes: &[u8]) {
        self.io(Kind::Output, 0, conn, [bytes, &[]]);
    }

    /// An event is to be sent later.
    pub fn waiting(&mut self, conn: ConnId, event: &Event) {
        conns::write_event(event, &mut |kind, aux, payload| {
            self.io(kind, aux as usize, conn, payload);
        });
    }

    /// Events have become bytes to send.
    pub fn moved(&mut self, conn: ConnId, events: usize) {
        self.io(Kind::Moved, events, conn, [&[], &[]]);
    }

    /// Events that waited were forgotten.
    pub fn dropped(&mut self, conn: ConnId, events: usize) {
        self.io(Kind::Dropped, events, conn, [&[], &[]]);
    }

    /// Bytes were put on a ring.
    pub fn given(&mut self, conn: ConnId, len: usize) {
        self.io(Kind::Given, len, conn, [&[], &[]]);
    }

    /// A request is about to be carried out.
    #[inline]
    pub fn begin(&mut self, conn: ConnId) {
        self.answers.clear();
        if let Some(file) = &mut self.file {
            file.current(conn);
        }
    }

    /// A request was carried out.
    #[inline]
    pub fn request(&mut self, conn: ConnId, header: &Header, body: &[u8]) {
        if self.file.is_some() && !only_looks(header) && !is_of_this_process(header, body) {
            self.core(Kind::Request, conn, [&header.encode(), body]);
        }
    }

    /// A client of dom0's was attached to the core.
    pub fn attached(&mut self, conn: ConnId) {
        self.answers.clear();
        self.core(Kind::Attach, conn, [&[], &[]]);
    }

    /// A connection was detached from the core.
    pub fn detached(&mut self, conn: ConnId) {
        self.answers.clear();
        self.core(Kind::Detach, conn, [&[], &[]]);
    }

    /// A connection began afresh in the core.
    pub fn restarted(&mut self, conn: ConnId) {
        self.answers.clear();
        self.core(Kind::Restart, conn, [&[], &[]]);
    }

    /// The core has looked at the states of domains.
    pub fn domains(&mut self) {
        self.core(Kind::Domains, ConnId(0), [&[], &[]]);
    }

    /// The core was told the time.
    pub fn time(&mut self, now: Duration) {
        let nanos = ConnId(now.as_nanos() as u64);
        self.core(Kind::Time, nanos, [&[], &[]]);
    }

    fn core(&mut self, kind: Kind, conn: ConnId, payload: [&[u8]; 2]) {
        let Some(file) = &mut self.file else { return };
        if !self.answers.bytes().is_empty() {
            let answers = [self.answers.bytes(), &[]];
            file.append(Log::Core, Kind::Answers, 0, ConnId(0), answers);
        }
        file.append(Log::Core, kind, self.answers.outputs, conn, payload);
    }

    /// Lets all that was told count, at once.
    #[inline]
    pub fn commit(&mut self) {
        if let Some(file) = &mut self.file {
            file.commit();
        }
    }

    /// Receives from a socket, whose count stands at `count`; `None` if nothing is kept, and the caller is to do it.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        conn: ConnId,
        count: &mut u32,
        to: &mut Vec<u8>,
    ) -> Option<Result<usize, Errno>> {
        let file = self.file.as_mut()?;
        match count::renew(socket, *count) {
            Ok(None) => {}
            Ok(Some(anew)) => {
                *count = anew;
                fault_point();
                file.append(Log::Io, Kind::Count, anew, conn, [&[], &[]]);
                file.commit();
            }
            Err(error) => return Some(Err(error)),
        }
        let result = file.receive(socket, conn, to);
        *count -= *result.as_ref().unwrap_or(&0) as u32;
        Some(result)
    }

    /// Sends on a socket; `None` if nothing is kept, and the caller is to do it.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        conn: ConnId,
        bytes: &[u8],
    ) -> Option<Result<usize, Errno>> {
        let file = self.file.as_mut()?;
        Some(file.send(socket, conn, bytes))
    }
}

/// Forgets what an earlier daemon has kept in a file.
///
/// # Errors
/// It cannot be removed.
pub fn forget(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", path.display()).into())
        }
        _ => Ok(()),
    }
}

/// Whether a request is about what ends with this process: the steps of a live update.
fn is_of_this_process(header: &Header, body: &[u8]) -> bool {
    header.op == Op::Control.code() && body.starts_with(b"live-update\0")
}

/// Whether a request leaves the store as it is, whatever the answer. In a transaction, what was seen counts at its end.
fn only_looks(header: &Header) -> bool {
    header.tx_id == 0
        && matches!(
            Op::from_code(header.op),
            Some(Op::Read | Op::Directory | Op::DirectoryPart | Op::GetPerms | Op::GetDomainPath)
        )
}
