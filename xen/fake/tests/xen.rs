//! What Xen does with grants and events, and the fake after it.

use std::sync::atomic::Ordering;

use xen_fake::{Actor, Call, Schedule, Step, World};
use xen_hal::{
    AccessMode, Clock, CopyBuffer, Error, EventChannels, ForeignGrants, GrantCopy, GrantTable,
    Lease, ShutdownReason,
};
use xen_ring::{SharedMemory, SharedMemoryExt};
use xen_sys::{DomId, Errno, GrantRef, Port};

use AccessMode::{ReadOnly, ReadWrite};

fn is_send<T: Send + Sync>(_: &T) {}

#[test]
fn everything_can_cross_threads() {
    let world = World::new();
    let guest = world.create_domain();
    is_send(&world);
    is_send(&guest);
    is_send(&guest.events());
    is_send(&guest.grants().alloc_page().unwrap());
    is_send(
        &world
            .dom0()
            .foreign()
            .map(guest.id(), &[GrantRef(1)], ReadWrite)
            .unwrap(),
    );
}

#[test]
fn pages_mapped_together_are_the_same_memory() {
    let world = World::new();
    let (dom0, guest) = (world.dom0(), world.create_domain());
    let leases: Vec<_> = (0..5)
        .map(|_| Lease::fresh(&guest.grants(), dom0.id()).unwrap())
        .collect();
    // In another order than that of the pages.
    let order = [3, 0, 4, 1, 2];
    let grefs = order.map(|at: usize| leases[at].gref());
    let mapping = dom0.foreign().map(guest.id(), &grefs, ReadWrite).unwrap();
    assert_eq!(mapping.len(), 5 * 4096);
    for (place, at) in order.into_iter().enumerate() {
        leases[at]
            .page()
            .store_u32(8, 100 + at as u32, Ordering::Release);
        assert_eq!(
            mapping.load_u32(place * 4096 + 8, Ordering::Acquire),
            100 + at as u32
        );
        mapping.write::<u32>(place * 4096 + 4092, 200 + at as u32);
        assert_eq!(leases[at].page().read::<u32>(4092), 200 + at as u32);
    }
    drop((mapping, leases));
    world.assert_nothing_left();
}

#[test]
fn a_mapped_grant_does_not_end_and_its_page_waits() {
    let world = World::new();
    let (dom0, guest) = (world.dom0(), world.create_domain());
    let lease = Lease::fresh(&guest.grants(), dom0.id()).unwrap();
    let gref = lease.gref();
    let first = dom0.foreign().map(guest.id(), &[gref], ReadWrite).unwrap();
    let second = dom0
        .foreign()
        .map(guest.id(), &[gref, gref], ReadOnly)
        .unwrap();
    assert_eq!(guest.grant_state(gref), Some((DomId::DOM0, 3)));
    assert_eq!(guest.grants().end(gref), Err(Error::GrantInUse { gref }));
    let lease = lease.end().expect_err("mapped three times");
    drop(second);
    drop(lease);
    assert_eq!(world.leftovers().len(), 4, "{:?}", world.leftovers());
    first.write::<u64>(0, 7);
    drop(first);
    // The next call that needs a page or an entry finds that it has come free.
    drop(guest.grants().alloc_page().unwrap());
    world.assert_nothing_left();
}

#[test]
fn refusals_have_xens_status() {
    let world = World::new();
    let (dom0, guest, other) = (world.dom0(), world.create_domain(), world.create_domain());
    let page = guest.grants().alloc_page().unwrap();
    let read_only = guest.grants().grant(dom0.id(), &page, ReadOnly).unwrap();
    let for_other = guest.grants().grant(other.id(), &page, ReadWrite).unwrap();
    let (never, beyond) = (GrantRef(300), GrantRef(512));
    // Domain, reference, mode, status.
    let rows = [
        (guest.id(), read_only, ReadOnly, 0),
        (guest.id(), read_only, ReadWrite, -1),
        (guest.id(), for_other, ReadOnly, -1),
        (guest.id(), never, ReadOnly, -1),
        (guest.id(), beyond, ReadOnly, -3),
        (guest.id(), GrantRef(u32::MAX), ReadOnly, -3),
        (DomId(99), read_only, ReadOnly, -2),
    ];
    let foreign = dom0.foreign();
    for (dom, gref, mode, status) in rows {
        let mapped = foreign.map(dom, &[gref], mode).map(drop);
        let expected = match status {
            0 => Ok(()),
            status => Err(Error::MapGrant { dom, gref, status }),
        };
        assert_eq!(mapped, expected, "map {gref} {mode:?}");
        let mut room = [0; 16];
        let local = match mode {
            ReadOnly => CopyBuffer::FromGrant(&mut room),
            ReadWrite => CopyBuffer::ToGrant(&room),
        };
        let mut piece = [GrantCopy {
            gref,
            offset: 0,
            local,
            status: 1,
        }];
        foreign.copy(dom, &mut piece).unwrap();
        assert_eq!(piece[0].status, status, "copy {gref} {mode:?}");
    }
    // All or none, and the first that failed is named.
    let some = foreign.map(guest.id(), &[read_only, never, beyond], ReadOnly);
    assert_eq!(
        some.map(drop),
        Err(Error::MapGrant {
            dom: guest.id(),
            gref: never,
            status: -1
        })
    );
    assert_eq!(world.mappings(), 0);
    for gref in [read_only, for_other] {
        guest.grants().end(gref).unwrap();
    }
    drop(page);
    world.assert_nothing_left();
}

#[test]
fn copies_stay_within_their_page_and_tell_each_its_own_status() {
    let world = World::new();
    let (dom0, guest) = (world.dom0(), world.create_domain());
    let lease = Lease::fresh(&guest.grants(), dom0.id()).unwrap();
    let gref = lease.gref();
    lease.write_bytes(4080, b"the last 16 byte");
    let (mut first, mut second, mut third) = ([0; 16], [0; 16], [0; 0]);
    let mut pieces = [
        GrantCopy {
            gref,
            offset: 4080,
            local: CopyBuffer::FromGrant(&mut first),
            status: 1,
        },
        GrantCopy {
            gref,
            offset: 4081,
            local: CopyBuffer::FromGrant(&mut second),
            status: 1,
        },
        GrantCopy {
            gref,
            offset: 4096,
            local: CopyBuffer::FromGrant(&mut third),
            status: 1,
        },
        GrantCopy {
            gref,
            offset: 0,
            local: CopyBuffer::ToGrant(b"front"),
            status: 1,
        },
    ];
    dom0.foreign().copy(guest.id(), &mut pieces).unwrap();
    assert_eq!(pieces.each_ref().map(|piece| piece.status), [0, -10, 0, 0]);
    assert_eq!((&first, second), (b"the last 16 byte", [0; 16]));
    assert_eq!(lease.read::<[u8; 5]>(0), *b"front");
}

#[test]
fn a_page_freed_under_its_grant_is_remembered() {
    let world = World::new();
    let guest = world.create_domain();
    let page = guest.grants().alloc_page().unwrap();
    let gref = guest.grants().grant(DomId::DOM0, &page, ReadWrite).unwrap();
    drop(page);
    guest.grants().end(gref).unwrap();
    let left = world.leftovers();
    assert!(
        left.len() == 1 && left[0].contains("freed a page while"),
        "{left:?}"
    );
}

#[test]
#[should_panic(expected = "not active")]
fn a_grant_ends_once() {
    let world = World::new();
    let guest = world.create_domain();
    let page = guest.grants().alloc_page().unwrap();
    let gref = guest.grants().grant(DomId::DOM0, &page, ReadWrite).unwrap();
    guest.grants().end(gref).unwrap();
    let _ = guest.grants().end(gref);
}

#[test]
fn limits_are_kept() {
    let world = World::new();
    let guest = world.create_domain();
    guest.limit_pages(2);
    guest.limit_grants(8 + 3);
    let grants = guest.grants();
    let pages = [(); 2].map(|()| grants.alloc_page().unwrap());
    assert_eq!(grants.alloc_page().map(drop), Err(Error::NoGrants));
    let grefs = [(); 3].map(|()| grants.grant(DomId::DOM0, &pages[0], ReadOnly).unwrap());
    let more = grants.grant(DomId::DOM0, &pages[1], ReadOnly);
    assert_eq!(more, Err(Error::NoGrants));
    grants.end(grefs[1]).unwrap();
    assert_eq!(grants.grant(DomId::DOM0, &pages[1], ReadOnly), Ok(grefs[1]));
    for gref in grefs {
        grants.end(gref).unwrap();
    }
    let [first, _] = pages;
    drop(first);
    assert!(grants.alloc_page().is_ok());
}

#[test]
fn the_nth_call_fails_and_only_that() {
    let world = World::new();
    let (dom0, guest) = (world.dom0(), world.create_domain());
    let faults = world.faults();
    let lease = Lease::fresh(&guest.grants(), dom0.id()).unwrap();
    faults.fail_nth(Call::Map, 2);
    let map = || {
        dom0.foreign()
            .map(guest.id(), &[lease.gref()], ReadWrite)
            .map(drop)
    };
    let failed = Err(Error::MapGrant {
        dom: guest.id(),
        gref: lease.gref(),
        status: -13,
    });
    assert_eq!([map(), map(), map()], [Ok(()), failed, Ok(())]);
    assert_eq!((faults.count(Call::Map), faults.clear()), (3, false));
    faults.fail_nth(Call::Grant, 5);
    assert!(faults.clear());
    faults.fail_all(Call::EndGrant);
    let lease = lease.end().expect_err("told to fail");
    assert!(faults.clear());
    drop(lease);
    world.assert_nothing_left();
    faults.fail_nth(Call::Other("write"), 1);
    assert!(faults.hit(Call::Other("write")) && !faults.hit(Call::Other("write")));
}

#[test]
fn events_pend_mask_and_find_their_owner() {
    let world = World::new();
    let (dom0, guest) = (world.dom0(), world.create_domain());
    let (front, back, bystander) = (guest.events(), dom0.events(), dom0.events());
    let port = front.alloc_unbound(dom0.id()).unwrap();
    // Sent to nobody: dropped.
    front.notify(port).unwrap();
    let bound = back.bind_interdomain(guest.id(), port).unwrap();
    // Binding makes one event on the new port, for those that were lost before.
    assert_eq!(back.next_pending(), Ok(Some(bound)));
    assert_eq!(back.next_pending(), Ok(None));
    // Taken, so masked; events meanwhile are one event after unmasking.
    front.notify(port).unwrap();
    front.notify(port).unwrap();
    assert_eq!((back.has_pending(), back.next_pending()), (false, Ok(None)));
    back.unmask(bound).unwrap();
    assert_eq!(back.next_pending(), Ok(Some(bound)));
    back.unmask(bound).unwrap();
    assert_eq!(back.next_pending(), Ok(None));
    // Another descriptor of the same domain has no part in it.
    front.notify(port).unwrap();
    assert_eq!(bystander.next_pending(), Ok(None));
    let refused = |op| Error::Event {
        op,
        dom: dom0.id(),
        port: bound,
        errno: Errno::EINVAL,
    };
    assert_eq!(bystander.notify(bound), Err(refused("EVTCHNOP_send")));
    assert_eq!(bystander.close(bound), Err(refused("EVTCHNOP_close")));
    assert_eq!(bystander.unmask(bound), Err(refused("EVTCHNOP_unmask")));
    drop((front, back));
    world.assert_nothing_left();
}

#[test]
fn ports_bind_by_the_rules() {
    let world = World::new();
    let (dom0, guest, other) = (world.dom0(), world.create_domain(), world.create_domain());
    let (front, back, theirs) = (guest.events(), dom0.events(), other.events());
    let port = front.alloc_unbound(dom0.id()).unwrap();
    let bind = |who: &xen_fake::Events, dom, port| match who.bind_interdomain(dom, port) {
        Ok(_) => None,
        Err(Error::Event { errno, .. }) => Some(errno),
        Err(error) => panic!("{error}"),
    };
    assert_eq!(bind(&back, DomId(99), port), Some(Errno::ESRCH));
    assert_eq!(bind(&back, guest.id(), Port(77)), Some(Errno::EINVAL));
    assert_eq!(bind(&theirs, guest.id(), port), Some(Errno::EINVAL));
    let bound = back.bind_interdomain(guest.id(), port).unwrap();
    assert_eq!(bind(&back, guest.id(), port), Some(Errno::EINVAL));
    // Closing one end leaves the other unbound, for the same domain: a new process of it can bind again.
    back.close(bound).unwrap();
    front.notify(port).unwrap();
    assert_eq!(bind(&theirs, guest.id(), port), Some(Errno::EINVAL));
    assert_eq!(bind(&back, guest.id(), port), None);
    // A closed port is free.
    front.close(port).unwrap();
    assert_eq!(bind(&back, guest.id(), port), Some(Errno::EINVAL));
    assert_eq!(front.alloc_unbound(dom0.id()), Ok(port));
}

#[test]
fn who_fired_first_is_taken_first() {
    let world = World::new();
    let (dom0, guest) = (world.dom0(), world.create_domain());
    let (front, back) = (guest.events(), dom0.events());
    let pairs = [(); 3].map(|()| {
        let port = front.alloc_unbound(dom0.id()).unwrap();
        (port, back.bind_interdomain(guest.id(), port).unwrap())
    });
    for at in [2, 0, 1] {
        back.notify(pairs[at].1).unwrap();
    }
    for at in [2, 0, 1] {
        assert_eq!(front.next_pending(), Ok(Some(pairs[at].0)));
    }
}

#[test]
fn a_domains_death_leaves_its_peers_with_what_is_theirs() {
    let world = World::new();
    let (dom0, guest) = (world.dom0(), world.create_domain());
    let (front, back) = (guest.events(), dom0.events());
    let port = front.alloc_unbound(dom0.id()).unwrap();
    let bound = back.bind_interdomain(guest.id(), port).unwrap();
    let lease = Lease::fresh(&guest.grants(), dom0.id()).unwrap();
    lease.write::<u32>(0, 5);
    let mapping = dom0
        .foreign()
        .map(guest.id(), &[lease.gref()], ReadWrite)
        .unwrap();
    world.destroy_domain(guest.id());
    assert!(!world.is_alive(guest.id()));
    // The mapping lives on, as long as its owner wants.
    drop(lease);
    assert_eq!(mapping.read::<u32>(0), 5);
    // The port is unbound: events go nowhere.
    assert_eq!(back.notify(bound), Ok(()));
    assert_eq!(front.next_pending(), Ok(None));
    let gone = dom0
        .foreign()
        .map(guest.id(), &[GrantRef(1)], ReadOnly)
        .map(drop);
    assert_eq!(
        gone,
        Err(Error::MapGrant {
            dom: guest.id(),
            gref: GrantRef(1),
            status: -2
        })
    );
    assert_eq!(guest.grants().alloc_page().map(drop), Err(Error::NoGrants));
    assert_eq!(world.leftovers().len(), 2, "{:?}", world.leftovers());
    drop((mapping, front, back));
    world.assert_nothing_left();
}

#[test]
fn a_new_domain_has_what_a_toolstack_gives_it() {
    let world = World::new();
    let (dom0, guest) = (world.dom0(), world.create_domain());
    let (kernel, daemon) = (guest.events(), dom0.events());
    kernel.adopt(guest.store_port()).unwrap();
    assert!(guest.events().adopt(guest.store_port()).is_err());
    let bound = daemon
        .bind_interdomain(guest.id(), guest.store_port())
        .unwrap();
    daemon.notify(bound).unwrap();
    assert_eq!(kernel.next_pending(), Ok(Some(guest.store_port())));
    let foreign = dom0.foreign();
    let ring = foreign
        .map(guest.id(), &[guest.store_gref()], ReadWrite)
        .unwrap();
    ring.write::<u32>(2048, 9);
    assert_eq!(guest.store_page().read::<u32>(2048), 9);
    assert_eq!(guest.console_page().read::<u32>(2048), 0);
    drop((ring, kernel, daemon));
    world.assert_nothing_left();
}

#[test]
fn a_domains_end_is_told() {
    let world = World::new();
    let (guest, events) = (world.create_domain(), world.dom0().events());
    let port = events.bind_dom_exc().unwrap();
    assert!(events.bind_dom_exc().is_err() && guest.events().bind_dom_exc().is_err());
    for end in [
        |world: &World, dom| world.shut_down(dom, ShutdownReason::Poweroff),
        |world: &World, dom| world.destroy_domain(dom),
    ] {
        assert_eq!(events.next_pending(), Ok(None));
        end(&world, guest.id());
        assert_eq!(events.next_pending(), Ok(Some(port)));
        events.unmask(port).unwrap();
    }
    assert!(events.notify(port).is_err());
}

#[test]
fn time_passes_when_told() {
    let clock = World::new().clock();
    assert_eq!((clock.now_ns(), clock.now_ns()), (0, 0));
    clock.advance_ns(10);
    clock.set_tick_ns(3);
    assert_eq!((clock.now_ns(), clock.now_ns()), (10, 13));
}

#[test]
fn a_seed_is_a_run() {
    let run = |seed| {
        let order = std::cell::RefCell::new(Vec::new());
        let actor = |name: &'static str| {
            let mut left = 4;
            let order = &order;
            move || {
                order.borrow_mut().push(name);
                left -= 1;
                if left == 0 {
                    Step::Done
                } else {
                    Step::Progress
                }
            }
        };
        let mut actors = [Actor::new("a", actor("a")), Actor::new("b", actor("b"))];
        Schedule::new(seed).run(&mut actors, 100).unwrap();
        drop(actors);
        order.into_inner()
    };
    assert_eq!(run(1), run(1));
    assert!((2..20).any(|seed| run(seed) != run(1)));
}

#[test]
fn a_run_that_cannot_end_says_so() {
    let mut idle = [
        Actor::new("waits", || Step::Idle),
        Actor::server("serves", || Step::Idle),
    ];
    let stuck = Schedule::new(5).run(&mut idle, 1000).unwrap_err();
    assert!(stuck.idle && stuck.seed == 5 && stuck.waiting == ["waits"]);
    let mut busy = [Actor::new("spins", || Step::Progress)];
    let stuck = Schedule::new(5).run(&mut busy, 50).unwrap_err();
    assert!(!stuck.idle && stuck.steps == 50, "{stuck}");
}
