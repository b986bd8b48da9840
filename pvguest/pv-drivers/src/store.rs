//! The store's front end: xs-wire's client over the store ring.

use alloc::string::ToString;
use alloc::vec::Vec;
use core::cell::RefCell;

use xen_hal::{StoreError, StoreLink, TxId, WatchEvent};
use xen_ring::{ByteRing, STORE, SharedMemory};
use xen_sys::Errno;
use xs_wire::call::Exchange;
use xs_wire::{Client, Request, RequestId};

/// How the owner of the ring tells the daemon that bytes have moved, and waits for it to do something.
pub trait Wire {
    /// Notifies the daemon.
    fn notify(&self);
    /// Waits for the daemon's event; false to give the request up (ETIMEDOUT). May return early.
    fn wait(&self) -> bool;
    /// A request has ended.
    fn done(&self) {}
}

/// A store client on a ring.
#[derive(Debug)]
pub struct StoreClient<M, W> {
    state: RefCell<State<M>>,
    wire: W,
}

#[derive(Debug)]
struct State<M> {
    ring: ByteRing<M>,
    client: Client,
    broken: bool,
}

impl<M: SharedMemory, W: Wire> StoreClient<M, W> {
    /// The guest's end of the ring in `page`.
    pub fn new(page: M, wire: W) -> Self {
        StoreClient {
            state: RefCell::new(State {
                ring: ByteRing::guest(page, STORE),
                client: Client::new(),
                broken: false,
            }),
            wire,
        }
    }

    /// Takes the next watch event with this token.
    pub fn take_event_for(&self, token: &str) -> Result<Option<WatchEvent>, StoreError> {
        self.pump().map_err(event_error)?;
        Ok(self.state.borrow_mut().client.next_event_for(token))
    }

    /// How many watch events have come so far.
    pub fn events_seen(&self) -> Result<u64, StoreError> {
        self.pump().map_err(event_error)?;
        Ok(self.state.borrow().client.events_seen())
    }

    /// Moves bytes both ways; EIO once the daemon has broken ring or protocol.
    fn pump(&self) -> Result<(), Errno> {
        let moved = self.state.borrow_mut().pump()?;
        if moved {
            self.wire.notify();
        }
        Ok(())
    }

    fn await_reply(&self, id: RequestId) -> Result<Vec<u8>, Errno> {
        loop {
            self.pump()?;
            if let Some(reply) = self.state.borrow_mut().client.take_reply(id) {
                return reply;
            }
            if !self.wire.wait() {
                self.state.borrow_mut().client.forget(id);
                return Err(Errno::ETIMEDOUT);
            }
        }
    }
}

impl<M: SharedMemory> State<M> {
    fn pump(&mut self) -> Result<bool, Errno> {
        if self.broken {
            return Err(Errno::EIO);
        }
        self.try_pump().map_err(|()| {
            self.broken = true;
            Errno::EIO
        })
    }

    fn try_pump(&mut self) -> Result<bool, ()> {
        let mut moved = false;
        loop {
            let sent = self.ring.write(self.client.output()).map_err(drop)?;
            self.client.sent(sent);
            let mut piece = [0; 256];
            let got = self.ring.read(&mut piece).map_err(drop)?;
            self.client.feed(&piece[..got]).map_err(drop)?;
            if sent == 0 && got == 0 {
                return Ok(moved);
            }
            moved = true;
        }
    }
}

impl<M: SharedMemory, W: Wire> Exchange for StoreClient<M, W> {
    fn exchange(&self, tx: Option<TxId>, request: &Request<'_>) -> Result<Vec<u8>, StoreError> {
        let queued = self.state.borrow_mut().client.request(tx, request);
        let reply = queued.and_then(|id| self.await_reply(id));
        self.wire.done();
        reply.map_err(|errno| StoreError {
            op: request.op().name(),
            object: request.object(),
            errno,
        })
    }
}

impl<M: SharedMemory, W: Wire> StoreLink for StoreClient<M, W> {
    fn take_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        self.pump().map_err(event_error)?;
        Ok(self.state.borrow_mut().client.next_event())
    }
}

fn event_error(errno: Errno) -> StoreError {
    StoreError {
        op: "WATCH_EVENT",
        object: "the store ring".to_string(),
        errno,
    }
}
