//! Event channels by the 2-level bit arrays, waited for with SCHEDOP_poll.
//!
//! A port that fired is "taken": masked and cleared, so that a peer cannot storm (XSA-391). It may fire
//! again from the next [`wait`] on. Whoever waits therefore first looks at all its rings.

use core::sync::atomic::Ordering;

use xen_hal::{Clock, Error, EventChannels, Result};
use xen_sys::event_channel::NR_CHANNELS_2L;
use xen_sys::{DomId, Port};

use crate::shared_info::{self, WORDS};
use crate::single::Single;
use crate::{PvClock, hypercall, store};

/// Xen's limit for one SCHEDOP_poll.
const MAX_POLLED: usize = 128;
/// With more ports than that, how long one wait lasts at most.
const BLIND_NS: u64 = 10_000_000;

#[derive(Clone, Copy)]
struct State {
    /// Ports that are ours to wait for.
    bound: [u64; WORDS],
    /// Ports that fired and have not been waited for since.
    taken: [u64; WORDS],
}

static STATE: Single<State> = Single::new();

/// The guest's event channels. Every value is the same set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events;

fn place(port: Port) -> (usize, u64) {
    assert!(port.0 < NR_CHANNELS_2L, "Xen gave port {port}");
    (port.0 as usize / 64, 1 << (port.0 % 64))
}

/// Starts to wait for a port, too.
pub(crate) fn bind(port: Port) {
    let (word, bit) = place(port);
    if STATE.try_get().is_none() {
        STATE.set(State {
            bound: [0; WORDS],
            taken: [0; WORDS],
        });
    }
    let mut state = STATE.get();
    state.bound[word] |= bit;
    state.taken[word] &= !bit;
    shared_info::mask(word).fetch_and(!bit, Ordering::SeqCst);
}

fn unbind(port: Port) {
    let (word, bit) = place(port);
    if let Some(mut state) = STATE.try_get() {
        state.bound[word] &= !bit;
        state.taken[word] &= !bit;
    }
    shared_info::pending(word).fetch_and(!bit, Ordering::SeqCst);
}

/// Waits for one port until an absolute time (0: for ever); the port does not stay pending. May return early.
pub(crate) fn wait_for(port: Port, deadline_ns: u64) {
    let (word, bit) = place(port);
    if shared_info::pending(word).fetch_and(!bit, Ordering::SeqCst) & bit == 0 {
        // Errors (there is none for a bound port) make this a busy wait, which the caller bounds.
        let _ = hypercall::poll(&[port], deadline_ns);
        shared_info::pending(word).fetch_and(!bit, Ordering::SeqCst);
    }
}

/// Lets the taken ports fire again, then waits until one fires or `deadline_ns` (absolute system time) has
/// come. Ports that fired are taken on return. Returns at once if one has fired already, or if watch events
/// have come since the last wait.
pub fn wait(deadline_ns: Option<u64>) {
    release_taken();
    if store::take_fresh() {
        return;
    }
    loop {
        let (fired, ports, count) = scan();
        if fired || deadline_ns.is_some_and(|deadline| PvClock.now_ns() >= deadline) {
            return;
        }
        let mut until = deadline_ns.map_or(0, |deadline| deadline.max(1));
        if count > MAX_POLLED {
            let soon = PvClock.now_ns() + BLIND_NS;
            until = if until == 0 { soon } else { until.min(soon) };
        }
        // An error makes this a busy loop that still sees every event.
        let _ = hypercall::poll(&ports[..count.min(MAX_POLLED)], until);
    }
}

fn release_taken() {
    let Some(mut state) = STATE.try_get() else {
        return;
    };
    for word in 0..WORDS {
        let taken = core::mem::take(&mut state.taken[word]);
        if taken != 0 {
            shared_info::mask(word).fetch_and(!taken, Ordering::SeqCst);
        }
    }
}

/// Takes all ports that have fired. Whether there was one, which ports to wait for, and how many.
fn scan() -> (bool, [Port; MAX_POLLED], usize) {
    let (mut fired, mut ports, mut count) = (false, [Port(0); MAX_POLLED], 0);
    let Some(mut state) = STATE.try_get() else {
        return (fired, ports, count);
    };
    for word in 0..WORDS {
        let mut waiting = state.bound[word] & !state.taken[word];
        if waiting == 0 {
            continue;
        }
        let pending = shared_info::pending(word).load(Ordering::SeqCst) & waiting;
        if pending != 0 {
            fired = true;
            take(&mut state, word, pending);
        }
        while waiting != 0 {
            if let Some(slot) = ports.get_mut(count) {
                *slot = Port(word as u32 * 64 + waiting.trailing_zeros());
            }
            count += 1;
            waiting &= waiting - 1;
        }
    }
    (fired, ports, count)
}

fn take(state: &mut State, word: usize, bits: u64) {
    shared_info::mask(word).fetch_or(bits, Ordering::SeqCst);
    shared_info::pending(word).fetch_and(!bits, Ordering::SeqCst);
    state.taken[word] |= bits;
}

impl Events {
    /// Whether an event waits on this port, taken or not.
    pub fn is_pending(&self, port: Port) -> bool {
        let (word, bit) = place(port);
        shared_info::pending(word).load(Ordering::SeqCst) & bit != 0
    }

    /// Binds a virtual interrupt (`EVTCHNOP_bind_virq`).
    pub fn bind_virq(&self, virq: xen_sys::xen::Virq) -> Result<Port> {
        let port = hypercall::bind_virq(virq)
            .map_err(|errno| error("EVTCHNOP_bind_virq", DomId::SELF, Port(0), errno))?;
        bind(port);
        Ok(port)
    }

    /// Waits for one port until an absolute system time in ns (0: for ever) and clears it. May return early.
    pub fn wait_for(&self, port: Port, deadline_ns: u64) {
        wait_for(port, deadline_ns);
    }
}

fn error(op: &'static str, dom: DomId, port: Port, errno: xen_sys::Errno) -> Error {
    Error::Event {
        op,
        dom,
        port,
        errno,
    }
}

impl EventChannels for Events {
    fn alloc_unbound(&self, remote: DomId) -> Result<Port> {
        let port = hypercall::alloc_unbound(remote)
            .map_err(|errno| error("EVTCHNOP_alloc_unbound", remote, Port(0), errno))?;
        bind(port);
        Ok(port)
    }

    fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Port> {
        let local = hypercall::bind_interdomain(remote, port)
            .map_err(|errno| error("EVTCHNOP_bind_interdomain", remote, port, errno))?;
        bind(local);
        Ok(local)
    }

    fn close(&self, port: Port) -> Result<()> {
        unbind(port);
        hypercall::close(port).map_err(|errno| error("EVTCHNOP_close", DomId::SELF, port, errno))
    }

    fn notify(&self, port: Port) -> Result<()> {
        hypercall::send(port).map_err(|errno| error("EVTCHNOP_send", DomId::SELF, port, errno))
    }

    fn next_pending(&self) -> Result<Option<Port>> {
        let Some(mut state) = STATE.try_get() else {
            return Ok(None);
        };
        for word in 0..WORDS {
            let waiting = state.bound[word] & !state.taken[word];
            let pending = shared_info::pending(word).load(Ordering::SeqCst) & waiting;
            if pending != 0 {
                let bit = pending & pending.wrapping_neg();
                take(&mut state, word, bit);
                return Ok(Some(Port(word as u32 * 64 + bit.trailing_zeros())));
            }
        }
        Ok(None)
    }

    fn unmask(&self, port: Port) -> Result<()> {
        let (word, bit) = place(port);
        if let Some(mut state) = STATE.try_get() {
            state.taken[word] &= !bit;
        }
        shared_info::mask(word).fetch_and(!bit, Ordering::SeqCst);
        Ok(())
    }
}
