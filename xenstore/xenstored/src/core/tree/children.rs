//! A node's children, ordered by name. Few lie in one list; more in parts of some dozens, so that a change of one below a
//! directory that is shared with another tree copies a part of the directory, not all of it.

use std::rc::Rc;

use super::node::Node;

/// Most children in a part. Copying one takes time by it, copying the list of parts by its reciprocal.
pub const PART_MAX: usize = 32;
/// Two parts that are together no larger become one.
const PART_MIN: usize = PART_MAX / 2;
/// By how much a list grows, in children: most lists are small, and half empty ones would cost more than moving.
const GROWTH: usize = 4;

/// All children of a node.
#[derive(Clone, Debug)]
pub struct Children {
    /// All of them, as long as there are no parts.
    first: Vec<Child>,
    /// Two at least, or none; each has children.
    parts: Vec<Part>,
    count: u32,
}

/// Some children that come one after the other.
#[derive(Clone, Debug)]
struct Part {
    /// The key of the first.
    key: u64,
    list: Rc<Vec<Child>>,
}

/// A child with the beginning of its name, so that a search looks at few nodes and stays in the cache.
#[derive(Clone, Debug)]
struct Child {
    /// The first [`KEY_LEN`] bytes of the name, as a number that is ordered as they are.
    key: u64,
    node: Rc<Node>,
}

const KEY_LEN: usize = 8;

/// A name to look for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    key: u64,
    name: &'a [u8],
}

impl<'a> Wanted<'a> {
    fn new(name: &'a [u8]) -> Self {
        let key = key(name);
        Wanted { key, name }
    }

    /// How a child compares, whose key is at hand.
    fn order(&self, key: u64, node: &Node) -> std::cmp::Ordering {
        key.cmp(&self.key).then_with(|| {
            // Keys of shorter names are filled up with zeros, which no name has: equal keys mean equal names.
            if self.name.len() < KEY_LEN {
                std::cmp::Ordering::Equal
            } else {
                node.name_bytes().cmp(self.name)
            }
        })
    }

    fn position(&self, list: &[Child]) -> Result<usize, usize> {
        list.binary_search_by(|child| self.order(child.key, &child.node))
    }
}

impl Children {
    /// None.
    pub const NONE: Children = Children {
        first: Vec::new(),
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
    pub fn get(&self, name: &str) -> Option<&Rc<Node>> {
        let wanted = Wanted::new(name.as_bytes());
        let list = match self.part(&wanted) {
            None => &self.first,
            Some(part) => &*self.parts[part].list,
        };
        let at = wanted.position(list).ok()?;
        Some(&list[at].node)
    }

    /// The one of this name, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Rc<Node>> {
        let wanted = Wanted::new(name.as_bytes());
        let list = match self.part(&wanted) {
            None => &mut self.first,
            Some(part) => {
                let list = &mut self.parts[part].list;
                // Nothing is copied for one that is not there.
                wanted.position(list).ok()?;
                Rc::make_mut(list)
            }
        };
        let at = wanted.position(list).ok()?;
        Some(&mut list[at].node)
    }

    /// Adds one, made when its name is found to be free; whether it was.
    pub fn insert(&mut self, name: &str, node: impl FnOnce() -> Node) -> bool {
        let wanted = Wanted::new(name.as_bytes());
        let part = self.part(&wanted);
        let list = match part {
            None => &self.first,
            Some(part) => &*self.parts[part].list,
        };
        let Err(at) = wanted.position(list) else {
            return false;
        };
        let child = Child {
            key: wanted.key,
            node: Rc::new(node()),
        };
        self.count += 1;
        match part {
            None => {
                insert(&mut self.first, at, child);
                if self.first.len() > PART_MAX {
                    let (low, high) = halves(std::mem::take(&mut self.first));
                    self.parts = vec![Part::new(low), Part::new(high)];
                }
            }
            Some(number) => {
                let part = &mut self.parts[number];
                let list = Rc::make_mut(&mut part.list);
                insert(list, at, child);
                if list.len() > PART_MAX {
                    let (low, high) = halves(std::mem::take(list));
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
        let wanted = Wanted::new(name.as_bytes());
        let Some(number) = self.part(&wanted) else {
            let at = wanted.position(&self.first).ok()?;
            self.count -= 1;
            let child = self.first.remove(at);
            if self.first.capacity() > self.first.len() + 2 * GROWTH {
                self.first.shrink_to(self.first.len() + GROWTH);
            }
            return Some(child.node);
        };
        let part = &mut self.parts[number];
        let at = wanted.position(&part.list).ok()?;
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
            let mut list = Rc::unwrap_or_clone(std::mem::take(&mut high.list));
            Rc::make_mut(&mut low.list).append(&mut list);
            self.parts.remove(number + 1);
        }
    }

    /// The part where a name is, if it is there; `None` if there are no parts.
    fn part(&self, wanted: &Wanted<'_>) -> Option<usize> {
        if self.parts.is_empty() {
            return None;
        }
        let is_before = |part: &Part| {
            let first = part.list.first();
            part.key < wanted.key
                || part.key == wanted.key
                    && first.is_some_and(|first| wanted.order(first.key, &first.node).is_le())
        };
        Some(self.parts.partition_point(is_before).saturating_sub(1))
    }
}

impl Part {
    fn new(list: Vec<Child>) -> Part {
        Part {
            key: list.first().map_or(0, |child| child.key),
            list: Rc::new(list),
        }
    }
}

fn insert(list: &mut Vec<Child>, at: usize, child: Child) {
    if list.len() == list.capacity() {
        list.reserve_exact(GROWTH);
    }
    list.insert(at, child);
}

fn halves(mut low: Vec<Child>) -> (Vec<Child>, Vec<Child>) {
    let high = low.split_off(low.len() / 2);
    low.shrink_to_fit();
    (low, high)
}

/// The first bytes of a name, big-endian, so that keys are ordered as names are.
fn key(name: &[u8]) -> u64 {
    if let Some(first) = name.first_chunk::<KEY_LEN>() {
        return u64::from_be_bytes(*first);
    }
    let mut key = 0;
    for byte in name {
        key = key << 8 | u64::from(*byte);
    }
    match name.len() {
        0 => 0,
        len => key << (8 * (KEY_LEN - len)),
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

    #[test]
    fn keys_are_ordered_as_names() {
        let names = [
            "", "-", "0", "00", "1", "a", "a0", "aaaaaaa", "aaaaaaaa", "aaaaaaab", "b",
        ];
        for pair in names.windows(2) {
            assert!(
                key(pair[0].as_bytes()) < key(pair[1].as_bytes()),
                "{pair:?}"
            );
        }
        assert_eq!(key(b"aaaaaaaa"), key(b"aaaaaaaab"));
    }

    /// Names that are near each other, some beginning with the same [`KEY_LEN`] bytes.
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
                assert!(names.iter().all(|name| children.get(name).unwrap().name() == *name));
                assert!(children.parts.len() != 1);
                assert!(children.parts.iter().all(|p| (1..=PART_MAX).contains(&p.list.len()) && p.key == p.list[0].key));
            };
            for (name, add, copy) in &changes {
                if *add {
                    let is_new = model.insert(name.clone(), ()).is_none();
                    prop_assert_eq!(children.insert(name, || node(name)), is_new);
                } else {
                    let was = model.remove(name).is_some();
                    prop_assert_eq!(children.get(name).is_some(), was);
                    prop_assert_eq!(children.get_mut(name).is_some(), was);
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
                prop_assert!(children.get(&name).is_none());
            }
            check(&children, &model);
            for (children, model) in &copies {
                check(children, model);
            }
        }
    }
}
