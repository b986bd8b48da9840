//! What differs between two trees that have much in common: what they share is not looked at.

use std::cmp::Ordering;
use std::rc::Rc;

use crate::core::acl::Acl;
use crate::core::path;
use crate::core::tree::{Node, Tree, walk};

/// One change on the way from one tree to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The node.
    pub path: Rc<str>,
    /// What it becomes; `None` if it goes, with all below it.
    pub node: Option<NodeState>,
}

/// A node without its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// Its value.
    pub value: Box<[u8]>,
    /// Its permissions.
    pub acl: Acl,
    /// The generation of its list of children.
    pub children_generation: u64,
}

/// What makes `from` to `to`; parents come before what is below them.
pub fn between(from: &Tree, to: &Tree) -> Vec<Delta> {
    let mut deltas = Vec::new();
    // Without recursion, as paths may be deep (XSA-418).
    let mut stack = vec![(String::from("/"), from.root(), to.root())];
    while let Some((path, from, to)) = stack.pop() {
        if core::ptr::eq(from, to) {
            continue;
        }
        if from.value() != to.value()
            || from.acl() != to.acl()
            || from.children_generation() != to.children_generation()
        {
            deltas.push(Delta {
                path: path.as_str().into(),
                node: Some(state(to)),
            });
        }
        let (mut old, mut new) = (from.children().peekable(), to.children().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => old.name().cmp(new.name()),
            };
            match order {
                Ordering::Less => deltas.extend(old.next().map(|node| Delta {
                    path: path::join(&path, node.name()).into(),
                    node: None,
                })),
                Ordering::Greater => {
                    if let Some(node) = new.next() {
                        add_all(&path::join(&path, node.name()), node, &mut deltas);
                    }
                }
                Ordering::Equal => {
                    if let (Some(old), Some(new)) = (old.next(), new.next())
                        && !core::ptr::eq(old, new)
                    {
                        stack.push((path::join(&path, new.name()), old, new));
                    }
                }
            }
        }
    }
    deltas
}

/// Makes the changes.
pub fn apply(tree: &mut Tree, deltas: &[Delta]) {
    for delta in deltas {
        let Some(node) = &delta.node else {
            tree.remove(&delta.path);
            continue;
        };
        if tree.get(&delta.path).is_some() {
            tree.set_value(&delta.path, &node.value);
            tree.set_acl(&delta.path, node.acl.clone());
        } else if let Some((parent, name)) = path::split(&delta.path) {
            tree.insert(parent, name, &node.value, node.acl.clone());
        }
    }
    // Last, as each change to a list of children above has set it.
    for delta in deltas {
        if let Some(node) = &delta.node {
            tree.set_children_generation(&delta.path, node.children_generation);
        }
    }
}

fn add_all(path: &str, node: &Node, deltas: &mut Vec<Delta>) {
    walk(path, node, &mut |path, node, _| {
        deltas.push(Delta {
            path: path.into(),
            node: Some(state(node)),
        });
        true
    });
}

fn state(node: &Node) -> NodeState {
    NodeState {
        value: node.value().into(),
        acl: node.acl().clone(),
        children_generation: node.children_generation(),
    }
}

impl PartialEq for Tree {
    fn eq(&self, other: &Tree) -> bool {
        (self.generation(), self.replaced()) == (other.generation(), other.replaced())
            && between(self, other).is_empty()
    }
}

impl Eq for Tree {}
