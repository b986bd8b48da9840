//! The new daemon's side: from a stream to a daemon that goes on.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use xen_sys::{DomId, Port};
use xs_stream::{Connection, Peer, Reader, Record};

use super::extra::{self, Extra, Kept};
use super::{foreign, set_blocking};
use crate::core::limits::Limits;
use crate::core::state::State;
use crate::core::{ConnId, Core, Host};
use crate::daemon::Daemon;
use crate::daemon::io::Transport;
use crate::daemon::output::Output;
use crate::daemon::ring::{Ring, RingFault};
use crate::daemon::world::StoreWorld;
use crate::journal::Journal;
use crate::journal::conns::{RingAt, What};
use crate::manager::Manager;

/// What is inherited beside the daemon itself.
#[derive(Debug)]
pub struct Inheritance<'a, D> {
    /// The daemon.
    pub daemon: D,
    /// The socket that clients connect to.
    pub listener: Option<OwnedFd>,
    /// The locked pid file.
    pub pid_file: Option<OwnedFd>,
    /// Whether the daemon before was another's, so that nobody keeps its sockets yet.
    pub is_new: bool,
    /// The daemon's store as bytes of a [`State`], if it is at hand so.
    pub snapshot: Option<&'a [u8]>,
}

/// A stream that was read, its descriptors not yet taken.
struct Told<'a> {
    listener: RawFd,
    evtchn: RawFd,
    pid_file: Option<RawFd>,
    last_conn: u64,
    is_new: bool,
    connections: Vec<(Kept, Connection<'a>)>,
    state: State,
    /// The bytes of the state, if it is told in our own.
    bytes: Option<&'a [u8]>,
}

/// Whether a stream can be gone on from.
pub fn check(stream: &[u8], limits: Limits) -> Result<(), String> {
    let told = read(stream, limits)?;
    drop(Core::import(told.state));
    Ok(())
}

/// Goes on from a stream. `limits` hold if it tells none; `inherit` takes one of the process's descriptors, `open` makes
/// the world with the inherited event channels and the ports that are bound there.
pub fn resume<'a, W: StoreWorld>(
    stream: &'a [u8],
    limits: Limits,
    inherit: impl Fn(RawFd) -> Result<OwnedFd, String>,
    open: impl FnOnce(Option<OwnedFd>, &[(Port, DomId)]) -> Result<W, String>,
) -> Result<Inheritance<'a, Daemon<W>>, String> {
    let told = read(stream, limits)?;
    let some = |fd: RawFd| (fd >= 0).then(|| inherit(fd)).transpose();
    let listener = some(told.listener)?;
    let pid_file = told.pid_file.map(&inherit).transpose()?;
    let ports: Vec<(Port, DomId)> = told
        .connections
        .iter()
        .filter_map(|(_, connection)| match connection.peer {
            Peer::Ring { dom, port, .. } if port.0 != 0 => Some((port, dom)),
            _ => None,
        })
        .collect();
    let evtchn = some(told.evtchn)?;
    if let Some(fd) = &evtchn {
        set_blocking(fd.as_fd(), false)?;
    }
    let world = open(evtchn, &ports)?;
    let now = told.state.now;
    let mut daemon = Daemon::with(Core::import(told.state), world);
    let mut snapshot = told.bytes;
    daemon.time_before = now;
    daemon.io.set_last_id(told.last_conn);
    for (kept, connection) in &told.connections {
        if let Err(why) = daemon.take_over(kept, connection, !told.is_new, &inherit) {
            daemon.io.log(&why);
            daemon.core.detach(kept.id);
            snapshot = None;
        }
    }
    if let Some(socket) = &listener {
        set_blocking(socket.as_fd(), false)?;
    }
    Ok(Inheritance {
        daemon,
        listener,
        pid_file,
        is_new: told.is_new,
        snapshot,
    })
}

impl<W: StoreWorld> Daemon<W> {
    /// Keeps the state in `journal` and the descriptors with `manager`, which has not heard of the connections yet if they
    /// are `new` to it. The store is what `snapshot` tells, if that is at hand.
    pub fn keep_from_here(
        &mut self,
        journal: Journal,
        manager: Option<Manager>,
        new: bool,
        snapshot: Option<&[u8]>,
    ) {
        self.io.journal = journal;
        self.io.manager = manager;
        if let Some(manager) = self.io.manager.as_mut().filter(|_| new) {
            for (id, conn) in self.io.conns.iter() {
                if let Transport::Socket(fd) = &conn.transport {
                    manager.keep_connection(*id, fd.as_fd());
                }
            }
        }
        let kept = self.io.keeps_sockets();
        for conn in self.io.conns.values_mut().filter(|_| kept) {
            conn.keep();
        }
        match snapshot {
            Some(bytes) => self.io.save(Some(bytes)),
            None => self.save(),
        }
        self.io.journal.settled();
        // Deaths may have been told to nobody meanwhile.
        self.look_at_domains();
    }

    /// Takes over one connection. An error says why it is cut off instead.
    fn take_over(
        &mut self,
        kept: &Kept,
        connection: &Connection<'_>,
        told: bool,
        inherit: impl Fn(RawFd) -> Result<OwnedFd, String>,
    ) -> Result<(), String> {
        let transport = match connection.peer {
            Peer::Socket(fd) => {
                let socket = inherit(fd)?;
                set_blocking(socket.as_fd(), false)?;
                Transport::Socket(socket)
            }
            Peer::Ring { dom, port, .. } => {
                if port.0 == 0 {
                    return Err(format!("domain {dom} was not served before either"));
                }
                let said = |error: xen_hal::Error| format!("cannot serve domain {dom} on: {error}");
                let mut at = match kept.what {
                    What::Ring(at) => at,
                    What::Socket => return Err(format!("domain {dom} has a socket")),
                };
                let memory = if dom == DomId::DOM0 {
                    let own = self.io.world.own_ring().map_err(said)?;
                    let (memory, remote) = own.ok_or("this machine's kernel has no ring")?;
                    at.remote = remote;
                    memory
                } else {
                    self.io.world.map_ring(dom).map_err(said)?
                };
                if !told {
                    at.features = self.core.ring_features(dom);
                    if dom != DomId::DOM0 {
                        // Without it, whoever goes on after a death cannot serve the domain; we can.
                        at.remote = self.io.world.peer_port(port, dom).unwrap_or(Port(0));
                    }
                }
                Transport::Ring(Ring::go_on(memory, &at, port, told))
            }
        };
        let id = kept.id;
        self.io.add_as(id, transport);
        if let Some(conn) = self.io.conns.get_mut(&id) {
            conn.input = connection.input.to_vec();
            conn.output = Output::import(connection.output, connection.partial);
            conn.faults = kept.faults;
            if let What::Ring(at) = kept.what {
                conn.failed = RingFault::from_code(at.fault);
            }
        }
        self.io.wake(id);
        Ok(())
    }
}

fn read(stream: &[u8], limits: Limits) -> Result<Told<'_>, String> {
    let said = |error: xs_stream::Error| error.to_string();
    let mut reader = Reader::new(stream).map_err(said)?;
    let mut extra = None;
    let mut foreign = foreign::Reader::new(limits);
    let (mut listener, mut evtchn) = (-1, -1);
    let mut connections: Vec<Connection<'_>> = Vec::new();
    let mut numbers: HashMap<u32, ConnId> = HashMap::new();
    while let Some(record) = reader.next_record().map_err(said)? {
        match record {
            Record::Global {
                socket,
                evtchn: device,
            } => (listener, evtchn) = (socket, device),
            Record::Connection(connection) => {
                let id = ConnId(connections.len() as u64 + 1);
                if numbers.insert(connection.id, id).is_some() {
                    return Err(format!("connection {} is told twice", connection.id));
                }
                let (dom, target) = match connection.peer {
                    Peer::Ring { dom, target, .. } => (dom, target),
                    Peer::Socket(_) => (DomId::DOM0, None),
                };
                foreign.connection(id, dom, target);
                connections.push(connection);
            }
            Record::Watch(watch) => {
                let conn = numbers.get(&watch.conn).ok_or("a watch is nobody's")?;
                foreign.watch(*conn, &watch)?;
            }
            Record::Node(node) if node.conn == 0 => foreign.node(&node)?,
            Record::GlobalQuota(quotas) => foreign.global_quota(&quotas),
            Record::Domain(data) => foreign.domain(&data),
            Record::Unknown {
                kind: extra::KIND,
                body,
            } => extra = Some(Extra::decode(body)?),
            // As C does, which has never written any.
            Record::Transaction { .. } | Record::Node(_) | Record::Unknown { .. } | Record::End => {
            }
        }
    }
    let Some((extra, bytes)) = extra else {
        let kept = |connection: &Connection<'_>| Kept {
            id: numbers[&connection.id],
            what: match connection.peer {
                Peer::Socket(_) => What::Socket,
                Peer::Ring { dom, .. } => What::Ring(RingAt {
                    kernel: dom == DomId::DOM0,
                    dom,
                    // Not told, but the world may know it.
                    remote: Port(0),
                    features: 0,
                    taken: 0,
                    given: 0,
                    fault: 0,
                }),
            },
            faults: 0,
        };
        return Ok(Told {
            listener,
            evtchn,
            pid_file: None,
            last_conn: connections.len() as u64,
            is_new: true,
            connections: connections.into_iter().map(|c| (kept(&c), c)).collect(),
            state: foreign.finish(),
            bytes: None,
        });
    };
    let told = connections.into_iter().map(|connection| {
        let kept = extra.conns.get(&connection.id).copied();
        let kept = kept.ok_or(format!("connection {} has no number", connection.id))?;
        Ok((kept, connection))
    });
    Ok(Told {
        listener,
        evtchn,
        pid_file: extra.pid_file,
        last_conn: extra.last_conn,
        is_new: false,
        connections: told.collect::<Result<_, String>>()?,
        state: extra.state,
        bytes: Some(bytes),
    })
}
