//! A ring with its event channel: all that serving it takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use xen_backend::DeviceId;
use xen_hal::{AccessMode, EventChannels, ForeignGrants, Result};
use xen_ring::SlotRing;
use xen_sys::{GrantRef, PAGE_SIZE, Port};

use crate::engine::{Engine, Listen, Woken};
use crate::journal::{Journal, Owner};
use crate::memory::{Buffer, Memory};
use crate::pool::MAX_PAGES;
use crate::queue::{DataMove, Log, Parts, Progress, Queue, engine_failed};
use crate::rate::{Allowance, Rate};
use crate::request::{Limits, blkif_request};
use crate::ring::{Protocol, Ring, SlotBytes};
use crate::storage::Storage;

/// A connection between a front end and a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// The device.
    pub id: DeviceId,
    /// The layout of the rings' slots.
    pub protocol: Protocol,
    /// The front end uses the same pages again and again, and they may stay mapped.
    pub persistent: bool,
    /// The rings, one for each queue.
    pub rings: Vec<RingInfo>,
    /// What the disk allows.
    pub limits: Limits,
    /// How fast it may go.
    pub allowance: Allowance,
    /// It exists already: the process that served it has gone.
    pub resume: bool,
}

/// What a front end has published about a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingInfo {
    /// Its pages, a power of two of them.
    pub grefs: Vec<GrantRef>,
    /// Its event channel.
    pub port: Port,
}

/// A ring that is mapped and whose events come here.
pub struct Link<G: ForeignGrants, E: EventChannels> {
    connect: Connect,
    owner: Owner,
    memory: G::Mapping,
    grants: G,
    events: E,
    port: Port,
}

impl<G, E> Link<G, E>
where
    G: ForeignGrants + Clone,
    G::Mapping: Send + Sync + 'static,
    E: EventChannels,
{
    /// Maps the ring of a queue and binds its event channel.
    pub fn new(connect: &Connect, queue: usize, grants: G, events: E) -> Result<Self> {
        let dom = connect.id.dom;
        let ring = &connect.rings[queue];
        let memory = grants.map(dom, &ring.grefs, AccessMode::ReadWrite)?;
        let port = events.bind_interdomain(dom, ring.port)?;
        Ok(Link {
            owner: Owner {
                dom: dom.0,
                index: connect.id.index,
                queue: queue as u32,
                gref: ring.grefs.first().map_or(0, |gref| gref.0),
                port: ring.port.0,
                capacity: slots(connect.protocol, ring.grefs.len() * PAGE_SIZE),
            },
            connect: connect.clone(),
            memory,
            grants,
            events,
            port,
        })
    }

    /// How large its journal is, in bytes.
    pub fn journal_size(&self) -> usize {
        Journal::size(self.owner.capacity)
    }

    /// Most requests at a time.
    pub fn capacity(&self) -> usize {
        self.owner.capacity as usize
    }

    /// Serves it, with a journal in `memory` that holds what the process before us left there, if anything.
    /// Sends one event: those sent while nobody listened are lost.
    pub fn serve(
        self,
        memory: Memory,
        engine: Box<dyn Engine>,
        data_move: DataMove,
        storage: Arc<dyn Storage>,
        log: Log,
    ) -> Result<Served<G, E>> {
        let left = match self.connect.resume {
            true => Journal::resume(memory.clone(), self.owner),
            false => None,
        };
        let taken = left.as_ref().map(Journal::taken);
        let ring = Ring::attach(self.memory, self.connect.protocol, taken)?;
        let journal =
            left.unwrap_or_else(|| Journal::create(memory, self.owner, ring.next_request()));
        let persistent = self.connect.persistent && data_move == DataMove::Persistent;
        let count = self.connect.rings.len() as u64;
        let share = |whole: u64| {
            if whole == 0 {
                0
            } else {
                (whole / count).max(1)
            }
        };
        let queue = Queue::new(Parts {
            dom: self.connect.id.dom,
            ring,
            journal,
            grants: self.grants,
            persistent: if persistent { MAX_PAGES } else { 0 },
            engine,
            storage,
            limits: self.connect.limits,
            rate: Rate::new(Allowance {
                requests: share(self.connect.allowance.requests),
                bytes: share(self.connect.allowance.bytes),
            }),
            log,
        })?;
        self.events.notify(self.port)?;
        Ok(Served {
            queue,
            events: self.events,
            port: self.port,
            masked: false,
            spin: Spin::both(),
        })
    }
}

/// How many slots a ring of so many bytes has.
pub fn slots(protocol: Protocol, bytes: usize) -> u32 {
    match protocol {
        Protocol::Native => SlotRing::<Buffer, SlotBytes, [u8; 16]>::slots_in(bytes),
        Protocol::X86_32 => {
            SlotRing::<Buffer, [u8; blkif_request::X86_32], [u8; 12]>::slots_in(bytes)
        }
    }
}

/// A ring being served.
pub struct Served<G: ForeignGrants, E: EventChannels> {
    queue: Queue<G>,
    events: E,
    port: Port,
    masked: bool,
    /// For a queue at rest, and for one whose requests run.
    spin: [Spin; 2],
}

impl<G, E> Served<G, E>
where
    G: ForeignGrants + Clone,
    G::Mapping: Send + Sync + 'static,
    E: EventChannels,
{
    /// Does what can be done, a batch of it; `woken` says whether there is an event, still to be taken or
    /// not. On [`Progress::Idle`] the port is open again, or [`wait`](Self::wait) opens it.
    pub fn work(&mut self, woken: Woken) -> Result<Progress> {
        // The descriptor has this port alone.
        self.masked |= woken.taken;
        if woken.event && !woken.taken {
            self.queue.count_calls(1);
            self.masked |= self.events.next_pending()?.is_some();
        }
        let (events, port) = (&self.events, self.port);
        if self.queue.step(|| events.notify(port))? == Progress::More {
            return Ok(Progress::More);
        }
        let queue = &mut self.queue;
        let spin = &mut self.spin[usize::from(queue.in_flight() > 0)];
        if spin.until(|| queue.has_work()) || queue.rest() {
            return Ok(Progress::More);
        }
        // Opened only now: a guest's storm of events costs it its own turn (XSA-332).
        if self.masked && self.named().is_none() {
            self.masked = false;
            self.queue.count_calls(1);
            self.events.unmask(self.port)?;
        }
        Ok(Progress::Idle)
    }

    /// The port's name, if the engine can unmask and read it while it waits.
    fn named(&mut self) -> Option<[u8; 4]> {
        let merges = self.queue.engine().merges();
        merges.then(|| self.events.name(self.port)).flatten()
    }

    /// The event channels, for waiting on their descriptor.
    pub fn events(&self) -> &E {
        &self.events
    }

    /// The queue.
    pub fn queue(&self) -> &Queue<G> {
        &self.queue
    }

    /// Waits until there is something to do.
    pub fn wait(&mut self, stop: std::os::fd::BorrowedFd<'_>) -> Result<Woken>
    where
        E: std::os::fd::AsFd,
    {
        let timeout: Option<Duration> = self.queue.rate().wait();
        let listen = Listen {
            port: self.named(),
            masked: std::mem::take(&mut self.masked),
            fd: self.events.as_fd(),
        };
        let engine = self.queue.engine();
        engine.wait(listen, stop, timeout).map_err(engine_failed)
    }

    /// Lets what runs come to its end, taking nothing new, and answers it.
    pub fn finish(&mut self) -> Result<()>
    where
        E: std::os::fd::AsFd,
    {
        self.queue.close();
        let (events, port) = (&self.events, self.port);
        while self.queue.in_flight() > 0 {
            if self.queue.step(|| events.notify(port))? == Progress::Idle {
                let fd = events.as_fd();
                let engine = self.queue.engine();
                let woken = engine
                    .wait(Listen::to(fd), fd, Some(Duration::from_millis(100)))
                    .map_err(engine_failed)?;
                if woken.event && !woken.taken {
                    // It stays masked: nobody listens any more.
                    events.next_pending()?;
                }
            }
        }
        Ok(())
    }
}

/// Looks again for a short time before a wait: a wake-up costs more than that. How long depends on how
/// often it was worth it; on a machine where nobody else runs meanwhile, it soon is no time at all.
#[derive(Clone, Copy, Debug)]
struct Spin {
    turns: u32,
    most: u32,
    waits: u32,
}

impl Spin {
    const LEAST: u32 = 64;
    const MOST: u32 = 2048;
    /// About what a wake-up costs: to look for longer than that is waste.
    const WORTH: Duration = Duration::from_micros(20);
    /// One in so many waits tries again although it was not worth it lately.
    const TRY_AGAIN: u32 = 64;

    fn new(most: u32) -> Spin {
        Spin {
            turns: Spin::LEAST,
            most: most.clamp(Spin::LEAST, Spin::MOST),
            waits: 0,
        }
    }

    /// As long as this processor takes for it.
    fn both() -> [Spin; 2] {
        let begun = Instant::now();
        for _ in 0..Spin::LEAST {
            std::hint::spin_loop();
        }
        let turn = (begun.elapsed() / Spin::LEAST).as_nanos().max(1);
        [Spin::new((Spin::WORTH.as_nanos() / turn) as u32); 2]
    }

    fn until(&mut self, mut ready: impl FnMut() -> bool) -> bool {
        self.waits = self.waits.wrapping_add(1);
        let turns = match self.turns {
            0 if self.waits.is_multiple_of(Self::TRY_AGAIN) => Self::LEAST,
            turns => turns,
        };
        for _ in 0..turns {
            if ready() {
                self.turns = (turns * 2).min(self.most);
                return true;
            }
            std::hint::spin_loop();
        }
        self.turns = match turns / 2 {
            less if less < Self::LEAST => 0,
            less => less,
        };
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_again_stops_when_it_is_in_vain() {
        let mut spin = Spin::new(Spin::MOST);
        let mut looks = 0;
        for _ in 0..Spin::TRY_AGAIN {
            assert!(!spin.until(|| {
                looks += 1;
                false
            }));
        }
        assert_eq!(looks, 2 * Spin::LEAST);
        for _ in 0..1000 {
            spin.until(|| true);
        }
        assert!(spin.turns > 0, "it was tried again");
    }

    #[test]
    fn rings() {
        for (protocol, order, expected) in [
            (Protocol::Native, 0, 32),
            (Protocol::Native, 4, 512),
            (Protocol::X86_32, 0, 32),
            (Protocol::X86_32, 4, 512),
        ] {
            assert_eq!(slots(protocol, PAGE_SIZE << order), expected);
        }
    }
}
