//! The guest's connection to the store: the driver's client over the ring that the builder placed.

use core::cell::Cell;

use pv_drivers::store::{StoreClient, Wire};
use xen_hal::{Clock, StoreError, StoreLink};
use xen_sys::{Errno, Port};

use crate::console::RingPage;
use crate::single::Single;
use crate::{PvClock, events, hypercall, start_info};
use xs_wire::call::Exchange;
use xs_wire::{Request, TxId, WatchEvent};

use alloc::string::ToString;
use alloc::vec::Vec;

/// How long a reply may take before the request fails with ETIMEDOUT.
const REPLY_NS: u64 = 30_000_000_000;

static CLIENT: Single<StoreClient<RingPage, StoreWire>> = Single::new();
/// How many watch events had come when somebody last asked.
static SEEN: Single<u64> = Single::new();

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
        let mut any = false;
        while CLIENT.get().take_event_for(token)?.is_some() {
            any = true;
        }
        Ok(any)
    }
}

/// Whether watch events have come since this was last asked. They may have come while a reply was waited
/// for, which has taken the port's event: a wait must not begin then.
pub(crate) fn take_fresh() -> bool {
    let Some(client) = CLIENT.try_get() else {
        return false;
    };
    // A broken ring brings no events; the next request tells.
    let Ok(now) = client.events_seen() else {
        return false;
    };
    core::mem::replace(&mut *SEEN.get(), now) != now
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
    SEEN.set(0);
    events::bind(info.store_evtchn);
    Ok(())
}

impl Exchange for GuestStore {
    fn exchange(&self, tx: Option<TxId>, request: &Request<'_>) -> Result<Vec<u8>, StoreError> {
        CLIENT.get().exchange(tx, request)
    }
}

impl StoreLink for GuestStore {
    fn take_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        CLIENT.get().take_event()
    }
}
