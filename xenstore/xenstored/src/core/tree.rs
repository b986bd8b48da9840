//! The tree of nodes: immutable to whoever holds a copy, changed by copying what lies on the way to the change.
//! Taking a copy of the whole costs one reference count.

mod build;

use std::rc::Rc;

use super::acl::Acl;
use super::path;

pub use build::Builder;

/// A whole tree. Cloning it is O(1); a change to one clone does not show in the others.
#[derive(Clone, Debug)]
pub struct Tree {
    root: Rc<Node>,
    /// Counts changes of any kind in this tree and its ancestors; equal numbers along one history say
    /// that nothing has changed.
    generation: u64,
}

/// A node. Name and value lie in one allocation, because there are very many nodes.
#[derive(Clone, Debug)]
pub struct Node {
    /// The name, then the value.
    bytes: Box<[u8]>,
    name_len: u16,
    acl: Acl,
    children: Option<Box<Children>>,
}

#[derive(Clone, Debug, Default)]
struct Children {
    /// Ordered by name.
    list: Vec<Child>,
    /// Bytes of all names, each with a NUL.
    names_len: u32,
    /// The tree's generation when a name was last added or removed.
    generation: u64,
}

/// A child with the beginning of its name, so that a search looks at few nodes and stays in the cache.
#[derive(Clone, Debug)]
struct Child {
    /// The first 8 bytes of the name, as a number that is ordered as they are.
    key: u64,
    node: Rc<Node>,
}

impl Tree {
    /// A tree of nothing but the root.
    pub fn new(acl: Acl) -> Tree {
        Tree {
            root: Rc::new(Node::new("", b"", acl)),
            generation: 1,
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

    /// Changes what [`Node::children_generation`] tells of an existing node.
    pub fn set_children_generation(&mut self, path: &str, generation: u64) {
        if let Some(node) = self.get_mut(path)
            && node.children_generation() != generation
        {
            node.children.get_or_insert_default().generation = generation;
        }
    }

    /// The root.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// The node at this absolute path.
    pub fn get(&self, path: &str) -> Option<&Node> {
        let mut node = &self.root;
        for name in path::names(path) {
            node = node.child(name)?;
        }
        Some(node)
    }

    /// The node at this path, or the nearest above it that exists, with that one's path.
    pub fn nearest<'p>(&self, path: &'p str) -> (&'p str, &Node) {
        let mut node = &*self.root;
        let mut end = 0;
        for name in path::names(path) {
            match node.child(name) {
                Some(child) => node = child,
                None => return (if end == 0 { "/" } else { &path[..end] }, node),
            }
            end += 1 + name.len();
        }
        (path, node)
    }

    /// Changes an existing node's value.
    pub fn set_value(&mut self, path: &str, value: &[u8]) {
        self.generation += 1;
        if let Some(node) = self.get_mut(path) {
            node.set_value(value);
        }
    }

    /// Changes an existing node's permissions.
    pub fn set_acl(&mut self, path: &str, acl: Acl) {
        self.generation += 1;
        if let Some(node) = self.get_mut(path) {
            node.acl = acl;
        }
    }

    /// Makes a node below an existing one; does nothing if it is there already.
    pub fn insert(&mut self, parent: &str, name: &str, value: &[u8], acl: Acl) {
        self.generation += 1;
        let generation = self.generation;
        let Some(parent) = self.get_mut(parent) else {
            return;
        };
        let children = parent.children.get_or_insert_default();
        if let Err(at) = children.position(name) {
            let child = Child {
                key: key(name),
                node: Rc::new(Node::new(name, value, acl)),
            };
            children.list.insert(at, child);
            children.names_len += name.len() as u32 + 1;
            children.generation = generation;
        }
    }

    /// Takes a node out with all below it. The root stays.
    pub fn remove(&mut self, path: &str) -> Option<Rc<Node>> {
        self.get(path)?;
        let (parent, name) = path::split(path)?;
        self.generation += 1;
        let generation = self.generation;
        let parent = self.get_mut(parent)?;
        let children = parent.children.as_mut()?;
        let at = children.position(name).ok()?;
        let node = children.list.remove(at).node;
        children.names_len -= name.len() as u32 + 1;
        children.generation = generation;
        Some(node)
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
        for name in path::names(path) {
            let children = node.children.as_mut()?;
            let at = children.position(name).ok()?;
            node = Rc::make_mut(&mut children.list[at].node);
        }
        Some(node)
    }
}

impl Node {
    fn new(name: &str, value: &[u8], acl: Acl) -> Node {
        Node {
            bytes: [name.as_bytes(), value].concat().into(),
            // A name is part of a path of at most 3072 bytes.
            name_len: name.len() as u16,
            acl,
            children: None,
        }
    }

    /// The name, empty for the root.
    pub fn name(&self) -> &str {
        // Names were text when the node was made; this cannot fail.
        core::str::from_utf8(self.name_bytes()).unwrap_or_default()
    }

    fn name_bytes(&self) -> &[u8] {
        &self.bytes[..self.name_len.into()]
    }

    /// The value.
    pub fn value(&self) -> &[u8] {
        &self.bytes[self.name_len.into()..]
    }

    /// The permissions.
    pub fn acl(&self) -> &Acl {
        &self.acl
    }

    /// The children, ordered by name.
    pub fn children(&self) -> impl ExactSizeIterator<Item = &Node> + DoubleEndedIterator {
        let list = self.children.as_ref().map_or(&[][..], |c| &c.list);
        list.iter().map(|child| &*child.node)
    }

    /// Bytes of all children's names, each with a NUL.
    pub fn names_len(&self) -> usize {
        self.children.as_ref().map_or(0, |c| c.names_len as usize)
    }

    /// Changes whenever a child is added or removed.
    pub fn children_generation(&self) -> u64 {
        self.children.as_ref().map_or(0, |c| c.generation)
    }

    /// Whether both have children of the same names.
    pub fn same_names(&self, other: &Node) -> bool {
        self.names_len() == other.names_len()
            && self.children().len() == other.children().len()
            && self
                .children()
                .zip(other.children())
                .all(|(a, b)| a.name_bytes() == b.name_bytes())
    }

    /// The child of this name.
    pub fn child(&self, name: &str) -> Option<&Rc<Node>> {
        let children = self.children.as_ref()?;
        let at = children.position(name).ok()?;
        Some(&children.list[at].node)
    }

    fn set_value(&mut self, value: &[u8]) {
        let name_len = usize::from(self.name_len);
        if self.bytes.len() == name_len + value.len() {
            self.bytes[name_len..].copy_from_slice(value);
        } else {
            self.bytes = [&self.bytes[..name_len], value].concat().into();
        }
    }
}

impl Children {
    fn position(&self, name: &str) -> Result<usize, usize> {
        let wanted = key(name);
        self.list.binary_search_by(|child| {
            child
                .key
                .cmp(&wanted)
                .then_with(|| child.node.name_bytes().cmp(name.as_bytes()))
        })
    }
}

/// The first 8 bytes of a name, big-endian, so that keys are ordered as names are.
fn key(name: &str) -> u64 {
    let mut first = [0; 8];
    let len = name.len().min(8);
    first[..len].copy_from_slice(&name.as_bytes()[..len]);
    u64::from_be_bytes(first)
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
