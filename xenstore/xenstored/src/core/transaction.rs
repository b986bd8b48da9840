//! Transactions: a copy of the tree to work on, and at the end a check that everything seen still holds.
//!
//! A transaction works on its own copy, which costs nothing to take; new values of nodes that exist are kept beside it as
//! long as nobody looks at them. If nothing else has changed meanwhile, the copy
//! becomes the tree. Else each thing it saw (a value, a list of names, permissions, that a node exists or does not) is
//! compared between the tree at its start and the tree now; if all are equal, its changes are made again on the
//! tree now, so that disjoint changes merge. As what it saw is what it would see now, the outcome is that of
//! running it now as a whole: serialisable, in the order of the commits.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use xen_sys::Errno;

use super::ConnId;
use super::acl::{Acl, Actor};
use super::hash::Seeded;
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
    /// Whether the transaction's copy may have nodes that `then` has not.
    changed: bool,
    removed: bool,
    seen: Seen,
}

/// What was seen of each node. Most transactions see few, which are found by looking at each.
#[derive(Debug)]
enum Seen {
    Few(Vec<(Box<str>, u8)>),
    Many(HashMap<Box<str>, u8, Seeded>),
}

/// So many are few.
const FEW: usize = 8;

impl Seen {
    fn add(&mut self, path: &str, parts: u8) {
        let known = match self {
            Seen::Few(list) => {
                let known = list.iter_mut().find(|(known, _)| **known == *path);
                known.map(|(_, parts)| parts)
            }
            Seen::Many(map) => map.get_mut(path),
        };
        if let Some(known) = known {
            *known |= parts;
            return;
        }
        if let Seen::Few(list) = self
            && list.len() >= FEW
        {
            *self = Seen::Many(list.drain(..).collect());
        }
        match self {
            Seen::Few(list) => list.push((path.into(), parts)),
            Seen::Many(map) => drop(map.insert(path.into(), parts)),
        }
    }

    fn len(&self) -> usize {
        match self {
            Seen::Few(list) => list.len(),
            Seen::Many(map) => map.len(),
        }
    }

    /// All, in no order.
    fn iter(&self) -> impl Iterator<Item = (&str, u8)> {
        let (few, many) = match self {
            Seen::Few(list) => (Some(list), None),
            Seen::Many(map) => (None, Some(map)),
        };
        let few = few.into_iter().flatten();
        let few = few.map(|(path, parts)| (&**path, *parts));
        let many = many.into_iter().flatten();
        few.chain(many.map(|(path, parts)| (&**path, *parts)))
    }
}

impl ReadSet {
    /// Notes that parts of a node were seen, which is there in the transaction's copy or not. Whether it exists
    /// is seen with every part.
    pub fn note(&mut self, path: &str, seen: u8, exists: bool) {
        let is_new = exists && self.changed && self.then.get(path).is_none();
        if is_new && seen == READ_EXISTS {
            // The transaction has made it, and will whatever others do.
            return;
        }
        self.seen.add(path, seen);
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
            self.seen.add(path::first_below(found, path), READ_EXISTS);
        }
        for above in path::with_ancestors(found) {
            self.seen.add(above, READ_ACL);
        }
    }

    /// How many nodes.
    pub fn nodes(&self) -> usize {
        self.seen.len()
    }

    /// The first node, by name, that is not now as it was seen; `None` if all are.
    fn broken(&self, now: &Tree) -> Option<&str> {
        let holds = |path: &str, seen: u8| match self.then.compare(now, path) {
            None => true,
            Some((Some(then), Some(now))) => {
                (seen & READ_VALUE == 0 || then.value() == now.value())
                    && (seen & READ_ACL == 0 || then.acl() == now.acl())
                    && (seen & READ_NAMES == 0 || then.same_names(now))
            }
            Some(_) => false,
        };
        let broken = self.seen.iter().filter(|(path, seen)| !holds(path, *seen));
        broken.map(|(path, _)| path).min()
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

/// Most updates that are not made yet: each is looked at when a value is read.
const PENDING_MAX: usize = 8;

/// An open transaction.
#[derive(Debug)]
pub struct Transaction {
    actor: Actor,
    /// What it sees, but for the pending updates.
    tree: Tree,
    owned: Owned,
    reads: ReadSet,
    updates: Vec<Update>,
    /// So many updates at the end are not made in `tree` yet: they write values of nodes that are there, and
    /// were allowed.
    pending: usize,
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
                changed: false,
                removed: false,
                seen: Seen::Few(Vec::new()),
            },
            updates: Vec::new(),
            pending: 0,
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
        let mut seen: Vec<_> = seen.map(|(path, parts)| (path.into(), parts)).collect();
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
        for (path, parts) in state.seen {
            transaction.reads.seen.add(&path, parts);
        }
        for update in state.updates {
            transaction.updates_size += update.size();
            transaction.updates.push(update);
        }
        transaction.pending = transaction.updates.len();
        // They worked on the same tree before, when quotas were looked at; one from a foreign state that does not is
        // kept, and makes the commit fail.
        transaction.settle();
        transaction
    }

    /// Makes the updates that are pending.
    fn settle(&mut self) {
        let first = self.updates.len() - self.pending;
        if self.pending == 0 {
            return;
        }
        self.pending = 0;
        self.reads.changed = true;
        let limits = Limits::none();
        let mut ops = Ops {
            tree: &mut self.tree,
            actor: self.actor,
            limits: &limits,
            owned_before: 0,
            owned: &mut self.owned,
            changes: &mut self.changes,
            reads: None,
        };
        for update in &self.updates[first..] {
            // It was tried before.
            let _ = update.apply(&mut ops);
        }
    }

    /// Its copy of the tree, to look at this node.
    pub fn look_at<'a>(&'a mut self, path: &str, limits: &'a Limits, live: &Owned) -> Ops<'a> {
        let pending = self.updates.iter().rev().take(self.pending);
        if pending.into_iter().any(|update| update.path() == path) {
            self.settle();
        }
        self.ops(limits, live)
    }

    /// Its copy of the tree as it is, to work on.
    fn ops<'a>(&'a mut self, limits: &'a Limits, live: &Owned) -> Ops<'a> {
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
        let mut waits = false;
        if let Update::Write(path, value) = &update
            && self.pending < PENDING_MAX
        {
            waits = self.ops(limits, live).may_write(path, value.len())?;
        }
        if waits {
            self.pending += 1;
        } else {
            self.settle();
            self.reads.changed = true;
            update.apply(&mut self.ops(limits, live))?;
        }
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
        let unchanged = tree.generation() == self.reads.then.generation();
        if unchanged && self.pending < self.updates.len() {
            self.settle();
            *tree = self.tree;
            owned.add_all(&self.owned);
            return Ok(distinct(self.changes));
        }
        if !unchanged && let Some(node) = self.reads.broken(tree) {
            return Err(Conflict(node.into()));
        }
        // What is held only by its copy is free to be changed in place.
        drop((self.tree, self.reads));
        self.changes.clear();
        let mut changes = self.changes;
        // One change is made as a whole or not at all; several are tried first.
        let mut merged = (self.updates.len() > 1).then(|| tree.clone());
        let mut delta = Owned::default();
        let mut ops = Ops {
            tree: merged.as_mut().unwrap_or(tree),
            actor: self.actor,
            limits,
            owned_before: owned.count(self.actor.who),
            owned: &mut delta,
            changes: &mut changes,
            reads: None,
        };
        for update in &self.updates {
            // What worked in its copy does not work here: somebody interfered.
            update
                .apply(&mut ops)
                .map_err(|_| Conflict(update.path().into()))?;
        }
        if let Some(merged) = merged {
            *tree = merged;
        }
        owned.add_all(&delta);
        Ok(distinct(changes))
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
