//! A node's children, ordered by name. Few lie in one list; more in parts of some dozens, so that a change of one below a
//! directory that is shared with another tree copies a part of the directory, not all of it.

use std::cmp::Ordering;
use std::rc::Rc;

use super::list::List;
use super::name::Name;
use super::node::Node;

/// Most children in a part. Copying one takes time by it, copying the list of parts by its reciprocal.
pub const PART_MAX: usize = 32;
/// Two parts that are together no larger become one.
const PART_MIN: usize = PART_MAX / 2;

/// All children of a node.
#[derive(Clone, Debug)]
pub struct Children {
    /// All of them, as long as there are no parts.
    first: List,
    /// Two at least, or none; each has children.
    parts: Vec<Part>,
    count: u32,
}

/// Some children that come one after the other.
#[derive(Clone, Debug)]
struct Part {
    /// The key of the first.
    key: u64,
    list: Rc<List>,
}

/// A child with the beginning of its name, so that a search looks at few nodes and stays in the cache.
#[derive(Clone, Debug)]
pub(super) struct Child {
    /// The [`Name::key`] of its name.
    key: u64,
    node: Rc<Node>,
}

/// So many are looked at one after the other.
const FEW: usize = 8;

/// Where a name is in a list, or where it would be.
#[inline]
fn position(list: &[Child], name: &Name<'_>) -> Result<usize, usize> {
    let is_before = |child: &&Child| child.key < name.key;
    let mut at = match list.len() {
        ..=FEW => list.iter().take_while(is_before).count(),
        _ => list.partition_point(|child| is_before(&child)),
    };
    while let Some(child) = list.get(at)
        && child.key == name.key
    {
        if name.is_short() {
            return Ok(at);
        }
        match child.node.name_bytes().cmp(name.bytes) {
            Ordering::Less => at += 1,
            Ordering::Equal => return Ok(at),
            Ordering::Greater => break,
        }
    }
    Err(at)
}

impl Children {
    /// None.
    pub const NONE: Children = Children {
        first: List::Many(Vec::new()),
        parts: Vec::new(),
        count: 0,
    };

    /// How many.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// All, ordered by name.
    pub fn iter(&self) -> Iter<'_> {
        Iter {
            first: self.first.iter(),
            parts: self.parts.iter(),
            front: [].iter(),
            back: [].iter(),
            left: self.len(),
        }
    }

    /// The one of this name.
    #[inline]
    pub fn get(&self, name: &Name<'_>) -> Option<&Rc<Node>> {
        let list = match self.parts.is_empty() {
            true => &self.first,
            false => &*self.parts[self.part(name)?].list,
        };
        let at = position(list, name).ok()?;
        Some(&list[at].node)
    }

    /// The one of this name, to be changed.
    pub fn get_mut(&mut self, name: &Name<'_>) -> Option<&mut Rc<Node>> {
        let list = match self.part(name) {
            None => &mut self.first,
            Some(part) => {
                let list = &mut self.parts[part].list;
                // Nothing is copied for one that is not there.
                let at = position(list, name).ok()?;
                return Some(&mut Rc::make_mut(list)[at].node);
            }
        };
        let at = position(list, name).ok()?;
        Some(&mut list[at].node)
    }

    /// Adds one, made when its name is found to be free; whether it was.
    pub fn insert(&mut self, name: &str, node: impl FnOnce() -> Node) -> bool {
        let wanted = Name::new(name.as_bytes());
        let part = self.part(&wanted);
        let list = match part {
            None => &self.first,
            Some(part) => &*self.parts[part].list,
        };
        let Err(at) = position(list, &wanted) else {
            return false;
        };
        let child = Child {
            key: wanted.key,
            node: Rc::new(node()),
        };
        self.count += 1;
        match part {
            None => {
                self.first.insert(at, child);
                if self.first.len() > PART_MAX {
                    let (low, high) = std::mem::take(&mut self.first).halves();
                    self.parts = vec![Part::new(low), Part::new(high)];
                }
            }
            Some(number) => {
                let part = &mut self.parts[number];
                let list = Rc::make_mut(&mut part.list);
                list.insert(at, child);
                if list.len() > PART_MAX {
                    let (low, high) = std::mem::take(list).halves();
                    *part = Part::new(low);
                    self.parts.insert(number + 1, Part::new(high));
                } else {
                    part.key = list[0].key;
                }
            }
        }
        true
    }

    /// Adds one behind all others; whether its name comes there.
    pub fn push(&mut self, node: Node) -> bool {
        let last = self.iter().next_back();
        last.is_none_or(|last| last.name_bytes() < node.name_bytes()) && {
            let name = node.name().to_owned();
            self.insert(&name, || node)
        }
    }

    /// Takes one out.
    pub fn remove(&mut self, name: &str) -> Option<Rc<Node>> {
        let wanted = Name::new(name.as_bytes());
        let Some(number) = self.part(&wanted) else {
            let at = position(&self.first, &wanted).ok()?;
            self.count -= 1;
            return Some(self.first.remove(at).node);
        };
        let part = &mut self.parts[number];
        let at = position(&part.list, &wanted).ok()?;
        self.count -= 1;
        let list = Rc::make_mut(&mut part.list);
        let child = list.remove(at);
        let left = list.len();
        match list.first() {
            Some(first) => part.key = first.key,
            None => drop(self.parts.remove(number)),
        }
        if left <= PART_MIN {
            self.join(number.saturating_sub(1));
            self.join(number);
        }
        if self.parts.len() == 1
            && let Some(part) = self.parts.pop()
        {
            self.first = Rc::unwrap_or_clone(part.list);
            self.parts = Vec::new();
        }
        Some(child.node)
    }

    /// Makes one part of this and the next if they are small.
    fn join(&mut self, number: usize) {
        let [low, high, ..] = self.parts.get_mut(number..).unwrap_or_default() else {
            return;
        };
        if low.list.len() + high.list.len() <= PART_MIN {
            let list = Rc::unwrap_or_clone(std::mem::take(&mut high.list));
            Rc::make_mut(&mut low.list).append(list);
            self.parts.remove(number + 1);
        }
    }

    /// The part where a name is, if it is there; `None` if there are no parts.
    fn part(&self, name: &Name<'_>) -> Option<usize> {
        if self.parts.is_empty() {
            return None;
        }
        let mut behind = self.parts.partition_point(|part| part.key < name.key);
        while let Some(part) = self.parts.get(behind)
            && part.key == name.key
            && let Some(first) = part.list.first()
            && (name.is_short() || first.node.name_bytes() <= name.bytes)
        {
            behind += 1;
        }
        Some(behind.saturating_sub(1))
    }
}

impl Part {
    fn new(list: List) -> Part {
        Part {
            key: list.first().map_or(0, |child| child.key),
            list: Rc::new(list),
        }
    }
}

/// Children, ordered by name.
#[derive(Clone, Debug, Default)]
pub struct Iter<'a> {
    first: std::slice::Iter<'a, Child>,
    parts: std::slice::Iter<'a, Part>,
    front: std::slice::Iter<'a, Child>,
    back: std::slice::Iter<'a, Child>,
    left: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Node;

    fn next(&mut self) -> Option<&'a Node> {
        self.left = self.left.saturating_sub(1);
        loop {
            if let Some(child) = self.first.next().or_else(|| self.front.next()) {
                return Some(&child.node);
            }
            match self.parts.next() {
                Some(part) => self.front = part.list.iter(),
                None => return self.back.next().map(|child| &*child.node),
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl DoubleEndedIterator for Iter<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.left = self.left.saturating_sub(1);
        loop {
            if let Some(child) = self.back.next_back() {
                return Some(&child.node);
            }
            match self.parts.next_back() {
                Some(part) => self.back = part.list.iter(),
                None => {
                    let child = self.front.next_back().or_else(|| self.first.next_back());
                    return child.map(|child| &*child.node);
                }
            }
        }
    }
}

impl ExactSizeIterator for Iter<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use xs_wire::Access;

    use crate::core::acl::Acl;

    /// Names that are near each other, some beginning with the same bytes.
    fn name() -> impl Strategy<Value = String> {
        let head = prop_oneof![
            Just(""),
            Just("node"),
            Just("a-long-n"),
            Just("a-long-name-")
        ];
        (head, 0..300u32).prop_map(|(head, number)| format!("{head}{number}"))
    }

    proptest! {
        /// Against a plain map, with a copy kept of each state that must stay as it is.
        #[test]
        fn like_a_map(
            changes in proptest::collection::vec((name(), proptest::bool::weighted(0.7), any::<bool>()), 0..400),
            removals in proptest::collection::vec(any::<proptest::sample::Index>(), 0..400),
        ) {
            let node = |name: &str| Node::new(name, b"", Acl::dom0(Access::None));
            let mut children = Children::NONE;
            let mut model = BTreeMap::new();
            let mut copies = Vec::new();
            let check = |children: &Children, model: &BTreeMap<String, ()>| {
                let names: Vec<_> = children.iter().map(Node::name).collect();
                let back: Vec<_> = children.iter().rev().map(Node::name).collect();
                assert!(names.iter().eq(back.iter().rev()));
                assert_eq!(names, model.keys().map(String::as_str).collect::<Vec<_>>());
                assert_eq!(children.len(), model.len());
                assert!(names.iter().all(|name| children.get(&Name::new(name.as_bytes())).unwrap().name() == *name));
                assert!(children.parts.len() != 1);
                assert!(children.parts.iter().all(|p| (1..=PART_MAX).contains(&p.list.len()) && p.key == p.list[0].key));
            };
            for (name, add, copy) in &changes {
                if *add {
                    let is_new = model.insert(name.clone(), ()).is_none();
                    prop_assert_eq!(children.insert(name, || node(name)), is_new);
                } else {
                    let was = model.remove(name).is_some();
                    prop_assert_eq!(children.get(&Name::new(name.as_bytes())).is_some(), was);
                    prop_assert_eq!(children.get_mut(&Name::new(name.as_bytes())).is_some(), was);
                    prop_assert_eq!(children.remove(name).is_some(), was);
                }
                if *copy && copies.len() < 8 {
                    copies.push((children.clone(), model.clone()));
                }
            }
            check(&children, &model);
            for index in removals.iter().take(model.len()) {
                let name = index.get(&model.keys().collect::<Vec<_>>()).to_string();
                model.remove(&name);
                prop_assert!(children.remove(&name).is_some());
                prop_assert!(children.get(&Name::new(name.as_bytes())).is_none());
            }
            check(&children, &model);
            for (children, model) in &copies {
                check(children, model);
            }
        }
    }
}
