//! Hypercalls by `syscall`: one function per operation that the kernel uses, with typed arguments.
//!
//! The raw call is unsafe; what is `pub` here is safe because its arguments are owned values or borrows
//! that outlive the call. Operations that change page tables are the paging module's.

use core::arch::asm;

use xen_sys::arch_x86::TrapInfo;
use xen_sys::event_channel as ev;
use xen_sys::grant_table as gnt;
use xen_sys::sched;
use xen_sys::version;
use xen_sys::xen::{self, MmuUpdate, hypercall as nr};
use xen_sys::{DomId, Errno, Plain, Port};

/// Makes a hypercall.
///
/// # Safety
/// The arguments must be what Xen's interface asks for; whatever memory they point to must be valid for
/// what Xen does with it during the call.
#[inline]
pub unsafe fn raw(number: u64, args: [u64; 4]) -> Result<u64, Errno> {
    let result: i64;
    // SAFETY: Xen keeps everything but rax, rcx and r11 (debug builds also clobber the arguments); what
    // it reads and writes through pointers is the caller's business.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            inlateout("rdi") args[0] => _,
            inlateout("rsi") args[1] => _,
            inlateout("rdx") args[2] => _,
            inlateout("r10") args[3] => _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    if result < 0 {
        Err(Errno(-result as i32))
    } else {
        Ok(result as u64)
    }
}

/// A hypercall of the form (operation, pointer to one argument).
///
/// # Safety
/// `argument` must be that operation's structure, and pointers within it valid for the operation.
unsafe fn operation<T: Plain>(number: u64, op: u32, argument: &mut T) -> Result<u64, Errno> {
    // SAFETY: the argument is borrowed for the length of the call; the rest is the caller's contract.
    unsafe {
        raw(
            number,
            [op.into(), (&raw mut *argument).addr() as u64, 0, 0],
        )
    }
}

/// Xen's version: major and minor (`XENVER_version`).
pub fn xen_version() -> (u16, u16) {
    // SAFETY: takes no argument.
    let version = unsafe { raw(nr::XEN_VERSION, [version::XENVER_VERSION.into(), 0, 0, 0]) };
    let version = version.unwrap_or(0) as u32;
    ((version >> 16) as u16, version as u16)
}

/// Writes to Xen's own console (`CONSOLEIO_write`); refused to a domU unless Xen is a debug build.
pub fn console_write(text: &[u8]) -> Result<(), Errno> {
    // SAFETY: Xen only reads the slice.
    unsafe {
        raw(
            nr::CONSOLE_IO,
            [
                xen::CONSOLEIO_WRITE.into(),
                text.len() as u64,
                text.as_ptr().addr() as u64,
                0,
            ],
        )
    }
    .map(drop)
}

/// Reads from Xen's own console (`CONSOLEIO_read`); how many bytes.
pub fn console_read(to: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: Xen writes at most the slice's length into the slice.
    unsafe {
        raw(
            nr::CONSOLE_IO,
            [
                xen::CONSOLEIO_READ.into(),
                to.len() as u64,
                to.as_mut_ptr().addr() as u64,
                0,
            ],
        )
    }
    .map(|len| (len as usize).min(to.len()))
}

/// Ends the domain (`SCHEDOP_shutdown`). Returns only if Xen refuses, which it does not.
pub fn shutdown(reason: u32) -> Result<(), Errno> {
    let mut argument = sched::Shutdown { reason };
    // SAFETY: the structure is the operation's.
    unsafe { operation(nr::SCHED_OP, sched::SCHEDOP_SHUTDOWN, &mut argument) }.map(drop)
}

/// Waits until one of `ports` (at most 128) is pending or `timeout_ns`, an absolute system time, has come
/// (0: never). May return early.
pub fn poll(ports: &[Port], timeout_ns: u64) -> Result<(), Errno> {
    let mut argument = sched::Poll {
        ports: ports.as_ptr().addr() as u64,
        nr_ports: ports.len() as u32,
        timeout: timeout_ns,
        ..Plain::ZERO
    };
    // SAFETY: Xen only reads the ports, which are borrowed for the length of the call.
    unsafe { operation(nr::SCHED_OP, sched::SCHEDOP_POLL, &mut argument) }.map(drop)
}

/// `EVTCHNOP_alloc_unbound` for ourselves.
pub fn alloc_unbound(remote: DomId) -> Result<Port, Errno> {
    let mut argument = ev::AllocUnbound {
        dom: DomId::SELF,
        remote_dom: remote,
        port: Port(0),
    };
    // SAFETY: the structure is the operation's.
    unsafe {
        operation(
            nr::EVENT_CHANNEL_OP,
            ev::EVTCHNOP_ALLOC_UNBOUND,
            &mut argument,
        )
    }?;
    Ok(argument.port)
}

/// `EVTCHNOP_bind_interdomain`.
pub fn bind_interdomain(remote: DomId, port: Port) -> Result<Port, Errno> {
    let mut argument = ev::BindInterdomain {
        remote_dom: remote,
        remote_port: port,
        ..Plain::ZERO
    };
    // SAFETY: the structure is the operation's.
    unsafe {
        operation(
            nr::EVENT_CHANNEL_OP,
            ev::EVTCHNOP_BIND_INTERDOMAIN,
            &mut argument,
        )
    }?;
    Ok(argument.local_port)
}

/// `EVTCHNOP_bind_virq` on vCPU 0.
pub fn bind_virq(virq: xen::Virq) -> Result<Port, Errno> {
    let mut argument = ev::BindVirq {
        virq: virq as u32,
        ..Plain::ZERO
    };
    // SAFETY: the structure is the operation's.
    unsafe { operation(nr::EVENT_CHANNEL_OP, ev::EVTCHNOP_BIND_VIRQ, &mut argument) }?;
    Ok(argument.port)
}

/// `EVTCHNOP_close`.
pub fn close(port: Port) -> Result<(), Errno> {
    let mut argument = ev::Close { port };
    // SAFETY: the structure is the operation's.
    unsafe { operation(nr::EVENT_CHANNEL_OP, ev::EVTCHNOP_CLOSE, &mut argument) }.map(drop)
}

/// `EVTCHNOP_send`.
pub fn send(port: Port) -> Result<(), Errno> {
    let mut argument = ev::Send { port };
    // SAFETY: the structure is the operation's.
    unsafe { operation(nr::EVENT_CHANNEL_OP, ev::EVTCHNOP_SEND, &mut argument) }.map(drop)
}

/// Current and greatest number of frames of our grant table (`GNTTABOP_query_size`).
pub fn grant_table_size() -> Result<(u32, u32), Errno> {
    let mut argument = gnt::QuerySize {
        dom: DomId::SELF,
        ..Plain::ZERO
    };
    // SAFETY: the structure is the operation's, one of it.
    unsafe { grant_operation(gnt::GNTTABOP_QUERY_SIZE, &mut argument) }?;
    Ok((argument.nr_frames, argument.max_nr_frames))
}

/// Grows our grant table to `frames.len()` frames and fills in which they are (`GNTTABOP_setup_table`).
pub fn grant_table_setup(frames: &mut [u64]) -> Result<gnt::GrantStatus, Errno> {
    let mut argument = gnt::SetupTable {
        dom: DomId::SELF,
        nr_frames: frames.len() as u32,
        frame_list: frames.as_mut_ptr().addr() as u64,
        ..Plain::ZERO
    };
    // SAFETY: Xen writes `nr_frames` frame numbers into the borrowed slice.
    unsafe { grant_operation(gnt::GNTTABOP_SETUP_TABLE, &mut argument) }?;
    Ok(argument.status)
}

/// One operation on grants.
///
/// # Safety
/// `argument` must be `op`'s structure; addresses in it must be valid for what Xen does with them.
pub unsafe fn grant_operation<T: Plain>(op: u32, argument: &mut T) -> Result<(), Errno> {
    let address = (&raw mut *argument).addr() as u64;
    // SAFETY: one structure, borrowed for the length of the call; the rest is the caller's contract.
    unsafe { raw(nr::GRANT_TABLE_OP, [op.into(), address, 1, 0]) }.map(drop)
}

/// Sets the virtual IDT; the last entry has address 0.
///
/// # Safety
/// Every handler must keep to the frame that Xen pushes.
pub(crate) unsafe fn set_trap_table(table: &[TrapInfo]) -> Result<(), Errno> {
    // SAFETY: Xen copies the table, up to the terminating entry.
    unsafe { raw(nr::SET_TRAP_TABLE, [table.as_ptr().addr() as u64, 0, 0, 0]) }.map(drop)
}

/// Replaces the page-table entry of a page of ours.
///
/// # Safety
/// Nothing may rely on what `address` maps now.
pub(crate) unsafe fn update_va_mapping(address: u64, entry: u64) -> Result<(), Errno> {
    let flush = xen::VaFlush::INVLPG.bits();
    // SAFETY: Xen checks the entry against our rights; what is mapped is the caller's business.
    unsafe { raw(nr::UPDATE_VA_MAPPING, [address, entry, flush, 0]) }.map(drop)
}

/// Changes page-table entries by their machine addresses.
///
/// # Safety
/// Nothing may rely on what the entries map now.
pub(crate) unsafe fn mmu_update(updates: &[MmuUpdate]) -> Result<(), Errno> {
    let args = [
        updates.as_ptr().addr() as u64,
        updates.len() as u64,
        0,
        DomId::SELF.0.into(),
    ];
    // SAFETY: Xen reads the updates and checks each against our rights.
    unsafe { raw(nr::MMU_UPDATE, args) }.map(drop)
}
