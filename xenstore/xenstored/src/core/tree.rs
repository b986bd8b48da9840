//! The tree of nodes: immutable to whoever holds a copy, changed by copying what lies on the way to the change.
//! Taking a copy of the whole costs one reference count.

mod build;
mod children;
mod list;
mod name;
mod node;

use std::rc::Rc;

use super::acl::Acl;
use super::path;

pub use build::Builder;
pub use children::PART_MAX;
pub use name::{Name, names};
pub use node::Node;

/// A whole tree. Cloning it is O(1); a change to one clone does not show in the others.
#[derive(Clone, Debug)]
pub struct Tree {
    root: Rc<Node>,
    /// Counts changes of any kind in this tree and its ancestors; equal numbers along one history say
    /// that nothing has changed.
    generation: u64,
    /// Counts what changes have replaced, as [`Node::copied`] does.
    replaced: u64,
}

impl Tree {
    /// A tree of nothing but the root.
    pub fn new(acl: Acl) -> Tree {
        Tree {
            root: Rc::new(Node::new("", b"", acl)),
            generation: 1,
            replaced: 0,
        }
    }

    /// Grows with every change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Goes on counting changes from another number.
    pub fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// Grows by what each change has replaced, in bytes: as much at least as a copy that was taken before keeps alone because of
    /// it.
    pub fn replaced(&self) -> u64 {
        self.replaced
    }

    /// Goes on counting from another number.
    pub fn set_replaced(&mut self, bytes: u64) {
        self.replaced = bytes;
    }

    /// Changes what [`Node::children_generation`] tells of an existing node.
    pub fn set_children_generation(&mut self, path: &str, generation: u64) {
        if let Some(node) = self.get_mut(path) {
            node.set_children_generation(generation);
        }
    }

    /// The root.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// The node at this absolute path.
    pub fn get(&self, path: &str) -> Option<&Node> {
        let mut node = &self.root;
        for name in names(path) {
            node = node.child(&name)?;
        }
        Some(node)
    }

    /// The node at this path and the one above it, as far as they exist.
    pub fn with_parent(&self, path: &str) -> (Option<&Node>, Option<&Node>) {
        let (mut parent, mut node) = (None, Some(&*self.root));
        for name in names(path) {
            parent = node;
            node = node.and_then(|node| node.child(&name)).map(|node| &**node);
        }
        (parent, node)
    }

    /// The nodes at this path in both trees, unless it is found on the way there that both are the same.
    pub fn compare<'t>(
        &'t self,
        other: &'t Tree,
        path: &str,
    ) -> Option<(Option<&'t Node>, Option<&'t Node>)> {
        let (mut a, mut b) = (Some(&self.root), Some(&other.root));
        for name in names(path) {
            match (a, b) {
                (None, None) => return None,
                (Some(a), Some(b)) if Rc::ptr_eq(a, b) => return None,
                _ => {}
            }
            a = a.and_then(|node| node.child(&name));
            b = b.and_then(|node| node.child(&name));
        }
        match (a, b) {
            (None, None) => None,
            (Some(a), Some(b)) if Rc::ptr_eq(a, b) => None,
            _ => Some((a.map(|node| &**node), b.map(|node| &**node))),
        }
    }

    /// The node at this path, or the nearest above it that exists, with that one's path.
    pub fn nearest<'p>(&self, path: &'p str) -> (&'p str, &Node) {
        let mut node = &*self.root;
        let mut end = 0;
        for name in names(path) {
            match node.child(&name) {
                Some(child) => node = child,
                None => return (if end == 0 { "/" } else { &path[..end] }, node),
            }
            end += 1 + name.bytes.len();
        }
        (path, node)
    }

    /// Changes an existing node's value. Returns its permissions, and those of the node above if that has others.
    pub fn set_value(&mut self, path: &str, value: &[u8]) -> Option<(Acl, Option<Acl>)> {
        self.generation += 1;
        let mut above = None;
        let mut node = Rc::make_mut(&mut self.root);
        self.replaced = self.replaced.saturating_add(node.copied());
        for name in names(path) {
            let (acl, child) = node.child_and_acl(&name)?;
            let child = Rc::make_mut(child);
            self.replaced = self.replaced.saturating_add(child.copied());
            above = (!acl.same(child.acl())).then_some(acl);
            node = child;
        }
        node.set_value(value);
        Some((node.acl().clone(), above.cloned()))
    }

    /// Changes an existing node's permissions.
    pub fn set_acl(&mut self, path: &str, acl: Acl) {
        self.generation += 1;
        if let Some(node) = self.get_mut(path) {
            node.set_acl(acl);
        }
    }

    /// Makes a node below an existing one; does nothing if it is there already.
    pub fn insert(&mut self, parent: &str, name: &str, value: &[u8], acl: Acl) {
        self.generation += 1;
        let generation = self.generation;
        if let Some(parent) = self.get_mut(parent) {
            parent.insert(name, value, acl, generation);
        }
    }

    /// Takes a node out with all below it. The root stays. Who looks at what was below it is to
    /// [count](Self::set_replaced) that.
    pub fn remove(&mut self, path: &str) -> Option<Rc<Node>> {
        self.get(path)?;
        let (parent, name) = path::split(path)?;
        self.generation += 1;
        let generation = self.generation;
        self.get_mut(parent)?.remove(name, generation)
    }

    /// How many nodes there are, the root included.
    pub fn count(&self) -> usize {
        let mut count = 0;
        walk("/", &self.root, &mut |_, _, _| {
            count += 1;
            true
        });
        count
    }

    /// Visits every node from the root down; `visit` is given path, node and parent, and says whether to go on
    /// below the node.
    pub fn walk(&self, visit: &mut impl FnMut(&str, &Node, Option<&Node>) -> bool) {
        walk("/", &self.root, visit);
    }

    /// The node for changing; whatever on the way is shared with another tree is copied.
    fn get_mut(&mut self, path: &str) -> Option<&mut Node> {
        let mut node = Rc::make_mut(&mut self.root);
        self.replaced = self.replaced.saturating_add(node.copied());
        for name in names(path) {
            node = Rc::make_mut(node.child_mut(&name)?);
            self.replaced = self.replaced.saturating_add(node.copied());
        }
        Some(node)
    }
}

/// Visits `node` at `path` and all below it, without recursion (XSA-418).
pub fn walk(path: &str, node: &Node, visit: &mut impl FnMut(&str, &Node, Option<&Node>) -> bool) {
    let mut path = String::from(path);
    let mut stack = vec![(None::<&Node>, node, path.len(), false)];
    while let Some((parent, node, parent_len, below)) = stack.pop() {
        path.truncate(parent_len);
        if below {
            if !path.ends_with('/') {
                path.push('/');
            }
            path.push_str(node.name());
        }
        if visit(&path, node, parent) {
            let len = path.len();
            let children = node.children().rev();
            stack.extend(children.map(|child| (Some(node), child, len, true)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use xs_wire::Access;

    fn acl() -> Acl {
        Acl::dom0(Access::None)
    }

    /// Every node but the root, with its value.
    fn dump(tree: &Tree) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        tree.walk(&mut |path, node, _| {
            all.insert(path.to_owned(), node.value().to_vec());
            assert_eq!(tree.get(path).unwrap().value(), node.value());
            let names: usize = node.children().map(|child| child.name().len() + 1).sum();
            assert_eq!(names, node.names_len());
            true
        });
        all.remove("/");
        all
    }

    #[test]
    fn nearest() {
        let mut tree = Tree::new(acl());
        tree.insert("/", "a", b"", acl());
        tree.insert("/a", "b", b"", acl());
        for (path, found) in [
            ("/", "/"),
            ("/x", "/"),
            ("/a/x/y", "/a"),
            ("/a/b", "/a/b"),
            ("/ab", "/"),
        ] {
            assert_eq!(tree.nearest(path).0, found, "{path}");
        }
    }

    #[test]
    fn a_copy_does_not_see_later_changes() {
        let mut tree = Tree::new(acl());
        tree.insert("/", "a", b"1", acl());
        let copy = tree.clone();
        tree.set_value("/a", b"2");
        tree.insert("/a", "b", b"3", acl());
        assert_eq!(copy.get("/a").unwrap().value(), b"1");
        assert!(copy.get("/a/b").is_none());
        assert!(tree.remove("/a").is_some());
        assert!(tree.remove("/").is_none());
        assert_eq!((tree.count(), copy.count()), (1, 2));
    }

    #[test]
    fn a_deep_tree_needs_no_deep_stack() {
        std::thread::Builder::new()
            .stack_size(1 << 20)
            .spawn(|| {
                let mut tree = Tree::new(acl());
                let mut path = String::from("/");
                for _ in 0..1536 {
                    tree.insert(&path, "x", b"", acl());
                    path = path::join(&path, "x");
                }
                assert_eq!(tree.count(), 1537);
                drop(tree.remove("/x"));
                assert_eq!(tree.count(), 1);
            })
            .unwrap()
            .join()
            .unwrap();
    }

    #[derive(Clone, Debug)]
    enum Change {
        Insert(&'static str, &'static str, u8),
        Value(&'static str, u8),
        Remove(&'static str),
        Copy,
    }

    fn change() -> impl Strategy<Value = Change> {
        let name = || {
            proptest::sample::select(
                &[
                    "a",
                    "b",
                    "ab",
                    "c",
                    "long-name-1",
                    "long-name-2",
                    "long-nam",
                ][..],
            )
        };
        let path = || {
            proptest::sample::select(
                &[
                    "/",
                    "/a",
                    "/b",
                    "/a/a",
                    "/a/b",
                    "/a/b/c",
                    "/ab",
                    "/long-name-1",
                    "/long-nam",
                ][..],
            )
        };
        prop_oneof![
            4 => (path(), name(), any::<u8>()).prop_map(|(p, n, v)| Change::Insert(p, n, v)),
            2 => (path(), any::<u8>()).prop_map(|(p, v)| Change::Value(p, v)),
            2 => path().prop_map(Change::Remove),
            1 => Just(Change::Copy),
        ]
    }

    proptest! {
        /// The tree against a plain map from path to value, with copies kept and compared at the end.
        #[test]
        fn like_a_map(changes in proptest::collection::vec(change(), 0..60)) {
            let mut tree = Tree::new(acl());
            let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            let mut copies = Vec::new();
            for change in changes {
                match change {
                    Change::Insert(parent, name, value) => {
                        tree.insert(parent, name, &[value], acl());
                        let exists = parent == "/" || model.contains_key(parent);
                        if exists {
                            model.entry(path::join(parent, name)).or_insert_with(|| vec![value]);
                        }
                    }
                    Change::Value(path, value) => {
                        let value = vec![value; usize::from(value % 4)];
                        tree.set_value(path, &value);
                        if let Some(slot) = model.get_mut(path) {
                            *slot = value;
                        }
                    }
                    Change::Remove(path) => {
                        let was = model.contains_key(path);
                        prop_assert_eq!(tree.remove(path).is_some(), was);
                        if was {
                            let below = format!("{path}/");
                            model.retain(|key, _| key != path && !key.starts_with(&below));
                        }
                    }
                    Change::Copy => copies.push((tree.clone(), model.clone())),
                }
                prop_assert_eq!(dump(&tree), model.clone());
            }
            for (tree, model) in copies {
                prop_assert_eq!(dump(&tree), model);
            }
        }
    }
}
