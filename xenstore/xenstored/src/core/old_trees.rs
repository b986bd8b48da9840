//! Old trees: a transaction keeps the tree of its start, and with it all that was replaced since. One that has become old by
//! that goes on from the tree as it is now.
//!
//! If all that it has seen is still as it was seen, that makes no difference: it could have begun just now. Else it could
//! not be committed any more, at least not with changes: it goes on, sees the newer tree, and fails with EAGAIN at its end.
//!
//! Invariant: between two requests no transaction is older than its owner's share of [`OldTrees`], so what all old trees
//! of guests' transactions keep together is never more than that and what one request replaces.

use super::Core;

/// What may be replaced while a transaction is open, in bytes as [`Tree::replaced`](super::tree::Tree::replaced) counts
/// them. It is no quota of each guest: one bound holds for all together.
#[derive(Clone, Copy, Debug)]
pub struct OldTrees {
    /// While one of a guest is.
    pub guests: u64,
    /// While one of dom0 is.
    pub dom0: u64,
    /// No transaction is too old as long as less than this was replaced in all.
    next: u64,
}

/// A guest's transactions: some ten thousand changes of small nodes, deep in the tree. What they then really keep is much less, as
/// the directories on the way to a node are counted for each change and copied for the first.
pub const GUESTS: u64 = 64 << 20;
/// dom0's, whose clients may look at the whole tree in one.
pub const DOM0: u64 = 256 << 20;

impl OldTrees {
    /// These bounds.
    pub const fn new(guests: u64, dom0: u64) -> OldTrees {
        OldTrees {
            guests,
            dom0,
            next: 0,
        }
    }
}

impl Default for OldTrees {
    fn default() -> Self {
        Self::new(GUESTS, DOM0)
    }
}

impl Core {
    /// Lets transactions that are too old go on from the tree as it is now. To be called after whatever changes the tree, and at
    /// no other time, as it decides what transactions see.
    #[inline]
    pub(super) fn renew_transactions(&mut self) {
        if self.tree.replaced() >= self.old_trees.next {
            self.look_for_old();
        }
    }

    fn look_for_old(&mut self) {
        let now = self.tree.replaced();
        let OldTrees { guests, dom0, .. } = self.old_trees;
        // Of one that starts now.
        let mut next = now.saturating_add(guests.min(dom0));
        for client in self.conns.values_mut() {
            for transaction in client.transactions.values_mut() {
                let most = match transaction.is_privileged() {
                    true => dom0,
                    false => guests,
                };
                if now.saturating_sub(transaction.then().replaced()) >= most {
                    transaction.renew(&self.tree);
                }
                next = next.min(transaction.then().replaced().saturating_add(most));
            }
        }
        self.old_trees.next = next;
    }
}
