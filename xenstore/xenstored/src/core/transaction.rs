//! Transactions: a copy of the tree to work on, and at the end a check that everything seen still holds.
//!
//! A transaction works on its own copy, which costs nothing to take. If nothing else has changed meanwhile, the copy
//! becomes the tree. Else each thing it saw (a value, a list of names, permissions, that a node exists or does not) is
//! compared between the tree at its start and the tree now; if all are equal, its changes are made again on the
//! tree now, so that disjoint changes merge. As what it saw is what it would see now, the outcome is that of
//! running it now as a whole: serialisable, in the order of the commits.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use xen_sys::Errno;

use super::ConnId;
use super::acl::{Acl, Actor};
use super::limits::Limits;
use super::ops::{Change, Ops, Owned};
use super::path;
use super::state::TransactionState;
use super::tree::Tree;

/// Seen: whether the node exists.
pub const READ_EXISTS: u8 = 1;
/// Seen: its value.
pub const READ_VALUE: u8 = 2;
/// Seen: its permissions.
pub const READ_ACL: u8 = 4;
/// Seen: its children's names.
pub const READ_NAMES: u8 = 8;

/// What a transaction has seen, by path, and the tree as it was at its start.
#[derive(Debug)]
pub struct ReadSet {
    then: Tree,
    removed: bool,
    seen: HashMap<Box<str>, u8>,
}

impl ReadSet {
    /// Notes that parts of a node were seen, which is there in the transaction's copy or not. Whether it exists
    /// is seen with every part.
    pub fn note(&mut self, path: &str, seen: u8, exists: bool) {
        let is_new = exists && self.then.get(path).is_none();
        if is_new && seen == READ_EXISTS {
            // The transaction has made it, and will whatever others do.
            return;
        }
        self.insert(path, seen);
        if seen & READ_ACL != 0 && (is_new || self.removed) {
            // It may have inherited its permissions, from whatever is the nearest node above.
            self.note_inheritance(path);
        }
    }

    /// Notes that something was removed: a node of the same path may be made anew.
    pub fn note_removal(&mut self) {
        self.removed = true;
    }

    fn note_inheritance(&mut self, path: &str) {
        let (found, _) = self.then.nearest(path);
        if found.len() < path.len() {
            self.insert(path::first_below(found, path), READ_EXISTS);
        }
        for above in path::with_ancestors(found) {
            self.insert(above, READ_ACL);
        }
    }

    fn insert(&mut self, path: &str, seen: u8) {
        match self.seen.get_mut(path) {
            Some(parts) => *parts |= seen,
            None => {
                self.seen.insert(path.into(), seen);
            }
        }
    }

    /// How many nodes.
    pub fn nodes(&self) -> usize {
        self.seen.len()
    }

    /// The first node, by name, that is not now as it was seen; `None` if all are.
    fn broken(&self, now: &Tree) -> Option<&str> {
        let holds = |path: &str, seen: u8| match (self.then.get(path), now.get(path)) {
            (None, None) => true,
            (Some(then), Some(now)) => {
                core::ptr::eq(then, now)
                    || (seen & READ_VALUE == 0 || then.value() == now.value())
                        && (seen & READ_ACL == 0 || then.acl() == now.acl())
                        && (seen & READ_NAMES == 0 || then.same_names(now))
            }
            _ => false,
        };
        let broken = self.seen.iter().filter(|(path, seen)| !holds(path, **seen));
        broken.map(|(path, _)| &**path).min()
    }
}

/// A transaction cannot be committed (EAGAIN), because of what others did at this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict(pub Rc<str>);

/// A change to make, again if need be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Write a value.
    Write(Box<str>, Box<[u8]>),
    /// Make a node.
    Mkdir(Box<str>),
    /// Remove a node.
    Rm(Box<str>),
    /// Replace permissions.
    SetPermissions(Box<str>, Acl),
}

impl Update {
    /// Makes the change.
    pub fn apply(&self, ops: &mut Ops<'_>) -> Result<(), Errno> {
        match self {
            Update::Write(path, value) => ops.write(path, value),
            Update::Mkdir(path) => ops.mkdir(path),
            Update::Rm(path) => ops.rm(path),
            Update::SetPermissions(path, acl) => ops.set_permissions(path, acl.clone()),
        }
    }

    fn path(&self) -> &str {
        match self {
            Update::Write(path, _)
            | Update::Mkdir(path)
            | Update::Rm(path)
            | Update::SetPermissions(path, _) => path,
        }
    }

    /// Bytes that it holds.
    fn size(&self) -> usize {
        match self {
            Update::Write(path, value) => path.len() + value.len(),
            Update::Mkdir(path) | Update::Rm(path) | Update::SetPermissions(path, _) => path.len(),
        }
    }
}

/// An open transaction.
#[derive(Debug)]
pub struct Transaction {
    actor: Actor,
    tree: Tree,
    owned: Owned,
    reads: ReadSet,
    updates: Vec<Update>,
    updates_size: usize,
    changes: Vec<Change>,
}

impl Transaction {
    /// Starts one on a copy of `tree`.
    pub fn new(actor: Actor, tree: &Tree) -> Transaction {
        Transaction {
            actor,
            tree: tree.clone(),
            owned: Owned::default(),
            reads: ReadSet {
                then: tree.clone(),
                removed: false,
                seen: HashMap::new(),
            },
            updates: Vec::new(),
            updates_size: 0,
            changes: Vec::new(),
        }
    }

    /// The tree as it was at its start.
    pub fn then(&self) -> &Tree {
        &self.reads.then
    }

    /// It as values, beside the tree of its start.
    pub fn export(&self, conn: ConnId, id: u32) -> TransactionState {
        let seen = self.reads.seen.iter();
        let mut seen: Vec<_> = seen.map(|(path, parts)| (path.clone(), *parts)).collect();
        seen.sort();
        TransactionState {
            conn,
            id,
            actor: self.actor,
            removed: self.reads.removed,
            seen,
            updates: self.updates.clone(),
        }
    }

    /// The transaction that these values tell of, begun with the tree `then`.
    pub fn import(state: TransactionState, then: &Tree) -> Transaction {
        let mut transaction = Transaction::new(state.actor, then);
        transaction.reads.removed = state.removed;
        transaction.reads.seen = state.seen.into_iter().collect();
        let limits = Limits::none();
        let mut ops = Ops {
            tree: &mut transaction.tree,
            actor: state.actor,
            limits: &limits,
            owned_before: 0,
            owned: &mut transaction.owned,
            changes: &mut transaction.changes,
            reads: None,
        };
        for update in state.updates {
            // It worked on the same tree before, when quotas were looked at; one from a foreign state that does not is
            // kept, and makes the commit fail.
            let _ = update.apply(&mut ops);
            transaction.updates_size += update.size();
            transaction.updates.push(update);
        }
        transaction
    }

    /// Its copy of the tree to work on.
    pub fn ops<'a>(&'a mut self, limits: &'a Limits, live: &Owned) -> Ops<'a> {
        Ops {
            tree: &mut self.tree,
            actor: self.actor,
            limits,
            owned_before: live.count(self.actor.who),
            owned: &mut self.owned,
            changes: &mut self.changes,
            reads: Some(&mut self.reads),
        }
    }

    /// Makes a change in its copy and notes it. ENOSPC if a guest changes too much in one transaction.
    pub fn update(&mut self, update: Update, limits: &Limits, live: &Owned) -> Result<(), Errno> {
        let size = self.updates_size + update.size();
        if !self.actor.is_privileged()
            && (self.updates.len() >= limits.transaction_nodes || size > limits.transaction_bytes)
        {
            return Err(Errno::ENOSPC);
        }
        update.apply(&mut self.ops(limits, live))?;
        self.updates.push(update);
        self.updates_size = size;
        Ok(())
    }

    /// Makes its changes those of `tree`, or fails, which leaves `tree` and `owned` as they were. Returns what
    /// watches are to be told.
    pub fn commit(
        mut self,
        tree: &mut Tree,
        owned: &mut Owned,
        limits: &Limits,
    ) -> Result<Vec<Change>, Conflict> {
        if self.updates.is_empty() {
            // It saw one state of the tree and changed nothing: right as of its start.
            return Ok(Vec::new());
        }
        if tree.generation() == self.reads.then.generation() {
            *tree = self.tree;
            owned.add_all(&self.owned);
            return Ok(distinct(self.changes));
        }
        if let Some(node) = self.reads.broken(tree) {
            return Err(Conflict(node.into()));
        }
        self.changes.clear();
        let mut merged = tree.clone();
        let mut delta = Owned::default();
        let mut ops = Ops {
            tree: &mut merged,
            actor: self.actor,
            limits,
            owned_before: owned.count(self.actor.who),
            owned: &mut delta,
            changes: &mut self.changes,
            reads: None,
        };
        for update in &self.updates {
            // What worked in its copy does not work here: somebody interfered.
            update
                .apply(&mut ops)
                .map_err(|_| Conflict(update.path().into()))?;
        }
        *tree = merged;
        owned.add_all(&delta);
        Ok(distinct(self.changes))
    }
}

/// Each path once, in the order of the first change, readable by all that could read any of them.
fn distinct(changes: Vec<Change>) -> Vec<Change> {
    if changes.len() < 2 {
        return changes;
    }
    let mut seen: HashMap<(Rc<str>, bool), usize> = HashMap::new();
    let mut result: Vec<Change> = Vec::new();
    for change in changes {
        match seen.get(&(change.path.clone(), change.exact)) {
            None => {
                seen.insert((change.path.clone(), change.exact), result.len());
                result.push(change);
            }
            Some(at) => {
                let known = &mut result[*at].readable_by;
                for acl in change.readable_by {
                    if !known.iter().any(|other| other.same(&acl)) {
                        known.push(acl);
                    }
                }
            }
        }
    }
    // A removed node was told about already if it changed in other ways as well.
    let whole: HashSet<_> = result
        .iter()
        .filter(|change| !change.exact)
        .map(|change| change.path.clone())
        .collect();
    result.retain(|change| !change.exact || !whole.contains(&change.path));
    result
}
