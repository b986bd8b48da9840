//! The guest's connection to the store: the driver's client over the ring that the builder placed.

use alloc::collections::VecDeque;
use core::cell::Cell;

use pv_drivers::store::{StoreClient, Wire};
use xen_hal::{Clock, Store, StoreError};
use xen_sys::{Errno, Port};

use crate::console::RingPage;
use crate::single::Single;
use crate::{PvClock, events, hypercall, start_info};
use xs_wire::{Permission, TxId, WatchEvent};

use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// How long a reply may take before the request fails with ETIMEDOUT.
const REPLY_NS: u64 = 30_000_000_000;

static CLIENT: Single<StoreClient<RingPage, StoreWire>> = Single::new();
static EVENTS: Single<Events> = Single::new();

/// Watch events that nobody has taken yet.
#[derive(Default)]
struct Events {
    queue: VecDeque<WatchEvent>,
    /// Some have come since the last wait.
    fresh: bool,
}

struct StoreWire {
    port: Port,
    /// When the request being waited for is given up; 0: not waiting yet.
    deadline_ns: Cell<u64>,
}

impl Wire for StoreWire {
    fn notify(&self) {
        // The port comes from the builder; if it is closed the request times out.
        let _ = hypercall::send(self.port);
    }

    fn wait(&self) -> bool {
        let now = PvClock.now_ns();
        if self.deadline_ns.get() == 0 {
            self.deadline_ns.set(now + REPLY_NS);
        }
        if now >= self.deadline_ns.get() {
            self.deadline_ns.set(0);
            return false;
        }
        events::wait_for(self.port, self.deadline_ns.get());
        true
    }

    fn done(&self) {
        self.deadline_ns.set(0);
    }
}

/// The store, as this domain sees it. Every value is the same connection.
#[derive(Clone, Copy, Debug)]
pub struct GuestStore(());

impl GuestStore {
    /// The connection; ENOTCONN if the builder gave us none (as dom0).
    pub fn get() -> Result<GuestStore, StoreError> {
        if CLIENT.try_get().is_none() {
            connect()?;
        }
        Ok(GuestStore(()))
    }

    /// Takes all watch events with this token; whether there was one.
    pub fn take_events(&self, token: &str) -> Result<bool, StoreError> {
        collect()?;
        let queue = &mut EVENTS.get().queue;
        let before = queue.len();
        queue.retain(|event| event.token != token);
        Ok(queue.len() < before)
    }
}

/// Moves what the client has received to the queue.
fn collect() -> Result<(), StoreError> {
    let mut events = EVENTS.get();
    while let Some(event) = CLIENT.get().next_event()? {
        events.queue.push_back(event);
        events.fresh = true;
    }
    Ok(())
}

/// Whether watch events have come since this was last asked. They may have come while a reply was waited
/// for, which has taken the port's event: a wait must not begin then.
pub(crate) fn take_fresh() -> bool {
    if CLIENT.try_get().is_none() {
        return false;
    }
    // A broken ring brings no events; the next request tells.
    let _ = collect();
    core::mem::take(&mut EVENTS.get().fresh)
}

fn connect() -> Result<(), StoreError> {
    let info = start_info::get();
    let page = if start_info::is_dom0() || info.store_evtchn.0 == 0 {
        None
    } else {
        RingPage::new(info.store_mfn)
    };
    let page = page.ok_or_else(|| StoreError {
        op: "connect",
        object: "the store ring of start_info".to_string(),
        errno: Errno::ENOTCONN,
    })?;
    CLIENT.set(StoreClient::new(
        page,
        StoreWire {
            port: info.store_evtchn,
            deadline_ns: Cell::new(0),
        },
    ));
    EVENTS.set(Events::default());
    events::bind(info.store_evtchn);
    Ok(())
}

impl Store for GuestStore {
    fn read(&self, tx: Option<TxId>, path: &str) -> Result<Vec<u8>, StoreError> {
        CLIENT.get().read(tx, path)
    }

    fn write(&self, tx: Option<TxId>, path: &str, value: &[u8]) -> Result<(), StoreError> {
        CLIENT.get().write(tx, path, value)
    }

    fn mkdir(&self, tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
        CLIENT.get().mkdir(tx, path)
    }

    fn rm(&self, tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
        CLIENT.get().rm(tx, path)
    }

    fn list(&self, tx: Option<TxId>, path: &str) -> Result<Vec<String>, StoreError> {
        CLIENT.get().list(tx, path)
    }

    fn permissions(&self, tx: Option<TxId>, path: &str) -> Result<Vec<Permission>, StoreError> {
        CLIENT.get().permissions(tx, path)
    }

    fn set_permissions(
        &self,
        tx: Option<TxId>,
        path: &str,
        list: &[Permission],
    ) -> Result<(), StoreError> {
        CLIENT.get().set_permissions(tx, path, list)
    }

    fn start(&self) -> Result<TxId, StoreError> {
        CLIENT.get().start()
    }

    fn end(&self, tx: TxId, commit: bool) -> Result<(), StoreError> {
        CLIENT.get().end(tx, commit)
    }

    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        CLIENT.get().watch(path, token)
    }

    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        EVENTS.get().queue.retain(|event| event.token != token);
        CLIENT.get().unwatch(path, token)
    }

    fn next_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        if let Some(event) = EVENTS.get().queue.pop_front() {
            return Ok(Some(event));
        }
        CLIENT.get().next_event()
    }
}
