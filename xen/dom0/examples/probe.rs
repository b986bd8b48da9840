//! Shows that the device nodes do on real Xen what the traits promise: run it in a dom0.
//!
//! Each step prints a line; the first that fails ends it with status 1.

use std::error::Error;
use std::process::ExitCode;

use xen_dom0::{Events, Grants, Hypervisor, StoreNode, preflight};
use xen_hal::{
    AccessMode, CopyBuffer, CreateDomain, DomainControl, EventChannels, ForeignGrants, GrantCopy,
    ShutdownReason,
};
use xen_ring::{SharedMemory, SharedMemoryExt};
use xen_sys::{DomId, GrantRef, Mfn, Pfn};

type Step = Result<String, Box<dyn Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    preflight()?;
    let xen = Hypervisor::open()?;
    println!("release: {:?}", xen.release());
    step("host", host(&xen))?;
    step("log", log(&xen))?;
    step("events", events())?;
    step("store node", store_node())?;
    step("domain", domain(&xen))?;
    step("another domain", domain(&xen))?;
    step("list", list(&xen))?;
    Ok(())
}

fn step(name: &str, result: Step) -> Result<(), Box<dyn Error>> {
    match result {
        Ok(text) => {
            println!("{name}: {text}");
            Ok(())
        }
        Err(error) => Err(format!("{name}: {error}").into()),
    }
}

fn host(xen: &Hypervisor) -> Step {
    Ok(format!("{:#?}", xen.host()?))
}

fn log(xen: &Hypervisor) -> Step {
    let log = xen.console_log(1 << 20, false)?;
    ensure(!log.is_empty(), "the log is empty")?;
    let text = String::from_utf8_lossy(&log);
    Ok(format!(
        "{} bytes, first line {:?}",
        log.len(),
        text.lines().next()
    ))
}

/// A channel with ourselves: fired, masked until unmasked, closed.
fn events() -> Step {
    let (one, two) = (Events::open()?, Events::open()?);
    let there = one.alloc_unbound(DomId::DOM0)?;
    let here = two.bind_interdomain(DomId::DOM0, there)?;
    // Binding may itself raise both ends once.
    while let Some(port) = one.next_pending()? {
        one.unmask(port)?;
    }
    two.notify(here)?;
    ensure(one.next_pending()? == Some(there), "the event has not come")?;
    two.notify(here)?;
    ensure(one.next_pending()?.is_none(), "a masked port fired")?;
    one.unmask(there)?;
    ensure(
        one.next_pending()? == Some(there),
        "unmasking lost the event",
    )?;
    two.close(here)?;
    let error = two.notify(here).expect_err("a closed port notifies");
    Ok(format!("ports {there} and {here}; after close: {error}"))
}

fn store_node() -> Step {
    let node = StoreNode::open()?;
    let index = node
        .page
        .load_u32(2048, std::sync::atomic::Ordering::Acquire);
    Ok(format!("port {}, req_cons {index}", node.port))
}

/// An empty domain: made, given memory, mapped, granted from, shut down, destroyed.
fn domain(xen: &Hypervisor) -> Step {
    let before = xen.host()?.free_pages;
    let spec = CreateDomain {
        uuid: *b"xen-dom0 probe..",
        max_vcpus: 1,
        max_event_channels: 1023,
        max_grant_frames: 4,
        max_maptrack_frames: 0,
        max_grant_version: 1,
        cpupool: 0,
    };
    let dom = xen.create(None, &spec)?;
    let result = in_domain(xen, dom);
    xen.destroy(dom)?;
    let text = result?;
    ensure(xen.info(dom)?.is_none(), "the domain is still there")?;
    ensure(
        xen.info(DomId(dom.0.wrapping_sub(1)))?
            .is_none_or(|info| info.dom != dom),
        "wrong echo",
    )?;
    let after = xen.host()?.free_pages;
    Ok(format!("{text}; free pages before {before}, after {after}"))
}

fn in_domain(xen: &Hypervisor, dom: DomId) -> Step {
    const PAGES: u64 = 1024 + 5;
    xen.set_max_vcpus(dom, 1)?;
    xen.set_max_mem(dom, (PAGES + 256) * 4)?;
    xen.set_tsc_mode(dom, 0)?;
    xen.set_default_cpu_policy(dom)?;
    xen.set_address_size(dom, 64)?;
    xen.claim_pages(dom, PAGES)?;
    let claimed = xen.info(dom)?.ok_or("no such domain")?.outstanding_pages;
    let frames = xen.populate(dom, Pfn(0), PAGES, 9)?;
    xen.claim_pages(dom, 0)?;
    ensure(claimed == PAGES, "the claim is not seen")?;
    ensure(frames.len() as u64 == PAGES, "too few frames")?;
    let info = xen.info(dom)?.ok_or("no such domain")?;
    ensure(
        info.total_pages == PAGES && info.uuid == *b"xen-dom0 probe..",
        "wrong info",
    )?;

    let window = xen.map_frames(dom, &frames[1020..1026])?;
    ensure(window.len() == 6 * 4096, "wrong size")?;
    window.zero();
    window.write_bytes(4096 + 7, b"hello");
    let shared = xen.map_frames(dom, &[info.shared_info_frame])?;
    ensure(shared.read::<u64>(2048) == 0, "events are pending")?;
    let bad = xen.map_frames(dom, &[frames[0], Mfn(!0 >> 12)]);
    let bad = bad.err().ok_or("a frame that is not there was mapped")?;

    let port = xen.alloc_unbound(dom, DomId::DOM0)?;
    let events = Events::open()?;
    let local = events.bind_interdomain(dom, port)?;

    let (first, second) = (frames[1021], frames[1022]);
    let seeds = [
        (GrantRef(0), DomId::DOM0, first),
        (GrantRef(1), DomId::DOM0, second),
    ];
    xen.seed_grants(dom, &seeds)?;
    let grants = Grants::open()?;
    let both = grants.map(dom, &[GrantRef(0), GrantRef(1)], AccessMode::ReadWrite)?;
    let mut five = [0; 5];
    both.read_bytes(7, &mut five);
    ensure(&five == b"hello", "the grant shows another page")?;
    both.write_bytes(4096, b"world");
    let read_only = grants.map(dom, &[GrantRef(1)], AccessMode::ReadOnly)?;
    read_only.read_bytes(0, &mut five);
    ensure(&five == b"world", "the read-only map shows another page")?;
    let refused = grants.map(dom, &[GrantRef(0), GrantRef(9)], AccessMode::ReadWrite);
    let refused = refused.err().ok_or("an absent grant was mapped")?;

    let mut read = [0; 5];
    let (mut absent, mut beyond) = ([0; 5], [0; 5]);
    let mut pieces = [
        piece(1, 0, CopyBuffer::FromGrant(&mut read)),
        piece(0, 100, CopyBuffer::ToGrant(b"copied")),
        piece(9, 0, CopyBuffer::FromGrant(&mut absent)),
        piece(100_000, 0, CopyBuffer::FromGrant(&mut beyond)),
        piece(0, 4095, CopyBuffer::ToGrant(b"xx")),
    ];
    grants.copy(dom, &mut pieces)?;
    let statuses: Vec<i16> = pieces.iter().map(|piece| piece.status).collect();
    ensure(
        statuses == [0, 0, -1, -3, -10],
        &format!("copy statuses {statuses:?}"),
    )?;
    ensure(&read == b"world", "copied another page")?;
    let mut six = [0; 6];
    both.read_bytes(100, &mut six);
    ensure(&six == b"copied", "the copy has not come")?;
    drop((both, read_only));

    xen.pause(dom)?;
    xen.unpause(dom)?;
    xen.remote_shutdown(dom, ShutdownReason::Crash)?;
    let info = xen.info(dom)?.ok_or("no such domain")?;
    ensure(
        info.shutdown_reason == Some(ShutdownReason::Crash),
        "no reason",
    )?;
    Ok(format!(
        "{dom}, port {port} bound as {local}; expected refusals: {bad}; {refused}"
    ))
}

fn piece(gref: u32, offset: u16, local: CopyBuffer<'_>) -> GrantCopy<'_> {
    GrantCopy {
        gref: GrantRef(gref),
        offset,
        local,
        status: 1,
    }
}

fn list(xen: &Hypervisor) -> Step {
    let list = xen.list()?;
    ensure(
        list.first().is_some_and(|info| info.dom == DomId::DOM0),
        "dom0 is missing",
    )?;
    Ok(format!("{list:?}"))
}

fn ensure(holds: bool, what: &str) -> Result<(), Box<dyn Error>> {
    if holds { Ok(()) } else { Err(what.into()) }
}
