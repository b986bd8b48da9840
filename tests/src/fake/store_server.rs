//! The store daemon on the fake world: the real one, but stepped by hand. dom0's clients talk to it by
//! socket pairs, guests by their rings.

use std::cell::{RefCell, RefMut};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use xen_fake::{Events, Foreign, World};
use xen_hal::{Result, StoreError, StoreLink, TxId, WatchEvent};
use xen_sys::{DomId, Errno, Port};
use xenstored::core::limits::Limits;
use xenstored::core::{ConnId, DomainReport, DomainState, Identity};
use xenstored::daemon::Daemon;
use xenstored::daemon::world::{DomainList, HalWorld};
use xs_wire::call::{self, Exchange};
use xs_wire::{Client, Request};

type FakeWorld = HalWorld<Events, Foreign, Domains>;

/// Most steps that one request of dom0's may need.
const STEPS_PER_REQUEST: usize = 1000;

/// The daemon. Every clone is the same one.
#[derive(Clone)]
pub struct StoreServer(Rc<RefCell<Daemon<FakeWorld>>>);

/// The domains of the fake world.
struct Domains(World);

impl DomainList for Domains {
    fn list(&mut self) -> Result<Vec<DomainReport>> {
        let state = |dom| match self.0.shutdown_reason(dom) {
            Some(_) => DomainState::Shutdown,
            None => DomainState::Running,
        };
        Ok(self
            .0
            .domains()
            .into_iter()
            .map(|dom| DomainReport {
                dom,
                identity: Identity::UNKNOWN,
                state: state(dom),
            })
            .collect())
    }
}

impl StoreServer {
    /// A daemon with an empty store.
    pub fn new(world: &World) -> Result<StoreServer> {
        let (dom0, domains) = (world.dom0(), Domains(world.clone()));
        let events = dom0.events();
        let virq = events.bind_dom_exc()?;
        let world = HalWorld::new(events, dom0.foreign(), domains, None, Some(virq), |_| None);
        let daemon = Daemon::new(world, Limits::default());
        Ok(StoreServer(Rc::new(RefCell::new(daemon))))
    }

    /// A new connection of dom0's.
    pub fn client(&self) -> DaemonClient {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        for end in [&ours, &theirs] {
            end.set_nonblocking(true)
                .expect("a socket that does not block");
        }
        DaemonClient {
            conn: self.daemon().add_socket(theirs.into()),
            server: self.clone(),
            socket: ours,
            client: RefCell::new(Client::new()),
        }
    }

    /// Lets the daemon take a step, and time pass if it waits for that; true if it did something.
    pub fn step(&self) -> bool {
        let busy = self
            .daemon()
            .step()
            .expect("the fake world does not fail the daemon");
        let patience = self.daemon().patience().unwrap_or_default();
        std::thread::sleep(patience);
        busy
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.daemon().connections()
    }

    fn daemon(&self) -> RefMut<'_, Daemon<FakeWorld>> {
        self.0.borrow_mut()
    }
}

/// A connection of dom0's. Its requests let the daemon run until they are answered.
pub struct DaemonClient {
    server: StoreServer,
    conn: ConnId,
    socket: UnixStream,
    client: RefCell<Client>,
}

impl DaemonClient {
    /// Connects a guest's ring.
    pub fn introduce(&self, dom: DomId, port: Port) -> Result<(), StoreError> {
        call::introduce(self, dom, 0, port)
    }

    /// Makes the daemon forget a domain.
    pub fn release(&self, dom: DomId) -> Result<(), StoreError> {
        call::release(self, dom)
    }

    /// Moves bytes both ways, with one step of the daemon in between.
    fn pump(&self) -> Result<(), Errno> {
        let client = &mut *self.client.borrow_mut();
        match (&self.socket).write(client.output()) {
            Ok(len) => client.sent(len),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Err(Errno::ENOTCONN),
        }
        self.server.daemon().socket_ready(self.conn, true, true);
        self.server.step();
        let mut bytes = [0; 8192];
        loop {
            match (&self.socket).read(&mut bytes) {
                Ok(0) => return Err(Errno::ENOTCONN),
                Ok(len) => client.feed(&bytes[..len]).map_err(|_| Errno::EIO)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Errno::ENOTCONN),
            }
        }
    }
}

impl Drop for DaemonClient {
    fn drop(&mut self) {
        // The daemon sees the end of the socket at its next look.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        self.server.daemon().socket_ready(self.conn, true, true);
        self.server.step();
    }
}

impl Exchange for DaemonClient {
    fn exchange(&self, tx: Option<TxId>, request: &Request<'_>) -> Result<Vec<u8>, StoreError> {
        let id = self.client.borrow_mut().request(tx, request);
        let reply = id.and_then(|id| {
            for _ in 0..STEPS_PER_REQUEST {
                self.pump()?;
                if let Some(reply) = self.client.borrow_mut().take_reply(id) {
                    return reply;
                }
            }
            Err(Errno::ETIMEDOUT)
        });
        reply.map_err(|errno| StoreError {
            op: request.op().name(),
            object: request.object(),
            errno,
        })
    }
}

impl StoreLink for DaemonClient {
    fn take_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        self.pump().map_err(|errno| StoreError {
            op: "WATCH_EVENT",
            object: String::new(),
            errno,
        })?;
        Ok(self.client.borrow_mut().next_event())
    }
}
