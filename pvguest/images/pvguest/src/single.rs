//! State of a guest with one vCPU: a static cell that needs no lock, but notices re-entry.

use core::cell::{RefCell, RefMut};

/// A value that is set once during boot and then borrowed for the length of an operation.
pub(crate) struct Single<T>(RefCell<Option<T>>);

// SAFETY: there is one vCPU, upcalls stay masked for the guest's whole life, and exception handlers use
// `try_get` only: no two threads of execution ever exist.
unsafe impl<T> Sync for Single<T> {}

impl<T> Single<T> {
    /// An empty cell.
    pub(crate) const fn new() -> Self {
        Single(RefCell::new(None))
    }

    /// Fills the cell.
    pub(crate) fn set(&self, value: T) {
        *self.0.borrow_mut() = Some(value);
    }

    /// The value; panics before boot has set it and on re-entry, both our own bugs.
    #[track_caller]
    pub(crate) fn get(&self) -> RefMut<'_, T> {
        RefMut::map(self.0.borrow_mut(), |value| {
            value.as_mut().expect("used before boot has set it up")
        })
    }

    /// The value, unless it is not there yet or somebody is using it.
    pub(crate) fn try_get(&self) -> Option<RefMut<'_, T>> {
        RefMut::filter_map(self.0.try_borrow_mut().ok()?, Option::as_mut).ok()
    }
}

impl<T: Copy> Single<T> {
    /// A copy of the value, borrowed no longer than it takes.
    #[track_caller]
    pub(crate) fn copied(&self) -> T {
        *self.get()
    }
}
