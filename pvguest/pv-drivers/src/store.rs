//! The store's front end: xs-wire's client over the store ring.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;

use xen_hal::{Permission, Store, StoreError, TxId, WatchEvent};
use xen_ring::{ByteRing, STORE, SharedMemory};
use xen_sys::Errno;
use xs_wire::call::{self, Exchange};
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

impl<M: SharedMemory, W: Wire> Store for StoreClient<M, W> {
    fn read(&self, tx: Option<TxId>, path: &str) -> Result<Vec<u8>, StoreError> {
        call::read(self, tx, path)
    }

    fn write(&self, tx: Option<TxId>, path: &str, value: &[u8]) -> Result<(), StoreError> {
        call::write(self, tx, path, value)
    }

    fn mkdir(&self, tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
        call::mkdir(self, tx, path)
    }

    fn rm(&self, tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
        call::rm(self, tx, path)
    }

    fn list(&self, tx: Option<TxId>, path: &str) -> Result<Vec<String>, StoreError> {
        call::list(self, tx, path)
    }

    fn permissions(&self, tx: Option<TxId>, path: &str) -> Result<Vec<Permission>, StoreError> {
        call::permissions(self, tx, path)
    }

    fn set_permissions(
        &self,
        tx: Option<TxId>,
        path: &str,
        list: &[Permission],
    ) -> Result<(), StoreError> {
        call::set_permissions(self, tx, path, list)
    }

    fn start(&self) -> Result<TxId, StoreError> {
        call::start(self)
    }

    fn end(&self, tx: TxId, commit: bool) -> Result<(), StoreError> {
        call::end(self, tx, commit)
    }

    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        call::watch(self, path, token)
    }

    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        call::unwatch(self, path, token)?;
        self.state.borrow_mut().client.drop_events(token);
        Ok(())
    }

    fn next_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        self.pump().map_err(|errno| StoreError {
            op: "WATCH_EVENT",
            object: "the store ring".to_string(),
            errno,
        })?;
        Ok(self.state.borrow_mut().client.next_event())
    }
}
