//! A list of children. That of a directory with one child, as many are, takes no memory of its own.

use std::ops::{Deref, DerefMut};

use super::children::Child;

/// By how much a list grows, in children: most lists are small, and half empty ones would cost more than moving.
const GROWTH: usize = 4;

/// Some children, ordered by name.
#[derive(Clone, Debug)]
pub(super) enum List {
    /// Exactly one.
    One(Child),
    /// Any number.
    Many(Vec<Child>),
}

const _: () = assert!(size_of::<List>() == size_of::<Vec<Child>>());

impl Default for List {
    fn default() -> List {
        List::Many(Vec::new())
    }
}

impl Deref for List {
    type Target = [Child];

    #[inline]
    fn deref(&self) -> &[Child] {
        match self {
            List::One(child) => std::slice::from_ref(child),
            List::Many(list) => list,
        }
    }
}

impl DerefMut for List {
    #[inline]
    fn deref_mut(&mut self) -> &mut [Child] {
        match self {
            List::One(child) => std::slice::from_mut(child),
            List::Many(list) => list,
        }
    }
}

impl List {
    /// Puts a child in its place.
    pub fn insert(&mut self, at: usize, child: Child) {
        if self.is_empty() {
            *self = List::One(child);
            return;
        }
        let list = self.many();
        if list.len() == list.capacity() {
            list.reserve_exact(GROWTH);
        }
        list.insert(at, child);
    }

    /// Takes one out.
    pub fn remove(&mut self, at: usize) -> Child {
        let list = self.many();
        let child = list.remove(at);
        if list.len() == 1
            && let Some(last) = list.pop()
        {
            *self = List::One(last);
        } else if list.capacity() > list.len() + 2 * GROWTH {
            list.shrink_to(list.len() + GROWTH);
        }
        child
    }

    /// Puts all of another list behind these.
    pub fn append(&mut self, other: List) {
        match other {
            List::One(child) => self.insert(self.len(), child),
            List::Many(mut other) => self.many().append(&mut other),
        }
    }

    /// Both halves of it.
    pub fn halves(mut self) -> (List, List) {
        let low = self.many();
        let high = low.split_off(low.len() / 2);
        low.shrink_to_fit();
        (self, List::Many(high))
    }

    fn many(&mut self) -> &mut Vec<Child> {
        if let List::One(_) = self
            && let List::One(child) = std::mem::take(self)
        {
            *self = List::Many(vec![child]);
        }
        match self {
            List::Many(list) => list,
            List::One(_) => unreachable!("it was made many"),
        }
    }
}
