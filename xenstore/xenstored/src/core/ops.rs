//! The operations on nodes, with permissions and quotas: the same code for the live tree, for a transaction's copy
//! and for a transaction's replay at commit. Every check comes before the first effect (XSA-272).

use std::collections::HashMap;
use std::rc::Rc;

use xen_sys::Errno;

use super::acl::{Acl, Actor, DomLife, Right};
use super::limits::{Limits, within};
use super::transaction::{READ_ACL, READ_EXISTS, ReadSet};
use super::tree::{Node, Tree, walk};
use super::{account, path};

/// Nothing is seen that the answer depends on: the operation does the same whether the node exists or not.
const BLIND: u8 = 0;

/// A node has changed in a way that watches tell about.
#[derive(Clone, Debug)]
pub struct Change {
    /// The node, or a special name.
    pub path: Rc<str>,
    /// Only watches on this very path are told: the node went because one above it was removed.
    pub exact: bool,
    /// Who may know: those who can read one of these.
    pub readable_by: Vec<Acl>,
}

/// What each domain owns, or how that changes. dom0 is not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned(HashMap<DomLife, Held>);

/// Nodes, or how many more there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// How many.
    pub nodes: i64,
    /// What they are counted as, see [`account`].
    pub bytes: i64,
}

/// A tree to work on for one actor.
pub struct Ops<'a> {
    /// The tree.
    pub tree: &'a mut Tree,
    /// Who asks.
    pub actor: Actor,
    /// What guests may use.
    pub limits: &'a Limits,
    /// What is owned beside `owned`.
    pub live: Option<&'a Owned>,
    /// Bytes held for the actor beside nodes.
    pub beside: usize,
    /// Changes of ownership are counted here.
    pub owned: &'a mut Owned,
    /// Changes are noted here.
    pub changes: &'a mut Vec<Change>,
    /// What was seen is noted here, in a transaction.
    pub reads: Option<&'a mut ReadSet>,
}

impl Ops<'_> {
    /// A node to read a part of: value, children's names or permissions (`READ_*`).
    pub fn look(&mut self, path: &str, part: u8) -> Result<&Node, Errno> {
        self.access(path, Right::Read, part)
    }

    /// Writes a value; makes the node and its parents if absent.
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Errno> {
        let Some((owner, growth)) = self.may_write(path, value.len())? else {
            return self.create(path, value);
        };
        self.owned.add(owner, 0, growth);
        if let Some((acl, above)) = self.tree.set_value(path, value) {
            self.changes.push(Change {
                path: path.into(),
                exact: false,
                readable_by: [acl].into_iter().chain(above).collect(),
            });
        }
        Ok(())
    }

    /// Whether a value of so many bytes may be written: whose node it is, and how much more it then holds. `None` if it is
    /// absent but may be made, as far as rights go.
    pub fn may_write(&mut self, path: &str, len: usize) -> Result<Option<(DomLife, i64)>, Errno> {
        match self.access(path, Right::Write, BLIND) {
            Ok(node) => {
                let (entries, names, owner) =
                    (node.acl().entries(), node.names_len(), node.acl().owner());
                let growth = len as i64 - node.value().len() as i64;
                self.check_size(entries, len, names)?;
                self.check_memory(owner, growth)?;
                Ok(Some((owner, growth)))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an empty node and its parents; nothing happens if it is there.
    pub fn mkdir(&mut self, path: &str) -> Result<(), Errno> {
        match self.access(path, Right::Write, BLIND) {
            Ok(_) => Ok(()),
            Err(Errno::ENOENT) => self.create(path, b""),
            Err(error) => Err(error),
        }
    }

    /// Removes a node and all below. An absent node is an error only if its parent is absent too.
    pub fn rm(&mut self, path: &str) -> Result<(), Errno> {
        match self.access(path, Right::Write, READ_EXISTS) {
            Ok(_) => self.remove(path),
            Err(Errno::ENOENT) => {
                let parent = path::parent(path).ok_or(Errno::ENOENT)?;
                self.note(parent, READ_EXISTS);
                self.tree.get(parent).map(drop).ok_or(Errno::ENOENT)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes an existing node and all below, whoever asks.
    pub fn remove(&mut self, path: &str) -> Result<(), Errno> {
        let parent_path = path::parent(path).ok_or(Errno::EINVAL)?;
        let above = self.tree.get(parent_path).map(|node| node.acl().clone());
        if self.reads.is_some() && !self.actor.is_privileged() {
            // All of it is to be told about at the transaction's end.
            let mut growth = 0;
            if let Some(node) = self.tree.get(path) {
                walk(path, node, &mut |at, _, _| {
                    growth += account::change(at) as i64;
                    true
                });
            }
            self.check_memory(self.actor.who, growth)?;
        }
        let node = self.tree.remove(path).ok_or(Errno::ENOENT)?;
        if let Some(reads) = &mut self.reads {
            reads.note_removal();
        }
        let (owned, changes) = (&mut *self.owned, &mut *self.changes);
        let mut replaced = 0;
        walk(path, &node, &mut |at, node, parent| {
            replaced += node.copied();
            owned.add(node.acl().owner(), -1, -(account::of_node(node) as i64));
            let parent = parent.map(|parent| parent.acl().clone()).or(above.clone());
            changes.push(Change {
                path: at.into(),
                exact: at.len() > path.len(),
                readable_by: [node.acl().clone()].into_iter().chain(parent).collect(),
            });
            true
        });
        self.tree
            .set_replaced(self.tree.replaced().saturating_add(replaced));
        Ok(())
    }

    /// Replaces a node's permissions: only its owner may, and a guest may not give it away (XSA-352).
    pub fn set_permissions(&mut self, path: &str, acl: Acl) -> Result<(), Errno> {
        if !self.actor.is_privileged() && !within(acl.entries(), self.limits.permissions) {
            return Err(Errno::ENOSPC);
        }
        let node = self.access(path, Right::Own, READ_EXISTS)?;
        let old = node.acl().clone();
        let (name, value, names) = (node.name().len(), node.value().len(), node.names_len());
        if !self.actor.is_privileged() && acl.owner() != old.owner() {
            return Err(Errno::EPERM);
        }
        self.check_size(acl.entries(), value, names)?;
        let [before, after] =
            [&old, &acl].map(|acl| account::node(name, value, acl.entries()) as i64);
        self.check_memory(old.owner(), after - before)?;
        self.owned.add(old.owner(), -1, -before);
        self.owned.add(acl.owner(), 1, after);
        self.tree.set_acl(path, acl);
        self.changed(path, Some(old));
        Ok(())
    }

    fn create(&mut self, path: &str, value: &[u8]) -> Result<(), Errno> {
        let (found, node) = self.tree.nearest(path);
        let above = node.acl().clone();
        let found_len = if found == "/" { 0 } else { found.len() };
        let fresh = path::names(&path[found_len..]).count();
        let acl = above.inherited_by(&self.actor);
        let names = path::names(&path[found_len..]);
        let bytes = names.map(|name| account::node(name.len(), 0, acl.entries()));
        let bytes = (bytes.sum::<usize>() + value.len()) as i64;
        if !self.actor.is_privileged() {
            let owned = self.held(self.actor.who).nodes + fresh as i64;
            if !within(owned as usize, self.limits.nodes) {
                return Err(Errno::ENOSPC);
            }
            // Each new node has its one child's name, except the last, which has the value.
            let mut above = Some((above.entries(), node.value().len(), node.names_len()));
            for name in path::names(&path[found_len..]) {
                let (acl_len, value, names) = above.take().unwrap_or((acl.entries(), 0, 0));
                self.check_size(acl_len, value, names + name.len() + 1)?;
            }
            self.check_size(acl.entries(), value.len(), 0)?;
            self.check_memory(self.actor.who, bytes)?;
        }
        let mut parent = String::from(found);
        let mut left = fresh;
        for name in path::names(&path[found_len..]) {
            left -= 1;
            let value = if left == 0 { value } else { b"" };
            self.tree.insert(&parent, name, value, acl.clone());
            parent = path::join(&parent, name);
        }
        self.owned.add(acl.owner(), fresh as i64, bytes);
        self.changed(path, None);
        Ok(())
    }

    /// The node if the actor has the right. EACCES if not; for an absent node ENOENT only if the actor has the
    /// right on the nearest node above, so that nobody learns what is in a foreign directory.
    fn access(&mut self, path: &str, right: Right, seen: u8) -> Result<&Node, Errno> {
        let (found, node) = self.tree.nearest(path);
        let exists = found.len() == path.len();
        // Who may write in a directory may know that something is not in it.
        let right = match right {
            Right::Own if !exists => Right::Write,
            right => right,
        };
        let allowed = node.acl().allows(&self.actor, right);
        if let Some(reads) = &mut self.reads {
            let privileged = self.actor.is_privileged();
            let rights = if privileged { 0 } else { READ_ACL };
            let below = match exists {
                true => path,
                false => path::first_below(found, path),
            };
            let notes: &[_] = if seen == BLIND && allowed {
                // Rights are looked at again at commit, and that a node appears meanwhile changes nothing in
                // the answer; but what was there must not vanish.
                &[(found, READ_EXISTS, true)]
            } else if exists {
                &[(path, seen | rights, true)]
            } else if rights == 0 {
                &[(path, READ_EXISTS, false)]
            } else {
                // A node that appears in between could hide what is below.
                &[
                    (path, READ_EXISTS, false),
                    (below, READ_EXISTS, false),
                    (found, rights, true),
                ]
            };
            if !privileged {
                let growth = notes.iter().map(|note| reads.growth(*note));
                let growth = growth.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
                if growth.0 > 0 && !within(reads.nodes() + growth.0, self.limits.transaction_nodes)
                {
                    return Err(Errno::ENOSPC);
                }
                let held = held_in(self.live, self.owned, self.actor.who).bytes.max(0) as usize;
                if growth.1 > 0 && !within(held + self.beside + growth.1, self.limits.memory) {
                    return Err(Errno::ENOMEM);
                }
                self.beside += growth.1;
            }
            for (path, seen, exists) in notes {
                reads.note(path, *seen, *exists);
            }
        }
        match (allowed, exists) {
            (true, true) => Ok(node),
            (true, false) => Err(Errno::ENOENT),
            (false, _) => Err(Errno::EACCES),
        }
    }

    /// Notes that an existing node has changed, and what permissions it had if these have.
    fn changed(&mut self, path: &str, old: Option<Acl>) {
        let (parent, node) = self.tree.with_parent(path);
        let Some(node) = node else {
            return;
        };
        let parent = parent.filter(|parent| !parent.acl().same(node.acl()));
        let parent = parent.map(|parent| parent.acl().clone());
        let readable_by = [node.acl().clone()].into_iter().chain(old).chain(parent);
        self.changes.push(Change {
            path: path.into(),
            exact: false,
            readable_by: readable_by.collect(),
        });
    }

    fn note(&mut self, path: &str, seen: u8) {
        if let Some(reads) = &mut self.reads {
            reads.note(path, seen, self.tree.get(path).is_some());
        }
    }

    fn held(&self, who: DomLife) -> Held {
        held_in(self.live, self.owned, who)
    }

    /// Whether no more is held for a guest than may be.
    pub fn check_held(&self) -> Result<(), Errno> {
        let held = self.held(self.actor.who).bytes.max(0) as usize + self.beside;
        if self.actor.is_privileged() || within(held, self.limits.memory) {
            return Ok(());
        }
        Err(Errno::ENOMEM)
    }

    /// Whether a guest may make a domain's nodes, its own or another's, take so much more.
    fn check_memory(&self, owner: DomLife, growth: i64) -> Result<(), Errno> {
        if self.actor.is_privileged() || owner == DomLife::DOM0 || growth <= 0 {
            return Ok(());
        }
        let mut bytes = self.held(owner).bytes + growth;
        if owner == self.actor.who {
            bytes += self.beside as i64;
        }
        if within(bytes.max(0) as usize, self.limits.memory) {
            return Ok(());
        }
        Err(Errno::ENOMEM)
    }

    fn check_size(&self, permissions: usize, value: usize, names: usize) -> Result<(), Errno> {
        if self.actor.is_privileged() || self.limits.node_fits(permissions, value, names) {
            return Ok(());
        }
        Err(Errno::ENOSPC)
    }
}

impl Owned {
    /// What is owned in a tree.
    pub fn of(tree: &Tree) -> Owned {
        let mut owned = Owned::default();
        let mut stack = vec![tree.root()];
        while let Some(node) = stack.pop() {
            owned.add(node.acl().owner(), 1, account::of_node(node) as i64);
            stack.extend(node.children());
        }
        owned
    }

    /// Who owns anything.
    #[cfg(test)]
    pub fn domains(&self) -> impl Iterator<Item = DomLife> {
        self.0.keys().copied()
    }

    /// What a domain owns.
    pub fn of_domain(&self, who: DomLife) -> Held {
        self.0.get(&who).copied().unwrap_or_default()
    }

    /// Counts so much more.
    pub fn add(&mut self, who: DomLife, nodes: i64, bytes: i64) {
        if who == DomLife::DOM0 {
            return;
        }
        let held = self.0.entry(who).or_default();
        held.nodes += nodes;
        held.bytes += bytes;
        if *held == Held::default() {
            self.0.remove(&who);
        }
    }

    /// Counts all of `other` as well.
    pub fn add_all(&mut self, other: &Owned) {
        for (who, by) in &other.0 {
            self.add(*who, by.nodes, by.bytes);
        }
    }

    /// Forgets a domain.
    pub fn forget(&mut self, who: DomLife) {
        self.0.remove(&who);
    }
}

fn held_in(live: Option<&Owned>, owned: &Owned, who: DomLife) -> Held {
    let owned = owned.of_domain(who);
    let Some(live) = live else { return owned };
    let live = live.of_domain(who);
    Held {
        nodes: owned.nodes + live.nodes,
        // What a transaction removes is held until it commits.
        bytes: owned.bytes.max(0) + live.bytes,
    }
}
