//! Builds a tree from its nodes in order, without looking for the place of each.

use std::rc::Rc;

use super::{Acl, Node, Tree};

/// A tree that is being built: each node is opened, its children are built in the order of their names, and it is closed.
#[derive(Debug, Default)]
pub struct Builder {
    open: Vec<Node>,
    done: Option<Node>,
}

impl Builder {
    /// Begins a node below the one that is open; the first is the root.
    pub fn open(&mut self, name: &str, value: &[u8], acl: Acl) {
        self.open.push(Node::new(name, value, acl));
    }

    /// Ends the node that was opened last, whose [`Node::children_generation`] is told. `None` if there is none, a second
    /// root, or its name does not come after that of the one before it.
    pub fn close(&mut self, children_generation: u64) -> Option<()> {
        let mut node = self.open.pop()?;
        node.set_children_generation(children_generation);
        let Some(parent) = self.open.last_mut() else {
            return self.done.replace(node).is_none().then_some(());
        };
        parent.push(node).then_some(())
    }

    /// The tree, which counts its changes from `generation` on and what they replace from `replaced` on; `None` if its root is
    /// not closed.
    pub fn finish(self, generation: u64, replaced: u64) -> Option<Tree> {
        let root = Rc::new(self.done.filter(|_| self.open.is_empty())?);
        Some(Tree {
            root,
            generation,
            replaced,
        })
    }
}
