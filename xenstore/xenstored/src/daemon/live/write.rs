//! What is handed over: the stream, and the descriptors that stand in it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use xen_sys::{DomId, Port};
use xs_stream::{Connection, Peer, Writer};
use xs_wire::{Header, Op};

use super::extra::{self, Extra, Kept};
use super::{Session, Start, foreign};
use crate::core::state::State;
use crate::core::{ConnId, Host};
use crate::daemon::Daemon;
use crate::daemon::io::Transport;
use crate::daemon::world::StoreWorld;

/// Rounds of taking events before a handover, so that none is lost which has been taken from the kernel.
const ROUNDS: usize = 64;

/// Who goes on from a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A daemon of ours.
    Ours,
    /// A C xenstored, which knows streams of this version.
    Other(u32),
}

/// A live update that is to be done now.
#[derive(Debug)]
pub struct Handover {
    /// The new program.
    pub file: PathBuf,
    /// Its arguments, if not this program's.
    pub arguments: Option<Vec<OsString>>,
    /// Who reads the stream.
    pub reader: Reader,
    conn: ConnId,
    start: Start,
}

impl Handover {
    pub(super) fn new(session: &Session, start: Start) -> Handover {
        let arguments = session.arguments.as_ref().map(|words| {
            let words = words.iter().cloned();
            words.map(OsString::from_vec).collect()
        });
        Handover {
            file: session.file.clone(),
            arguments,
            reader: match session.ours {
                true => Reader::Ours,
                // C of 4.17 reads nothing but this; newer ones read it too.
                false => Reader::Other(start.version.unwrap_or(1)),
            },
            conn: session.conn,
            start,
        }
    }
}

/// The daemon's own descriptors that are inherited beside the connections'.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// The socket that clients connect to.
    pub listener: BorrowedFd<'a>,
    /// The locked pid file.
    pub pid_file: Option<BorrowedFd<'a>>,
}

impl<W: StoreWorld> Daemon<W> {
    /// The stream of a handover. No request is to be taken up after this, unless it fails.
    pub fn hand_over(&mut self, handover: &Handover, own: Own<'_>) -> Result<Vec<u8>, String> {
        for _ in 0..ROUNDS {
            self.world_ready = true;
            if !self.take_events().map_err(|error| error.to_string())? {
                break;
            }
        }
        self.io.world.hand_over();
        self.stream(
            handover.reader,
            Some(own),
            Some((handover.conn, handover.start.header)),
        )
    }

    /// The handover came to nothing: its client is told why, and everything goes on.
    pub fn take_back(&mut self, handover: &Handover, why: &str) {
        if let Err(error) = self.io.world.take_back() {
            self.io
                .log(&format!("deaths of domains are not told any more: {error}"));
        }
        self.refuse(&handover.start, why);
    }

    /// Lets the new program inherit what the stream names, or not.
    pub fn bequeath(
        &mut self,
        own: Own<'_>,
        reader: Reader,
        inherited: bool,
    ) -> Result<(), String> {
        if reader != Reader::Ours {
            self.let_keep(own, !inherited);
        }
        let sockets = self.io.conns.values().filter_map(|conn| {
            Some(match &conn.transport {
                Transport::Socket(fd) => fd.as_fd(),
                Transport::Ring(_) => return None,
            })
        });
        // Another's daemon locks its pid file itself, in its own way.
        let pid_file = own.pid_file.filter(|_| reader == Reader::Ours);
        let all = sockets.chain([own.listener]).chain(pid_file);
        for fd in all.chain(self.io.world.event_fd()) {
            if reader != Reader::Ours {
                // C takes "nothing to read now" in the middle of a message for the end of a connection.
                super::set_blocking(fd, inherited)?;
            }
            let set = |flags: FdFlags| match inherited {
                true => flags - FdFlags::CLOEXEC,
                false => flags | FdFlags::CLOEXEC,
            };
            let done = fcntl_getfd(fd).and_then(|flags| fcntl_setfd(fd, set(flags)));
            done.map_err(|error| {
                format!("cannot hand over descriptor {}: {error}", fd.as_raw_fd())
            })?;
        }
        Ok(())
    }

    /// Lets the service manager keep our sockets, or not any more: another's daemon does not know of that, and would
    /// never see a client's connection end.
    fn let_keep(&mut self, own: Own<'_>, kept: bool) {
        let Some(manager) = &mut self.io.manager else {
            return;
        };
        match kept {
            true => manager.keep_listener(own.listener),
            false => manager.forget_listener(),
        }
        for (id, conn) in self.io.conns.iter() {
            match &conn.transport {
                Transport::Socket(fd) if kept => manager.keep_connection(*id, fd.as_fd()),
                Transport::Socket(_) => manager.forget_connection(*id),
                Transport::Ring(_) => {}
            }
        }
    }

    /// The state as a stream. `answered` is a request whose reply "OK" is to be among what is to be sent.
    pub(super) fn stream(
        &self,
        reader: Reader,
        own: Option<Own<'_>>,
        answered: Option<(ConnId, Header)>,
    ) -> Result<Vec<u8>, String> {
        let mut state = self.core.export();
        state.now = self.time_before + self.started.elapsed();
        let mut to = Writer::new(match reader {
            Reader::Ours => xs_stream::NEWEST,
            Reader::Other(version) => version,
        });
        let raw = |fd: Option<BorrowedFd<'_>>| fd.map_or(-1, |fd| fd.as_raw_fd());
        to.global(
            raw(own.map(|own| own.listener)),
            raw(self.io.world.event_fd()),
        );
        let waiting = waiting_starts(&state, reader);
        let mut kept = HashMap::new();
        // Their order is that of their numbers.
        for (number, connection) in (1u32..).zip(&state.connections) {
            let Some(conn) = self.io.conns.get(&connection.id) else {
                continue;
            };
            let peer = match &conn.transport {
                Transport::Socket(fd) => Peer::Socket(fd.as_raw_fd()),
                Transport::Ring(ring) => Peer::Ring {
                    dom: ring.dom,
                    target: connection.actor.target.map(|target| target.dom),
                    // Without a port, another's daemon does not serve it, which is what is to be.
                    port: match (reader, conn.failed) {
                        (Reader::Other(_), Some(_)) => Port(0),
                        _ => ring.port,
                    },
                },
            };
            let mut input = waiting.get(&connection.id).cloned().unwrap_or_default();
            input.extend_from_slice(&conn.input);
            let (mut output, partial) = conn.output.export();
            if let Some((_, header)) = answered.filter(|(id, _)| *id == connection.id) {
                let body = b"OK\0";
                let reply = Header {
                    op: Op::Control.code(),
                    len: body.len() as u32,
                    ..header
                };
                output.extend_from_slice(&reply.encode());
                output.extend_from_slice(body);
            }
            if input.len() > usize::from(u16::MAX) {
                let len = input.len();
                return Err(format!(
                    "{len} bytes of requests wait, more than can be told"
                ));
            }
            to.connection(&Connection {
                id: number,
                peer,
                input: &input,
                output: &output,
                partial,
                unique_id: None,
            });
            if reader != Reader::Ours {
                foreign::write_watches(number, connection, &mut to);
            }
            let known = Kept {
                id: connection.id,
                what: conn.what(),
                faults: conn.faults,
            };
            kept.insert(number, known);
        }
        if reader == Reader::Ours {
            let extra = Extra {
                last_conn: self.io.last_id(),
                pid_file: own.and_then(|own| own.pid_file).map(|fd| fd.as_raw_fd()),
                conns: kept,
                state,
            };
            to.unknown(extra::KIND, &extra.encode());
        } else {
            let cut_off = state
                .domains
                .iter()
                .filter(|d| d.introduced && d.conn.is_none());
            let next = state.connections.len() as u32 + 1;
            for (number, domain) in (next..).zip(cut_off) {
                to.connection(&cut_off_ring(number, domain.who.dom));
            }
            foreign::write(&state, &mut to);
        }
        Ok(to.finish())
    }
}

/// A domain that is introduced and not served.
fn cut_off_ring(id: u32, dom: DomId) -> Connection<'static> {
    Connection {
        id,
        peer: Peer::Ring {
            dom,
            target: None,
            port: Port(0),
        },
        input: b"",
        output: b"",
        partial: 0,
        unique_id: None,
    }
}

/// The TRANSACTION_STARTs that wait for their turn, which another's daemon is to take for requests not taken up yet.
fn waiting_starts(state: &State, reader: Reader) -> HashMap<ConnId, Vec<u8>> {
    if reader == Reader::Ours {
        return HashMap::new();
    }
    let waiting = state.turns.iter().flat_map(|turn| &turn.waiting);
    let bytes = |header: &Header| {
        let whole = Header { len: 1, ..*header };
        [&whole.encode()[..], b"\0"].concat()
    };
    waiting
        .map(|(conn, header)| (*conn, bytes(header)))
        .collect()
}
