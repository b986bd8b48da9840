//! What a domain makes us hold, in bytes: content, and for each thing a little more than what is kept beside it. What
//! the allocator is asked for is never more than what is counted here; `tests/heap.rs` looks.
//!
//! Invariant: each count depends only on what is held now, not on how it came to be: it can be taken again from what is
//! there (`CONTROL check`), and is 0 when nothing is held.

use super::tree::{Node, PART_MAX, Tree, names};

/// Beside a node's name and value.
const NODE: usize = 240;
/// For each entry of its permissions.
const ENTRY: usize = 16;
/// For each child in a directory that a transaction has copied.
const CHILD: usize = 24;
/// For each child in the list of the parts of a directory: 16 bytes for two parts, which have 17 children at least.
const PART: usize = 2;
/// Beside a watch's path and token.
const WATCH: usize = 448;
/// A transaction with nothing in it.
pub const TRANSACTION: usize = 768;
/// Beside the path of a node that a transaction has seen.
const SEEN: usize = 64;
/// Beside an update's path and value.
const UPDATE: usize = 96;
/// Beside the path of what watches are to be told.
const CHANGE: usize = 128;
/// What an event that waits is counted as beside its text.
pub const EVENT: usize = 192;
/// A reply that is not taken yet, beside its bytes.
pub const REPLY: usize = 8;

/// A node of this content.
pub fn node(name: usize, value: usize, entries: usize) -> usize {
    NODE + name + value + ENTRY * entries
}

/// A node.
pub fn of_node(of: &Node) -> usize {
    node(of.name().len(), of.value().len(), of.acl().entries())
}

/// A copy of a node that has so many children: of a long list of them only a part is copied, and the list of parts.
pub fn copy(name: usize, value: usize, children: usize) -> usize {
    node(name, value, 0) + CHILD * children.min(PART_MAX) + PART * children
}

/// A watch. Its path is kept for its client and for finding it.
pub fn watch(path: &str, token: &[u8]) -> usize {
    WATCH + 2 * path.len() + token.len()
}

/// That a transaction has seen a node.
pub fn seen(path: &str) -> usize {
    SEEN + path.len()
}

/// A change that watches are to be told of at a transaction's end. Three permission lists may go with it.
pub fn change(path: &str) -> usize {
    CHANGE + path.len() + 3 * ENTRY
}

/// An update of a transaction's, with the change that watches are told of.
pub fn update(path: &str, value: usize) -> usize {
    UPDATE + path.len() + value + change(path)
}

/// What is copied of a tree by a change at `path`, if what is on the way down to so many levels was copied before.
pub fn way(tree: &Tree, path: &str, levels: usize) -> usize {
    let mut node = tree.root();
    let mut names = names(path);
    let mut bytes = 0;
    for level in 0.. {
        if level >= levels {
            bytes += of_node(node) + CHILD * node.children().len();
        }
        match names.next().and_then(|name| node.child(&name)) {
            Some(child) => node = child,
            None => break,
        }
    }
    bytes
}
