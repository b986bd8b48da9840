//! A daemon that goes on where a killed one stopped.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use xen_hal::Error;
use xen_sys::DomId;

use super::io::{Io, Transport, log};
use super::ring::{Ring, RingFault};
use super::world::StoreWorld;
use super::{Daemon, End};
use crate::core::ConnId;
use crate::core::limits::Limits;
use crate::journal::conns::{RingAt, What};
use crate::journal::{Journal, Recovered, RecoveredConn, count};
use crate::manager::{Kept, Manager, hang_up};

impl<W: StoreWorld> Daemon<W> {
    /// A daemon that keeps its state in `journal` and its descriptors with `manager`; it goes on from what was `recovered`,
    /// with the connections' sockets that were `kept`.
    ///
    /// # Errors
    /// The world does not let our kernel's ring be served.
    pub fn keeping(
        world: W,
        limits: Limits,
        journal: Journal,
        recovered: Option<Recovered>,
        manager: Option<Manager>,
        kept: &mut Kept,
    ) -> Result<Daemon<W>, Error> {
        let mut daemon = Daemon::new(world, limits);
        daemon.io.journal = journal;
        daemon.io.manager = manager;
        let sockets = std::mem::take(&mut kept.connections);
        match recovered {
            None => {
                for fd in sockets.values() {
                    hang_up(fd);
                }
                for id in sockets.into_keys() {
                    daemon.io.forget(id);
                }
                daemon.save();
                daemon.io.journal.settled();
                daemon.connect_kernel()?;
            }
            Some(recovered) => daemon.go_on(recovered, sockets)?,
        }
        Ok(daemon)
    }

    /// Begins both logs anew.
    pub(super) fn save(&mut self) {
        if self.io.journal.is_kept() {
            self.io.save(Some(&self.core.export().encode()));
        }
    }

    /// Begins a log anew that has become long, and gives up if the file cannot be written.
    pub(super) fn keep_journal_short(&mut self) {
        if self.io.journal.wants_conns() {
            self.io.save(None);
        }
        if self.io.journal.wants_core() {
            self.io.journal.save_core(&self.core);
        }
        if let Some(why) = self.io.journal.take_failure() {
            log(&why);
        }
    }

    fn go_on(
        &mut self,
        recovered: Recovered,
        mut sockets: BTreeMap<ConnId, OwnedFd>,
    ) -> Result<(), Error> {
        let Recovered {
            core,
            conns,
            last_id,
            strayed,
            poison,
            ..
        } = recovered;
        if strayed > 0 {
            log(&format!(
                "{strayed} requests had another outcome than before the restart: this is another version of the daemon"
            ));
        }
        self.time_before = core.now();
        self.core = core;
        self.io.set_last_id(last_id);
        let (count, mut old) = (conns.len(), 0);
        let mut meddled = Vec::new();
        for (id, mut conn) in conns {
            let what = conn.what;
            let result = match what {
                What::Socket => match sockets.remove(&id) {
                    Some(fd) => take_received(&fd, &mut conn)
                        .map(|()| (Transport::Socket(fd), Some(0)))
                        .inspect_err(|why| log(&format!("cannot go on with a client: {why}"))),
                    None => Err("its socket was not kept".to_owned()),
                },
                What::Ring(at) => resume_ring(&mut self.io, &at, conn.output.bytes().len())
                    .map(|(ring, sent)| (Transport::Ring(ring), sent))
                    .map_err(|error| error.to_string()),
            };
            let (transport, sent) = match result {
                Ok((transport, sent)) => (transport, sent),
                Err(why) => {
                    if let What::Ring(at) = what {
                        log(&format!("cannot go on with domain {}: {why}", at.dom));
                    }
                    self.core.detach(id);
                    continue;
                }
            };
            self.io.add_as(id, transport);
            old += 1;
            if let Some(added) = self.io.conns.get_mut(&id) {
                added.input = conn.input;
                added.output = conn.output;
                if let What::Ring(at) = what {
                    added.failed = RingFault::from_code(at.fault);
                }
                match sent {
                    Some(sent) => added.output.sent(sent),
                    None => meddled.push(id),
                }
            }
        }
        // From here on this file is ours: a daemon after us goes on from here.
        self.save();
        self.io.journal.settled();
        for id in meddled {
            let why = "has changed the indices of its ring".to_owned();
            self.end(id, End::Fault(RingFault::Index, why));
        }
        if let Some(id) = poison.filter(|id| self.io.conns.contains_key(id)) {
            let why = "sent a request that ended the daemon twice".to_owned();
            self.end(id, End::Fault(RingFault::Protocol, why));
        }
        let has_kernel = |io: &Io<W>| {
            let mut all = io.conns.values();
            all.any(|conn| matches!(conn.what(), What::Ring(at) if at.kernel))
        };
        if !has_kernel(&self.io) {
            self.connect_kernel()?;
        }
        // Who has died or shut down while nobody looked.
        self.look_at_domains();
        // Events that were sent meanwhile are lost, and so may be ours: look at all, and tell all.
        let ids: Vec<ConnId> = self.io.conns.keys().copied().collect();
        for id in ids {
            self.io.wake(id);
            if let Some(Transport::Ring(ring)) = self.io.conns.get(&id).map(|c| &c.transport) {
                let port = ring.port;
                self.io.world.notify(port);
            }
        }
        let before = self.connections();
        for (id, fd) in sockets {
            if id.0 <= last_id {
                // It was ended, but whoever keeps it was not told any more.
                hang_up(&fd);
                self.io.forget(id);
            } else {
                // Accepted, and kept, but the daemon was killed before it had written that down: nothing was read from it.
                self.io.set_last_id(id.0 - 1);
                self.attach(Transport::Socket(fd));
            }
        }
        let new = self.connections() - before;
        log(&format!(
            "goes on with {old} connections of {count} and {new} new ones"
        ));
        Ok(())
    }
}

/// Takes what was received on a socket by a call that nobody could write down any more.
fn take_received(socket: &OwnedFd, conn: &mut RecoveredConn) -> Result<(), String> {
    let received = count::received(socket.as_fd(), conn.count);
    let bytes = received.and_then(|received| conn.under_way.get(..received));
    let Some(bytes) = bytes else {
        hang_up(socket);
        return Err("more was received from it than is known".to_owned());
    };
    conn.input.extend_from_slice(bytes);
    Ok(())
}

fn resume_ring<W: StoreWorld>(
    io: &mut Io<W>,
    at: &RingAt,
    kept: usize,
) -> Result<(Ring, Option<usize>), Error> {
    let own = match at.kernel {
        true => io.world.own_ring()?,
        false => None,
    };
    let (memory, at) = match own {
        Some((memory, remote)) => (memory, RingAt { remote, ..*at }),
        None => (io.world.map_ring(at.dom)?, *at),
    };
    let dom = if at.kernel { DomId::DOM0 } else { at.dom };
    let port = io.world.bind(dom, at.remote)?;
    Ok(Ring::resume(memory, &at, port, kept))
}
