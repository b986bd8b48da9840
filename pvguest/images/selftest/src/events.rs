//! Event channels to ourselves: bound, sent, waited for, taken and unmasked, closed.

use alloc::string::String;
use alloc::vec::Vec;

use pvguest::xen_hal::{Clock, Error, EventChannels};
use pvguest::xen_sys::{DomId, Port};
use pvguest::{Events, Guest};

use crate::{Test, demand};

pub(crate) const TESTS: &[Test] = &[
    ("an event arrives at the other end", arrives),
    ("a taken port is silent until it is unmasked", masked),
    (
        "waiting ends with an event, and is short if one is there",
        waits,
    ),
    ("ports of a higher word", many_ports),
    ("wrong ports are refused", refused),
];

const SECOND: u64 = 1_000_000_000;

fn text(error: Error) -> String {
    use alloc::string::ToString;
    error.to_string()
}

fn pair(guest: &Guest) -> Result<(Events, Port, Port), String> {
    let events = guest.events();
    let own = guest.domid().unwrap_or(DomId::DOM0);
    let first = events.alloc_unbound(own).map_err(text)?;
    let second = events.bind_interdomain(own, first).map_err(text)?;
    // Binding makes the port pending once, as Xen's interface says.
    while events.next_pending().map_err(text)?.is_some() {}
    for port in [first, second] {
        events.unmask(port).map_err(text)?;
    }
    Ok((events, first, second))
}

fn close(events: Events, ports: [Port; 2]) -> Result<(), String> {
    for port in ports {
        events.close(port).map_err(text)?;
    }
    Ok(())
}

fn arrives(guest: &Guest) -> Result<(), String> {
    let (events, a, b) = pair(guest)?;
    demand!(
        events.next_pending() == Ok(None),
        "pending before it was sent"
    );
    for (from, to) in [(a, b), (b, a)] {
        events.notify(from).map_err(text)?;
        let got = events.next_pending();
        demand!(got == Ok(Some(to)), "sent from {from}, got {got:?}");
        demand!(events.next_pending() == Ok(None), "it came twice");
    }
    close(events, [a, b])
}

fn masked(guest: &Guest) -> Result<(), String> {
    let (events, a, b) = pair(guest)?;
    events.notify(a).map_err(text)?;
    demand!(events.next_pending() == Ok(Some(b)), "the first");
    for _ in 0..100 {
        events.notify(a).map_err(text)?;
    }
    demand!(events.next_pending() == Ok(None), "a taken port fired");
    events.unmask(b).map_err(text)?;
    demand!(
        events.next_pending() == Ok(Some(b)),
        "the event meanwhile is lost"
    );
    events.unmask(b).map_err(text)?;
    demand!(
        events.next_pending() == Ok(None),
        "a hundred events became two"
    );
    close(events, [a, b])
}

fn waits(guest: &Guest) -> Result<(), String> {
    let (events, a, b) = pair(guest)?;
    let start = guest.clock().now_ns();
    for round in 0..100 {
        events.notify(a).map_err(text)?;
        guest.wait(Some(start + 100 * SECOND));
        let took = guest.clock().now_ns() - start;
        demand!(
            took < 20 * SECOND,
            "round {round}: waited {took} ns for an event that was there"
        );
    }
    // Nothing is sent: only the deadline ends it.
    let start = guest.clock().now_ns();
    let deadline = start + SECOND / 100;
    while guest.clock().now_ns() < deadline {
        guest.wait(Some(deadline));
    }
    close(events, [a, b])
}

fn many_ports(guest: &Guest) -> Result<(), String> {
    let pairs: Vec<_> = (0..100).map(|_| pair(guest)).collect::<Result<_, _>>()?;
    demand!(
        pairs.iter().any(|(_, a, _)| a.0 >= 64),
        "no port beyond the first word"
    );
    for (events, a, b) in &pairs {
        events.notify(*a).map_err(text)?;
        let got = events.next_pending();
        demand!(got == Ok(Some(*b)), "sent from {a}, got {got:?}");
    }
    // More ports than one hypercall takes: still every event is seen.
    let (events, a, _) = &pairs[99];
    guest.wait(Some(guest.clock().now_ns() + 1));
    events.notify(*a).map_err(text)?;
    let start = guest.clock().now_ns();
    guest.wait(Some(start + 20 * SECOND));
    demand!(
        guest.clock().now_ns() - start < 10 * SECOND,
        "it was not seen"
    );
    for (events, a, b) in pairs {
        close(events, [a, b])?;
    }
    Ok(())
}

fn refused(guest: &Guest) -> Result<(), String> {
    let events = guest.events();
    demand!(
        events.notify(Port(4000)).is_err(),
        "sent to a port that is not bound"
    );
    demand!(
        events.close(Port(4000)).is_err(),
        "closed a port that is not bound"
    );
    let none = events.bind_interdomain(DomId(777), Port(1));
    demand!(
        none.is_err(),
        "bound to a domain that is not there: {none:?}"
    );
    Ok(())
}
