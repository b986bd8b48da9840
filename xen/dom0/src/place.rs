//! Where mappings go: beside the program's own data, as long as there is room. On Xen every page table of a process is
//! checked when it is made and again when it goes, some 15 µs each; where the kernel would put a small
//! mapping by itself it needs two of its own.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What one page table maps.
const TABLE: usize = 2 << 20;
/// The largest mapping that is placed.
const MAX: usize = 512 << 10;
/// Left free behind the program's data: its heap may begin there.
const GAP: usize = 64 << 10;

/// The lowest address that was given away; 0 at first. It is also what the data is found by.
static LOWEST: AtomicUsize = AtomicUsize::new(0);

/// An address for a mapping of `len` bytes, a multiple of the page size, to be asked of the kernel as a mere wish:
/// something may be there. Null if the kernel shall choose.
pub fn near(len: usize) -> *mut libc::c_void {
    let data = (&raw const LOWEST).addr();
    let end = (data | (TABLE - 1)) + 1;
    let next = |lowest: usize| {
        let from = if lowest == 0 { end } else { lowest };
        from.checked_sub(len)
            .filter(|&at| at > data + GAP && len <= MAX)
    };
    match LOWEST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
        Ok(lowest) => std::ptr::without_provenance_mut(next(lowest).unwrap_or(0)),
        Err(_) => std::ptr::null_mut(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_do_not_overlap_and_come_to_an_end() {
        let data = (&raw const LOWEST).addr();
        let mut before = usize::MAX;
        let mut given = 0;
        for _ in 0..TABLE / 4096 {
            let at = near(4096).addr();
            if at == 0 {
                break;
            }
            assert!(at + 4096 <= before && at > data && at / TABLE == data / TABLE);
            before = at;
            given += 1;
        }
        assert!(given < TABLE / 4096, "there is no end of places");
        assert!(near(MAX + 4096).is_null());
    }
}
