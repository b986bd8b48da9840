//! Grants to ourselves: mapped, read, written, refused while mapped, quarantined, given back.

use alloc::string::String;
use alloc::vec::Vec;

use pvguest::Guest;
use pvguest::hypercall::grant_operation;
use pvguest::memory::Window;
use pvguest::xen_hal::{AccessMode, Error, GrantTable, Lease};
use pvguest::xen_sys::grant_table::{
    GNTTABOP_MAP_GRANT_REF, GNTTABOP_UNMAP_GRANT_REF, GrantStatus, MapFlags, MapGrantRef,
    UnmapGrantRef,
};
use pvguest::xen_sys::{DomId, GrantRef, Plain};
use xen_ring::SharedMemoryExt;

use crate::{Test, demand};

pub(crate) const TESTS: &[Test] = &[
    ("a granted page is mapped and shared", shared),
    ("a read-only grant is not mapped for writing", read_only),
    ("a grant does not end while it is mapped", in_use),
    ("a lease dropped while mapped is quarantined", quarantine),
    ("all entries can be used and come back", exhaustion),
    ("an unknown grant is refused", unknown),
];

fn text(error: Error) -> String {
    use alloc::string::ToString;
    error.to_string()
}

/// Maps a grant of ours at the window; the handle.
fn map(guest: &Guest, window: &Window, gref: GrantRef, writable: bool) -> Result<u32, GrantStatus> {
    let mut flags = MapFlags::HOST_MAP;
    if !writable {
        flags |= MapFlags::READONLY;
    }
    let mut op = MapGrantRef {
        host_addr: window.address(),
        flags: flags.bits(),
        gref,
        dom: own(guest),
        ..Plain::ZERO
    };
    // SAFETY: the window is an address that is kept for mapping grants.
    unsafe { grant_operation(GNTTABOP_MAP_GRANT_REF, &mut op) }
        .map_err(|_| GrantStatus::GENERAL_ERROR)?;
    match op.status.is_okay() {
        true => Ok(op.handle),
        false => Err(op.status),
    }
}

fn unmap(window: &Window, handle: u32) -> GrantStatus {
    let mut op = UnmapGrantRef {
        host_addr: window.address(),
        handle,
        ..Plain::ZERO
    };
    // SAFETY: the window was mapped by `map` and nobody refers to it any more.
    match unsafe { grant_operation(GNTTABOP_UNMAP_GRANT_REF, &mut op) } {
        Ok(()) => op.status,
        Err(_) => GrantStatus::GENERAL_ERROR,
    }
}

fn own(guest: &Guest) -> DomId {
    guest.domid().unwrap_or(DomId::DOM0)
}

fn shared(guest: &Guest) -> Result<(), String> {
    let lease = Lease::fresh(&guest.grants().map_err(text)?, own(guest)).map_err(text)?;
    lease.write_bytes(100, b"from the owner");
    let window = Window::take().ok_or("the window is in use")?;
    let handle = map(guest, &window, lease.gref(), true).map_err(|s| alloc::format!("{s}"))?;
    let mut seen = [0; 14];
    window.memory().read_bytes(100, &mut seen);
    demand!(&seen == b"from the owner", "the mapping shows {seen:?}");
    window.memory().write_bytes(4000, b"from the peer");
    let mut seen = [0; 13];
    lease.read_bytes(4000, &mut seen);
    demand!(&seen == b"from the peer", "the owner sees {seen:?}");
    let status = unmap(&window, handle);
    demand!(status.is_okay(), "unmapping: {status}");
    demand!(lease.end().is_ok(), "the grant does not end");
    Ok(())
}

fn read_only(guest: &Guest) -> Result<(), String> {
    let grants = guest.grants().map_err(text)?;
    let page = grants.alloc_page().map_err(text)?;
    let lease = Lease::new(&grants, own(guest), page, AccessMode::ReadOnly)
        .map_err(|(error, _)| text(error))?;
    let window = Window::take().ok_or("the window is in use")?;
    let refused = map(guest, &window, lease.gref(), true);
    demand!(refused.is_err(), "mapped for writing");
    let handle = map(guest, &window, lease.gref(), false).map_err(|s| alloc::format!("{s}"))?;
    // SAFETY: a page of ours that nothing relies on.
    let trap = unsafe { pvguest::traps::probe_write(window.address()) };
    demand!(trap.is_err(), "a read-only mapping was written");
    let status = unmap(&window, handle);
    demand!(status.is_okay(), "unmapping: {status}");
    Ok(())
}

fn in_use(guest: &Guest) -> Result<(), String> {
    let lease = Lease::fresh(&guest.grants().map_err(text)?, own(guest)).map_err(text)?;
    let window = Window::take().ok_or("the window is in use")?;
    let handle = map(guest, &window, lease.gref(), true).map_err(|s| alloc::format!("{s}"))?;
    let Err(lease) = lease.end() else {
        return Err("it ended while it was mapped".into());
    };
    let status = unmap(&window, handle);
    demand!(status.is_okay(), "unmapping: {status}");
    demand!(lease.end().is_ok(), "it does not end after unmapping");
    Ok(())
}

fn quarantine(guest: &Guest) -> Result<(), String> {
    let grants = guest.grants().map_err(text)?;
    let before = grants.counts();
    let lease = Lease::fresh(&grants, own(guest)).map_err(text)?;
    let window = Window::take().ok_or("the window is in use")?;
    let handle = map(guest, &window, lease.gref(), true).map_err(|s| alloc::format!("{s}"))?;
    drop(lease);
    demand!(grants.counts().1 == before.1 + 1, "it is not in quarantine");
    // As long as it is mapped, no new page is this page.
    let others: Vec<_> = (0..20).filter_map(|_| grants.alloc_page().ok()).collect();
    for (number, page) in others.iter().enumerate() {
        page.write_bytes(0, &[number as u8 + 1]);
    }
    let mut byte = [0];
    window.memory().read_bytes(0, &mut byte);
    demand!(byte == [0], "a page in quarantine was handed out again");
    let status = unmap(&window, handle);
    demand!(status.is_okay(), "unmapping: {status}");
    drop(others);
    drop(grants.alloc_page().map_err(text)?);
    demand!(
        grants.counts() == before,
        "{:?} is left, {before:?} was",
        grants.counts()
    );
    Ok(())
}

fn exhaustion(guest: &Guest) -> Result<(), String> {
    let grants = guest.grants().map_err(text)?;
    let before = grants.counts();
    let page = grants.alloc_page().map_err(text)?;
    let mut all = Vec::new();
    let error = loop {
        match grants.grant(own(guest), &page, AccessMode::ReadOnly) {
            Ok(gref) => all.push(gref),
            Err(error) => break error,
        }
    };
    demand!(error == Error::NoGrants, "the last one gives {error}");
    demand!(
        all.len() == before.0 && all.len() >= 500,
        "{} entries",
        all.len()
    );
    demand!(
        all.iter().all(|gref| gref.0 >= 8),
        "a reserved entry was used"
    );
    for gref in all {
        grants.end(gref).map_err(text)?;
    }
    demand!(grants.counts() == before, "{:?} is left", grants.counts());
    Ok(())
}

fn unknown(guest: &Guest) -> Result<(), String> {
    let window = Window::take().ok_or("the window is in use")?;
    for gref in [GrantRef(9), GrantRef(u32::MAX)] {
        let refused = map(guest, &window, gref, true);
        demand!(refused.is_err(), "{gref} was mapped");
    }
    Ok(())
}
