//! One node. There are very many, so one without children and with a short text takes one piece of memory.

use std::rc::Rc;

use super::children::{Children, Iter};
use super::name::Name;
use crate::core::account;
use crate::core::acl::Acl;

/// A node: name, value, permissions, children.
#[derive(Clone, Debug)]
pub struct Node {
    acl: Acl,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    /// No children, and there never were any.
    Leaf(Text),
    Directory(Box<Directory>),
}

#[derive(Clone, Debug)]
struct Directory {
    text: Text,
    children: Children,
    /// Bytes of all children's names, each with a NUL.
    names_len: u32,
    /// The tree's generation when a name was last added or removed.
    generation: u64,
}

/// The most bytes of name and value together that need no memory of their own.
const SHORT: usize = 29;

/// A name, then a value.
#[derive(Clone, Debug)]
enum Text {
    Short {
        name_len: u8,
        len: u8,
        bytes: [u8; SHORT],
    },
    Long {
        name_len: u16,
        bytes: Box<[u8]>,
    },
}

// With the two counters of `Rc`, 56 bytes: what the allocator gives for 64, its own bytes included.
const _: () = assert!(size_of::<Node>() == 40);

impl Node {
    /// One without children.
    pub fn new(name: &str, value: &[u8], acl: Acl) -> Node {
        Node {
            acl,
            body: Body::Leaf(Text::new(name.as_bytes(), value)),
        }
    }

    /// The name, empty for the root.
    pub fn name(&self) -> &str {
        // Names were text when the node was made; this cannot fail.
        core::str::from_utf8(self.name_bytes()).unwrap_or_default()
    }

    /// The name.
    pub fn name_bytes(&self) -> &[u8] {
        self.text().parts().0
    }

    /// The value.
    pub fn value(&self) -> &[u8] {
        self.text().parts().1
    }

    /// The permissions.
    pub fn acl(&self) -> &Acl {
        &self.acl
    }

    /// The children, ordered by name.
    pub fn children(&self) -> Iter<'_> {
        self.directory()
            .map_or_else(Iter::default, |d| d.children.iter())
    }

    /// Bytes of all children's names, each with a NUL.
    pub fn names_len(&self) -> usize {
        self.directory().map_or(0, |d| d.names_len as usize)
    }

    /// No less than what a copy of it takes, in bytes. Only its content counts, not how it lies in memory.
    pub fn copied(&self) -> u64 {
        let (name, value) = self.text().parts();
        let children = self.directory().map_or(0, |d| d.children.len());
        account::copy(name.len(), value.len(), children) as u64
    }

    /// Changes whenever a child is added or removed.
    pub fn children_generation(&self) -> u64 {
        self.directory().map_or(0, |d| d.generation)
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
    #[inline]
    pub fn child(&self, name: &Name<'_>) -> Option<&Rc<Node>> {
        self.directory()?.children.get(name)
    }

    /// The child of this name, to be changed.
    pub(super) fn child_mut(&mut self, name: &Name<'_>) -> Option<&mut Rc<Node>> {
        match &mut self.body {
            Body::Leaf(_) => None,
            Body::Directory(directory) => directory.children.get_mut(name),
        }
    }

    /// The child of this name, to be changed, and this node's permissions.
    pub(super) fn child_and_acl(&mut self, name: &Name<'_>) -> Option<(&Acl, &mut Rc<Node>)> {
        match &mut self.body {
            Body::Leaf(_) => None,
            Body::Directory(directory) => Some((&self.acl, directory.children.get_mut(name)?)),
        }
    }

    pub(super) fn set_value(&mut self, value: &[u8]) {
        self.text_mut().set_value(value);
    }

    pub(super) fn set_acl(&mut self, acl: Acl) {
        self.acl = acl;
    }

    pub(super) fn set_children_generation(&mut self, generation: u64) {
        if self.children_generation() != generation {
            self.directory_mut().generation = generation;
        }
    }

    /// Adds a child; nothing happens if there is one of this name.
    pub(super) fn insert(&mut self, name: &str, value: &[u8], acl: Acl, generation: u64) {
        let directory = self.directory_mut();
        if directory
            .children
            .insert(name, || Node::new(name, value, acl))
        {
            directory.names_len += name.len() as u32 + 1;
            directory.generation = generation;
        }
    }

    /// Adds a child behind all others; whether its name comes there.
    pub(super) fn push(&mut self, child: Node) -> bool {
        let directory = self.directory_mut();
        let len = child.name_bytes().len() as u32 + 1;
        let pushed = directory.children.push(child);
        if pushed {
            directory.names_len += len;
        }
        pushed
    }

    /// Takes a child out.
    pub(super) fn remove(&mut self, name: &str, generation: u64) -> Option<Rc<Node>> {
        let Body::Directory(directory) = &mut self.body else {
            return None;
        };
        let child = directory.children.remove(name)?;
        directory.names_len -= name.len() as u32 + 1;
        directory.generation = generation;
        Some(child)
    }

    fn text(&self) -> &Text {
        match &self.body {
            Body::Leaf(text) => text,
            Body::Directory(directory) => &directory.text,
        }
    }

    fn text_mut(&mut self) -> &mut Text {
        match &mut self.body {
            Body::Leaf(text) => text,
            Body::Directory(directory) => &mut directory.text,
        }
    }

    fn directory(&self) -> Option<&Directory> {
        match &self.body {
            Body::Leaf(_) => None,
            Body::Directory(directory) => Some(directory),
        }
    }

    fn directory_mut(&mut self) -> &mut Directory {
        if let Body::Leaf(text) = &mut self.body {
            let text = std::mem::replace(text, Text::EMPTY);
            self.body = Body::Directory(Box::new(Directory {
                text,
                children: Children::NONE,
                names_len: 0,
                generation: 0,
            }));
        }
        match &mut self.body {
            Body::Directory(directory) => directory,
            Body::Leaf(_) => unreachable!("it was made a directory"),
        }
    }
}

impl Text {
    const EMPTY: Text = Text::Short {
        name_len: 0,
        len: 0,
        bytes: [0; SHORT],
    };

    fn new(name: &[u8], value: &[u8]) -> Text {
        let (middle, len) = (name.len(), name.len() + value.len());
        if len <= SHORT {
            let mut bytes = [0; SHORT];
            bytes[..middle].copy_from_slice(name);
            bytes[middle..len].copy_from_slice(value);
            return Text::Short {
                name_len: middle as u8,
                len: len as u8,
                bytes,
            };
        }
        Text::Long {
            // A name is part of a path of at most 3072 bytes.
            name_len: middle as u16,
            bytes: [name, value].concat().into(),
        }
    }

    /// Name and value.
    fn parts(&self) -> (&[u8], &[u8]) {
        match self {
            Text::Short {
                name_len,
                len,
                bytes,
            } => bytes[..usize::from(*len)].split_at(usize::from(*name_len)),
            Text::Long { name_len, bytes } => bytes.split_at(usize::from(*name_len)),
        }
    }

    fn set_value(&mut self, value: &[u8]) {
        match self {
            Text::Short {
                name_len,
                len,
                bytes,
            } if usize::from(*name_len) + value.len() <= SHORT => {
                let start = usize::from(*name_len);
                bytes[start..start + value.len()].copy_from_slice(value);
                *len = (start + value.len()) as u8;
            }
            Text::Long { name_len, bytes }
                if bytes.len() == usize::from(*name_len) + value.len() && bytes.len() > SHORT =>
            {
                bytes[usize::from(*name_len)..].copy_from_slice(value);
            }
            _ => *self = Text::new(self.parts().0, value),
        }
    }
}
