//! What a toolstack may and may not do, as Xen has it.

use xen_fake::{Call, Control, World};
use xen_hal::{
    CreateDomain, DomainControl, Error, EventChannels, ForeignGrants, ShutdownReason, VcpuStart,
};
use xen_ring::SharedMemoryExt;
use xen_sys::{DomId, Errno, GrantRef, Mfn, Pfn, VcpuId};

const PRESENT_WRITABLE: u64 = 3;
const PRESENT: u64 = 1;

fn spec() -> CreateDomain {
    CreateDomain {
        uuid: [7; 16],
        max_vcpus: 1,
        max_event_channels: -1,
        max_grant_frames: -1,
        max_maptrack_frames: -1,
        max_grant_version: 1,
        cpupool: 0,
    }
}

fn errno<T: std::fmt::Debug>(result: xen_hal::Result<T>) -> Errno {
    match result {
        Err(Error::Hypercall { errno, .. }) => errno,
        other => panic!("{other:?}"),
    }
}

/// A domain of 8 pages: 0 to 3 are tables of level 4 to 1 that map address 0 onwards to pages 3 to 7.
fn build(control: &Control, table_entry: u64) -> (DomId, Vec<Mfn>) {
    let dom = control.create(None, &spec()).unwrap();
    control.set_max_vcpus(dom, 1).unwrap();
    control.set_max_mem(dom, 8 * 4).unwrap();
    control.set_address_size(dom, 64).unwrap();
    control.claim_pages(dom, 8).unwrap();
    let frames = control.populate(dom, Pfn(0), 8, 9).unwrap();
    control.claim_pages(dom, 0).unwrap();
    let memory = control.map_frames(dom, &frames).unwrap();
    for level in 0..3 {
        let below = frames[level + 1].0 << 12;
        memory.write::<u64>(level * 4096, below | PRESENT_WRITABLE);
    }
    memory.write::<u64>(3 * 4096, frames[3].0 << 12 | table_entry);
    for (index, frame) in frames.iter().enumerate().skip(4) {
        let entry = frame.0 << 12 | PRESENT_WRITABLE;
        memory.write::<u64>(3 * 4096 + (index - 3) * 8, entry);
    }
    (dom, frames)
}

#[test]
fn a_domain_is_built_and_runs() {
    let world = World::new();
    let control = world.control();
    let (dom, frames) = build(&control, PRESENT);
    let start = VcpuStart {
        rip: 0x1000,
        rsp: 0x5000,
        rsi: 0x2000,
        l4: frames[0],
    };
    assert_eq!(
        errno(control.start_vcpu(dom, VcpuId(0), &start)),
        Errno::EINVAL
    );
    control.pin_l4(dom, frames[0]).unwrap();
    control.start_vcpu(dom, VcpuId(0), &start).unwrap();
    assert_eq!(control.translate(dom, 0x1234), Some((frames[4], true)));
    assert_eq!(control.translate(dom, 0x0), Some((frames[3], false)));
    assert_eq!(control.translate(dom, 0x5000), None);
    assert_eq!(control.frame(dom, Pfn(5)), Some(frames[5]));
    control
        .seed_grants(dom, &[(GrantRef(1), DomId::DOM0, frames[5])])
        .unwrap();
    let port = control.alloc_unbound(dom, DomId::DOM0).unwrap();
    control.unpause(dom).unwrap();

    let info = control.info(dom).unwrap().unwrap();
    assert_eq!(
        (info.total_pages, info.outstanding_pages, info.max_pages),
        (8, 0, 8)
    );
    assert_eq!((info.flags.paused, info.uuid), (false, [7; 16]));
    // The store's daemon connects as to any guest.
    let daemon = world.dom0().events();
    daemon.bind_interdomain(dom, port).unwrap();
    let ring = world
        .dom0()
        .foreign()
        .map(dom, &[GrantRef(1)], xen_hal::AccessMode::ReadWrite);
    ring.unwrap().write::<u32>(0, 77);
    assert_eq!(world.domain(dom).unwrap().store_page().read::<u32>(0), 77);

    world.shut_down(dom, ShutdownReason::Crash);
    let info = control.info(dom).unwrap().unwrap();
    assert_eq!(info.shutdown_reason, Some(ShutdownReason::Crash));
    control.destroy(dom).unwrap();
    assert_eq!(control.info(dom), Ok(None));
    assert_eq!(errno(control.destroy(dom)), Errno::ESRCH);
    drop(daemon);
    world.assert_nothing_left();
}

#[test]
fn tables_that_xen_refuses_are_not_pinned() {
    let world = World::new();
    let control = world.control();
    let (dom, frames) = build(&control, PRESENT_WRITABLE);
    let refused = |why: &str| {
        assert_eq!(errno(control.pin_l4(dom, frames[0])), Errno::EINVAL);
        let said = world.refusals().pop().unwrap();
        assert!(said.contains(why), "{said}");
    };
    refused("mapped writable");
    let memory = control.map_frames(dom, &frames).unwrap();
    memory.write::<u64>(3 * 4096, frames[3].0 << 12 | PRESENT);
    refused("still has table");
    memory.write::<u64>(3 * 4096 + 511 * 8, 0x1234_5000 | PRESENT);
    refused("not the domain's");
    memory.write::<u64>(3 * 4096 + 511 * 8, 0);
    memory.write::<u64>(2 * 4096 + 8, frames[0].0 << 12 | PRESENT_WRITABLE);
    refused("level");
    memory.write::<u64>(2 * 4096 + 8, frames[7].0 << 12 | PRESENT_WRITABLE | 1 << 7);
    refused("large page");
    memory.write::<u64>(2 * 4096 + 8, 0);
    drop(memory);
    control.pin_l4(dom, frames[0]).unwrap();
    // From now on nobody maps a table.
    assert_eq!(errno(control.map_frames(dom, &frames[..1])), Errno::EINVAL);
    assert!(control.map_frames(dom, &frames[4..]).is_ok());
}

#[test]
fn memory_is_counted() {
    let world = World::new();
    world.set_memory_pages(100);
    let control = world.control();
    let dom = control.create(None, &spec()).unwrap();
    control.set_max_mem(dom, 90 * 4).unwrap();
    assert_eq!(errno(control.claim_pages(dom, 91)), Errno::EINVAL);
    control.claim_pages(dom, 80).unwrap();
    let host = control.host().unwrap();
    assert_eq!((host.free_pages, host.outstanding_pages), (100, 80));
    let other = control.create(None, &spec()).unwrap();
    control.set_max_mem(other, 90 * 4).unwrap();
    assert_eq!(errno(control.claim_pages(other, 21)), Errno::ENOMEM);
    assert_eq!(errno(control.populate(other, Pfn(0), 21, 0)), Errno::ENOMEM);
    assert_eq!(control.populate(dom, Pfn(0), 80, 0).unwrap().len(), 80);
    assert_eq!(errno(control.populate(dom, Pfn(80), 11, 0)), Errno::ENOMEM);
    assert_eq!(control.host().unwrap().free_pages, 20);
    control.destroy(dom).unwrap();
    assert_eq!(control.host().unwrap().free_pages, 100);
    assert_eq!(world.leftovers().len(), 1);
}

#[test]
fn every_call_can_fail() {
    let world = World::new();
    let control = world.control();
    world
        .faults()
        .fail_nth(Call::Control("XEN_DOMCTL_max_mem"), 1);
    let dom = control.create(None, &spec()).unwrap();
    assert_eq!(errno(control.set_max_mem(dom, 4)), Errno::ENOMEM);
    assert_eq!(control.set_max_mem(dom, 4), Ok(()));
    let before = world.faults().count(Call::AnyControl);
    world.faults().fail_nth(Call::AnyControl, 2);
    control.pause(dom).unwrap();
    assert_eq!(errno(control.unpause(dom)), Errno::ENOMEM);
    assert_eq!(world.faults().count(Call::AnyControl), before + 2);
    assert_eq!(errno(control.create(Some(dom), &spec())), Errno::EEXIST);
    assert_eq!(
        errno(control.create(Some(DomId::DOM0), &spec())),
        Errno::EINVAL
    );
    assert_eq!(errno(control.unpause(DomId(99))), Errno::ESRCH);
}
