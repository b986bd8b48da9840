//! Transactions: a copy of the tree to work on, and at the end a check that everything seen still holds.
//!
//! A transaction works on its own copy, which costs nothing to take; new values of nodes that exist are kept beside it as
//! long as nobody looks at them. If nothing else has changed meanwhile, the copy
//! becomes the tree. Else each thing it saw (a value, a list of names, permissions, that a node exists or does not) is
//! compared between the tree at its start and the tree now; if all are equal, its changes are made again on the
//! tree now, so that disjoint changes merge. As what it saw is what it would see now, the outcome is that of
//! running it now as a whole: serialisable, in the order of the commits.
//!
//! A transaction that has become old goes on from a newer tree ([`renew`](Transaction::renew)).

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use xen_sys::Errno;

use super::ConnId;
use super::acl::{Acl, Actor, DomLife};
use super::hash::Seeded;
use super::limits::{Limits, within};
use super::ops::{Change, Ops, Owned};
use super::state::TransactionState;
use super::tree::Tree;
use super::{account, path};

mod renew;

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
    /// A node that is not as it was seen, if that has been found out: nothing more is noted then.
    void: Option<Rc<str>>,
    /// What `seen` and `void` are counted as.
    bytes: usize,
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
    /// Whether it is new.
    fn add(&mut self, path: &str, parts: u8) -> bool {
        let known = match self {
            Seen::Few(list) => {
                let known = list.iter_mut().find(|(known, _)| **known == *path);
                known.map(|(_, parts)| parts)
            }
            Seen::Many(map) => map.get_mut(path),
        };
        if let Some(known) = known {
            *known |= parts;
            return false;
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
        true
    }

    fn contains(&self, path: &str) -> bool {
        match self {
            Seen::Few(list) => list.iter().any(|(known, _)| **known == *path),
            Seen::Many(map) => map.contains_key(path),
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
        if self.void.is_some() {
            return;
        }
        let is_new = exists && self.changed && self.then.get(path).is_none();
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

    /// How many nodes and bytes more are kept once this is noted; a node that counts twice is taken as two.
    pub fn growth(&self, (path, seen, exists): (&str, u8, bool)) -> (usize, usize) {
        let is_new = exists && self.then.get(path).is_none();
        if self.void.is_some() || is_new && seen == READ_EXISTS {
            return (0, 0);
        }
        let (mut nodes, mut bytes) = (0, 0);
        let mut add = |path: &str| {
            if !self.seen.contains(path) {
                nodes += 1;
                bytes += account::seen(path);
            }
        };
        add(path);
        if seen & READ_ACL != 0 && (is_new || self.removed) {
            let (found, below) = inherited_from(&self.then, path);
            below.into_iter().for_each(&mut add);
            path::with_ancestors(found).for_each(add);
        }
        (nodes, bytes)
    }

    fn note_inheritance(&mut self, path: &str) {
        let (found, below) = inherited_from(&self.then, path);
        if let Some(below) = below {
            self.insert(below, READ_EXISTS);
        }
        for above in path::with_ancestors(found) {
            self.insert(above, READ_ACL);
        }
    }

    fn insert(&mut self, path: &str, seen: u8) {
        if self.seen.add(path, seen) {
            self.bytes += account::seen(path);
        }
    }

    /// What this is counted as.
    pub fn bytes(&self) -> usize {
        self.bytes
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

/// The nearest node at or above a path, and the path below it if that is absent.
fn inherited_from<'p>(then: &Tree, path: &'p str) -> (&'p str, Option<&'p str>) {
    let (found, _) = then.nearest(path);
    let absent = found.len() < path.len();
    (found, absent.then(|| path::first_below(found, path)))
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

    /// What it is counted as.
    fn bytes(&self) -> usize {
        let value = match self {
            Update::Write(_, value) => value.len(),
            Update::Mkdir(_) | Update::Rm(_) | Update::SetPermissions(..) => 0,
        };
        account::update(self.path(), value)
    }
}

/// Room for so many updates is made with the first.
const UPDATES: usize = 4;

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
    /// were allowed; or all of them, if `stale`.
    pending: usize,
    /// It has gone on from a newer tree, in which its updates are not made yet.
    stale: bool,
    /// How often it has gone on from a newer tree.
    renewals: u32,
    /// How many more bytes of nodes the actor will have by these.
    pending_growth: i64,
    changes: Vec<Change>,
    /// What updates and changes are counted as.
    bytes: usize,
    /// What it has copied of the tree.
    copied: usize,
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
                void: None,
                bytes: 0,
            },
            updates: Vec::new(),
            pending: 0,
            stale: false,
            renewals: 0,
            pending_growth: 0,
            changes: Vec::new(),
            bytes: 0,
            copied: 0,
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
            void: self.reads.void.clone(),
            stale: self.stale,
            renewals: self.renewals,
            seen,
            updates: self.updates.clone(),
        }
    }

    /// The transaction that these values tell of, begun with the tree `then`.
    pub fn import(state: TransactionState, then: &Tree) -> Transaction {
        let mut transaction = Transaction::new(state.actor, then);
        transaction.reads.removed = state.removed;
        for (path, parts) in state.seen {
            transaction.reads.insert(&path, parts);
        }
        if let Some(node) = state.void {
            transaction.reads.make_void(node);
        }
        transaction.pending = state.updates.len();
        transaction.updates = state.updates;
        (transaction.stale, transaction.renewals) = (state.stale, state.renewals);
        if !transaction.stale {
            // They worked on the same tree before, when quotas were looked at; one from a foreign state that does not is
            // kept, and makes the commit fail.
            transaction.settle();
        }
        (transaction.bytes, transaction.copied) = transaction.count_bytes();
        transaction
    }

    /// Whom it gives nodes to.
    pub fn new_owners(&self) -> impl Iterator<Item = DomLife> {
        self.updates.iter().filter_map(|update| match update {
            Update::SetPermissions(_, acl) => Some(acl.owner()),
            _ => None,
        })
    }

    /// What it makes us hold, beside how it changes what its owner owns.
    pub fn bytes(&self) -> usize {
        account::TRANSACTION + self.reads.bytes + self.bytes + self.copied
    }

    /// How many more bytes of nodes its owner would have by it.
    pub fn growth(&self) -> usize {
        let made = self.owned.of_domain(self.actor.who).bytes + self.pending_growth;
        made.max(0) as usize
    }

    /// How many nodes it has seen, or changes it has made.
    pub fn nodes(&self) -> usize {
        self.reads.nodes().max(self.updates.len())
    }

    /// Whether all is counted that is there.
    pub fn is_counted(&self) -> bool {
        let seen = self.reads.seen.iter().map(|(path, _)| path);
        let seen = seen.chain(self.reads.void.as_deref()).map(account::seen);
        seen.sum::<usize>() == self.reads.bytes && self.count_bytes() == (self.bytes, self.copied)
    }

    /// What updates and changes come to, and the copies that they make.
    fn count_bytes(&self) -> (usize, usize) {
        let updates = self.updates.iter().map(Update::bytes);
        (
            updates.sum::<usize>() + told_bytes(&self.changes),
            self.count_copied(),
        )
    }

    /// What all updates have copied: what [`copies`](Self::copies) tells of each, in one go.
    fn count_copied(&self) -> usize {
        if self.actor.is_privileged() || self.stale {
            return 0;
        }
        let mut ways = HashSet::new();
        let mut bytes = 0;
        for update in &self.updates {
            let new = path::with_ancestors(update.path()).filter(|above| ways.insert(*above));
            let known = 1 + path::names(update.path()).count() - new.count();
            bytes += account::way(&self.reads.then, update.path(), known);
        }
        bytes
    }

    /// What the next update, at `path`, copies of the tree of its start, if `before` were made before it: what is on the way
    /// and was not on theirs. dom0's are not counted.
    fn copies(&self, before: usize, path: &str) -> usize {
        if self.actor.is_privileged() {
            return 0;
        }
        let before = self.updates[..before].iter();
        let shared = before.map(|update| 1 + common_names(update.path(), path));
        account::way(&self.reads.then, path, shared.max().unwrap_or(0))
    }

    /// Makes the updates that are pending.
    fn settle(&mut self) {
        let first = self.updates.len() - self.pending;
        if self.pending == 0 {
            return;
        }
        (self.pending, self.pending_growth) = (0, 0);
        let was_stale = std::mem::take(&mut self.stale);
        self.reads.changed = true;
        let mut failed = None;
        let limits = Limits::none();
        let mut ops = Ops {
            tree: &mut self.tree,
            actor: self.actor,
            limits: &limits,
            live: None,
            beside: 0,
            owned: &mut self.owned,
            changes: &mut self.changes,
            reads: None,
        };
        for update in &self.updates[first..] {
            // It was tried before, but if it is stale on another tree.
            if update.apply(&mut ops).is_err() {
                failed.get_or_insert(update.path());
            }
        }
        if let Some(node) = failed
            && self.reads.void.is_none()
        {
            self.reads.make_void(node.into());
        }
        if was_stale {
            (self.bytes, self.copied) = self.count_bytes();
        }
    }

    /// Its copy of the tree, to look at this node. `beside` is what is held for the actor beside nodes, this transaction
    /// included, but not the nodes that it makes.
    pub fn look_at<'a>(
        &'a mut self,
        path: &str,
        limits: &'a Limits,
        live: &'a Owned,
        beside: usize,
    ) -> Ops<'a> {
        if self.stale || self.is_pending(path) {
            self.settle();
        }
        self.ops(limits, live, beside)
    }

    fn is_pending(&self, path: &str) -> bool {
        let pending = self.updates.iter().rev().take(self.pending);
        pending.into_iter().any(|update| update.path() == path)
    }

    /// Its copy of the tree as it is, to work on.
    fn ops<'a>(&'a mut self, limits: &'a Limits, live: &'a Owned, beside: usize) -> Ops<'a> {
        let beside = beside + self.pending_growth.max(0) as usize;
        Ops {
            tree: &mut self.tree,
            actor: self.actor,
            limits,
            live: Some(live),
            beside,
            owned: &mut self.owned,
            changes: &mut self.changes,
            reads: Some(&mut self.reads),
        }
    }

    /// Makes a change in its copy and notes it. ENOSPC if a guest changes too much in one transaction, ENOMEM if it holds too
    /// much.
    pub fn update(
        &mut self,
        update: Update,
        limits: &Limits,
        live: &Owned,
        beside: usize,
    ) -> Result<(), Errno> {
        if !self.actor.is_privileged() && !within(self.updates.len() + 1, limits.transaction_nodes)
        {
            return Err(Errno::ENOSPC);
        }
        if self.stale {
            self.settle();
        }
        let copied = self.copies(self.updates.len(), update.path());
        let beside = beside + update.bytes() + copied;
        let (told, held) = (self.changes.len(), self.reads.bytes);
        let mut waits = None;
        let mut ops = self.ops(limits, live, beside);
        ops.check_held()?;
        if let Update::Write(path, value) = &update
            && self.pending < PENDING_MAX
            && !self.is_pending(path)
        {
            ops = self.ops(limits, live, beside);
            waits = ops.may_write(path, value.len())?;
        }
        if let Some((owner, growth)) = waits {
            self.pending += 1;
            if owner == self.actor.who {
                self.pending_growth += growth;
            }
        } else {
            self.settle();
            self.reads.changed = true;
            // What was seen so far is held already.
            let beside = beside + self.reads.bytes - held;
            update.apply(&mut self.ops(limits, live, beside))?;
        }
        self.bytes += update.bytes() + told_bytes(&self.changes[told..]);
        self.copied += copied;
        if self.updates.is_empty() {
            self.updates = Vec::with_capacity(UPDATES);
        }
        self.updates.push(update);
        Ok(())
    }

    /// Makes its changes those of `tree`, or fails, which leaves `tree` and `owned` as they were. Returns what
    /// watches are to be told. `beside` is what is held for the actor beside nodes and this.
    pub fn commit(
        mut self,
        tree: &mut Tree,
        owned: &mut Owned,
        limits: &Limits,
        beside: usize,
    ) -> Result<Vec<Change>, Conflict> {
        if let Some(node) = self.reads.void {
            return Err(Conflict(node));
        }
        if self.updates.is_empty() {
            // It saw one state of the tree and changed nothing: right as of its start.
            return Ok(Vec::new());
        }
        let unchanged = tree.generation() == self.reads.then.generation();
        // Quotas were looked at on the tree of its start; on a newer one they are looked at again.
        if unchanged && self.renewals == 0 && self.pending < self.updates.len() {
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
        let mut changes = Vec::with_capacity(self.updates.len());
        // One change is made as a whole or not at all; several are tried first.
        let mut merged = (self.updates.len() > 1).then(|| tree.clone());
        let mut delta = Owned::default();
        let mut ops = Ops {
            tree: merged.as_mut().unwrap_or(tree),
            actor: self.actor,
            limits,
            live: Some(owned),
            beside,
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

/// What changes are counted as beside the updates that made them: the nodes that went with one above them.
fn told_bytes(changes: &[Change]) -> usize {
    let exact = changes.iter().filter(|change| change.exact);
    exact.map(|change| account::change(&change.path)).sum()
}

/// How many names two paths have in common from the root down.
fn common_names(a: &str, b: &str) -> usize {
    let pairs = path::names(a).zip(path::names(b));
    pairs.take_while(|(a, b)| a == b).count()
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
