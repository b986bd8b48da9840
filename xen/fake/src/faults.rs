//! Calls that fail on demand: the Nth one of a kind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Kinds of calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// `GrantTable::alloc_page`: `NoGrants`.
    AllocPage,
    /// `GrantTable::grant`: `NoGrants`.
    Grant,
    /// `GrantTable::end`: `GrantInUse`, and the grant stays.
    EndGrant,
    /// `ForeignGrants::map`, counted once for each call: `GNTST_no_space` for its first grant.
    Map,
    /// `ForeignGrants::copy`, counted once for each piece: `GNTST_general_error`.
    Copy,
    /// `EventChannels::alloc_unbound`: ENOSPC.
    AllocUnbound,
    /// `EventChannels::bind_interdomain`: ENOSPC.
    BindInterdomain,
    /// `EventChannels::notify`: EINVAL.
    Notify,
    /// A call of `DomainControl` by its name, such as `"XEN_DOMCTL_createdomain"`: ENOMEM.
    Control(&'static str),
    /// Any call of `DomainControl`: ENOMEM.
    AnyControl,
    /// Something of the test's own, such as a storage write; asked for with [`Faults::hit`].
    Other(&'static str),
}

/// Which calls fail. Every clone is the same set.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    made: BTreeMap<Call, u64>,
    fail: BTreeSet<(Call, u64)>,
    always: BTreeSet<Call>,
}

impl Faults {
    /// Makes the `nth` call of this kind from now on fail once; the next one is number 1.
    pub fn fail_nth(&self, call: Call, nth: u64) {
        let mut inner = self.lock();
        let number = inner.made.get(&call).copied().unwrap_or(0) + nth;
        inner.fail.insert((call, number));
    }

    /// Makes all calls of this kind fail until [`clear`](Self::clear).
    pub fn fail_all(&self, call: Call) {
        self.lock().always.insert(call);
    }

    /// Forgets all faults that have not happened yet; true if there were any, or a `fail_all`.
    pub fn clear(&self) -> bool {
        let mut inner = self.lock();
        let Inner { made, fail, always } = &mut *inner;
        let ahead = |(call, number): &(Call, u64)| *number > made.get(call).copied().unwrap_or(0);
        let left = !always.is_empty() || fail.iter().any(ahead);
        fail.clear();
        always.clear();
        left
    }

    /// How many calls of this kind have been made so far, failed ones included.
    pub fn count(&self, call: Call) -> u64 {
        self.lock().made.get(&call).copied().unwrap_or(0)
    }

    /// Counts a call; true if it is to fail.
    pub fn hit(&self, call: Call) -> bool {
        let mut inner = self.lock();
        let made = inner.made.entry(call).or_default();
        *made += 1;
        let number = *made;
        inner.always.contains(&call) || inner.fail.contains(&(call, number))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
