//! How an old transaction goes on from a newer tree.

use std::rc::Rc;

use super::{ReadSet, Seen, Transaction};
use crate::core::account;
use crate::core::ops::Owned;
use crate::core::tree::Tree;

/// How often one that has seen anything may go on as if it had begun later. Each time takes as long as looking at all
/// that it has seen, which so is bounded by a multiple of the requests that it was seen by.
const RENEWALS_MAX: u32 = 8;

impl Transaction {
    /// Whether it is dom0's.
    pub fn is_privileged(&self) -> bool {
        self.actor.is_privileged()
    }

    /// Goes on from the tree as it is now. That makes no difference if all is as it was seen: it could have begun now. Else, and
    /// if this is so too often, its commit is going to fail. Its own updates are made anew when it is next looked at.
    pub fn renew(&mut self, now: &Tree) {
        if self.reads.void.is_none() {
            let reads = &self.reads;
            let broken = match self.renewals < RENEWALS_MAX {
                true => reads.broken(now),
                false => reads.seen.iter().map(|(path, _)| path).min(),
            };
            if let Some(node) = broken.map(Rc::from) {
                self.reads.make_void(node);
            }
        }
        self.renewals = self.renewals.saturating_add(1);
        (self.tree, self.reads.then) = (now.clone(), now.clone());
        self.reads.changed = false;
        self.owned = Owned::default();
        self.changes = Vec::new();
        (self.pending, self.pending_growth) = (self.updates.len(), 0);
        self.stale = self.pending > 0;
        (self.bytes, self.copied) = self.count_bytes();
    }
}

impl ReadSet {
    /// A node is not as it was seen: what else was seen does not matter any more.
    pub(super) fn make_void(&mut self, node: Rc<str>) {
        self.seen = Seen::Few(Vec::new());
        self.bytes = account::seen(&node);
        self.void = Some(node);
    }
}
