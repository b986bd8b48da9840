//! Dom0's device nodes: each promise of the traits that daemons and toolstack are built on.

use std::sync::atomic::Ordering;

use scenarios::{OrStop, Outcome, demand, demand_eq};
use xen_dom0::{Events, Grants, Hypervisor, StoreNode, preflight};
use xen_hal::{
    AccessMode, CopyBuffer, CreateDomain, DomainControl, Error, EventChannels, ForeignGrants,
    GrantCopy, ShutdownReason,
};
use xen_ring::{SharedMemory, SharedMemoryExt};
use xen_sys::grant_table::GrantStatus;
use xen_sys::io::xs_wire::StorePage;
use xen_sys::{DomId, GrantRef, Mfn, Pfn};

use crate::real::host::Host;

const UUID: [u8; 16] = *b"device nodes ...";
/// A few large extents and a rest of single pages.
const PAGES: u64 = 1024 + 5;

/// Hypercalls, event channels, the store's node, and a domain that never runs.
pub fn all(host: &Host) -> Outcome {
    preflight().or_broken("look at dom0")?;
    let xen = Hypervisor::open()?;
    host.step(format!("Xen {:?}", xen.release()));
    the_host(&xen)?;
    host.step("event channels");
    event_channels()?;
    host.step("the store's node");
    store_node()?;
    host.step("a domain that never runs");
    let dom = xen.create(None, &spec())?;
    let result = in_domain(&xen, dom);
    let destroyed = xen.destroy(dom);
    result?;
    destroyed?;
    demand!(xen.info(dom)?.is_none(), "{dom} is there after destroy");
    let error = xen.destroy(dom).err().or_fail("destroyed twice")?;
    demand!(error.to_string().contains("ESRCH"), "{error}");
    Ok(())
}

fn spec() -> CreateDomain {
    CreateDomain {
        uuid: UUID,
        max_vcpus: 1,
        max_event_channels: 1023,
        max_grant_frames: 4,
        max_maptrack_frames: 0,
        max_grant_version: 1,
        cpupool: 0,
    }
}

fn the_host(xen: &Hypervisor) -> Outcome {
    let host = xen.host()?;
    demand!(host.capabilities.contains("xen-3.0-x86_64"), "{host:?}");
    demand!(
        host.free_pages < host.total_pages && host.cpus > 0 && host.cpu_khz > 0,
        "{host:?}"
    );
    demand!(!host.scheduler.starts_with("unknown"), "{host:?}");
    let log = xen.console_log(1 << 20, false)?;
    demand!(!log.is_empty(), "the hypervisor's log is empty");
    demand_eq!(xen.console_log(10, false)?, log[..10], "the oldest bytes");
    let list = xen.list()?;
    let first = list.first().or_fail("no domain is listed")?;
    demand_eq!(first.dom, DomId::DOM0, "the first domain");
    demand!(first.flags.running && first.total_pages > 0, "{first:?}");
    demand!(xen.info(DomId(32_000))?.is_none(), "nobody has a state");
    Ok(())
}

/// A channel with ourselves: fires, is silent until unmasked, is closed.
fn event_channels() -> Outcome {
    let (one, two) = (Events::open()?, Events::open()?);
    let there = one.alloc_unbound(DomId::DOM0)?;
    let here = two.bind_interdomain(DomId::DOM0, there)?;
    // Binding raises both ends.
    while let Some(port) = one.next_pending()? {
        one.unmask(port)?;
    }
    two.notify(here)?;
    demand_eq!(one.next_pending()?, Some(there), "after an event");
    two.notify(here)?;
    demand_eq!(one.next_pending()?, None, "while masked");
    one.unmask(there)?;
    demand_eq!(one.next_pending()?, Some(there), "after unmasking");
    two.close(here)?;
    let error = two.notify(here).err().or_fail("a closed port notifies")?;
    demand!(matches!(error, Error::Event { .. }), "{error}");
    Ok(())
}

fn store_node() -> Outcome {
    let node = StoreNode::open()?;
    demand!(node.port.0 > 0, "the kernel has no port for the store");
    let word = |offset| node.page.load_u32(offset, Ordering::Acquire);
    let (cons, prod) = (
        word(std::mem::offset_of!(StorePage, req_cons)),
        word(std::mem::offset_of!(StorePage, req_prod)),
    );
    let used = prod.wrapping_sub(cons);
    demand!(used <= 1024, "this is no store ring: {cons} to {prod}");
    Ok(())
}

fn in_domain(xen: &Hypervisor, dom: DomId) -> Outcome {
    xen.set_max_vcpus(dom, 1)?;
    xen.set_max_mem(dom, (PAGES + 256) * 4)?;
    xen.set_tsc_mode(dom, 0)?;
    xen.set_default_cpu_policy(dom)?;
    xen.set_address_size(dom, 64)?;
    let state = || xen.info(dom)?.or_fail("the domain has no state");

    xen.claim_pages(dom, PAGES)?;
    demand_eq!(state()?.outstanding_pages, PAGES, "claimed");
    let frames = xen.populate(dom, Pfn(0), PAGES, 9)?;
    xen.claim_pages(dom, 0)?;
    demand_eq!(frames.len() as u64, PAGES, "populated");
    let info = state()?;
    demand_eq!(info.total_pages, PAGES, "owned");
    demand_eq!(info.outstanding_pages, 0, "still claimed");
    demand_eq!(info.uuid, UUID, "the UUID");
    demand!(info.flags.paused, "{info:?}");
    let error = xen.populate(dom, Pfn(PAGES), 1024, 0);
    demand!(error.is_err(), "populated beyond the limit");

    let window = xen.map_frames(dom, &frames[1020..1026])?;
    demand_eq!(window.len(), 6 * 4096, "mapped");
    window.zero();
    window.write_bytes(4096 + 7, b"hello");
    let shared_info = xen.map_frames(dom, &[info.shared_info_frame])?;
    demand_eq!(shared_info.read::<u64>(2048), 0, "pending events");
    let absent = xen.map_frames(dom, &[frames[0], Mfn(!0 >> 12)]);
    demand!(absent.is_err(), "a frame that is not there was mapped");

    let port = xen.alloc_unbound(dom, DomId::DOM0)?;
    let events = Events::open()?;
    events.bind_interdomain(dom, port)?;
    let again = events.bind_interdomain(dom, port);
    demand!(again.is_err(), "a port was bound twice");

    xen.seed_grants(
        dom,
        &[
            (GrantRef(0), DomId::DOM0, frames[1021]),
            (GrantRef(1), DomId::DOM0, frames[1022]),
        ],
    )?;
    let grants = Grants::open()?;
    mapped_grants(&grants, dom)?;
    copied_grants(&grants, dom)?;

    xen.pause(dom)?;
    xen.unpause(dom)?;
    // Last: from now on a supervisor may remove the domain.
    xen.remote_shutdown(dom, ShutdownReason::Poweroff)?;
    let reason = state()?.shutdown_reason;
    demand_eq!(reason, Some(ShutdownReason::Poweroff), "the reason");
    Ok(())
}

fn mapped_grants(grants: &Grants, dom: DomId) -> Outcome {
    let both = grants.map(dom, &[GrantRef(0), GrantRef(1)], AccessMode::ReadWrite)?;
    demand_eq!(both.read::<[u8; 5]>(7), *b"hello", "grant 0");
    both.write_bytes(4096, b"world");
    let read_only = grants.map(dom, &[GrantRef(1)], AccessMode::ReadOnly)?;
    demand_eq!(read_only.read::<[u8; 5]>(0), *b"world", "grant 1");
    // (what is mapped, which of it the error must name, why)
    for (refs, named, status) in [
        ([0, 9], 9, GrantStatus::GENERAL_ERROR),
        ([100_000, 1], 100_000, GrantStatus::BAD_GNTREF),
    ] {
        let refused = grants.map(dom, &refs.map(GrantRef), AccessMode::ReadWrite);
        let expected = Error::MapGrant {
            dom,
            gref: GrantRef(named),
            status: status.0,
        };
        demand_eq!(refused.err(), Some(expected), "mapping {refs:?}");
    }
    Ok(())
}

fn copied_grants(grants: &Grants, dom: DomId) -> Outcome {
    let piece = |gref, offset, local| GrantCopy {
        gref: GrantRef(gref),
        offset,
        local,
        status: 1,
    };
    let (mut read, mut absent, mut beyond) = ([0; 5], [0; 5], [0; 5]);
    let mut pieces = [
        piece(1, 0, CopyBuffer::FromGrant(&mut read)),
        piece(0, 4090, CopyBuffer::ToGrant(b"copied")),
        piece(9, 0, CopyBuffer::FromGrant(&mut absent)),
        piece(100_000, 0, CopyBuffer::FromGrant(&mut beyond)),
        piece(0, 4095, CopyBuffer::ToGrant(b"xx")),
        piece(0, 4096, CopyBuffer::ToGrant(b"")),
    ];
    grants.copy(dom, &mut pieces)?;
    let statuses = pieces.map(|piece| GrantStatus(piece.status));
    let expected = [
        GrantStatus::OKAY,
        GrantStatus::OKAY,
        GrantStatus::GENERAL_ERROR,
        GrantStatus::BAD_GNTREF,
        GrantStatus::BAD_COPY_ARG,
        GrantStatus::OKAY,
    ];
    demand_eq!(statuses, expected, "the copies' statuses");
    demand_eq!(&read, b"world", "copied from grant 1");
    let page = grants.map(dom, &[GrantRef(0)], AccessMode::ReadOnly)?;
    demand_eq!(page.read::<[u8; 6]>(4090), *b"copied", "copied to grant 0");
    Ok(())
}
