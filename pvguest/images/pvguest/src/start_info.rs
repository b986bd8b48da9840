//! What the builder told us, kept for the guest's whole life.

use core::ptr::NonNull;
use core::str;

use xen_sys::xen::{StartFlags, StartInfo};

use crate::single::Single;

static START_INFO: Single<&'static StartInfo> = Single::new();

/// Remembers where start_info is.
///
/// # Safety
/// `at` must be what the builder passed in rsi; the page is left alone from then on.
pub(crate) unsafe fn init(at: *const StartInfo) {
    // SAFETY: by the caller's contract mapped, initialised, and never written again: memory::find_free
    // keeps its page out of the heap.
    START_INFO.set(unsafe { NonNull::new_unchecked(at.cast_mut()).as_ref() });
}

/// What the builder told us.
pub(crate) fn get() -> &'static StartInfo {
    START_INFO.copied()
}

/// Whether we run as dom0.
pub(crate) fn is_dom0() -> bool {
    START_INFO.try_get().is_some_and(|info| {
        StartFlags::from_bits_retain(info.flags).contains(StartFlags::INITDOMAIN)
    })
}

/// The command line up to the first NUL; empty if it is not text.
pub(crate) fn command_line() -> &'static str {
    let line = &get().cmd_line;
    let len = line
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(line.len());
    str::from_utf8(&line[..len]).unwrap_or("")
}
