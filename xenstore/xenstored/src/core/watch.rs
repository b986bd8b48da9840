//! Watches, found by the path that changed: the cost of a change does not depend on how many unrelated watches
//! there are.

use std::collections::HashMap;
use std::rc::Rc;

use super::ConnId;
use super::hash::Seeded;
use super::path;

/// One watch.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Whose it is.
    pub conn: ConnId,
    /// What comes back with each event.
    pub token: Rc<[u8]>,
    /// Bytes to leave out at the front of an event's path, because the watch was set on a relative one.
    pub prefix: usize,
    /// How many levels below the path count; all if `None`.
    pub depth: Option<u32>,
}

/// All watches.
#[derive(Debug, Default)]
pub struct Watches {
    by_path: HashMap<Rc<str>, Vec<Watch>, Seeded>,
}

impl Watches {
    /// Adds a watch; `false` if its owner has one of that path and token already.
    pub fn add(&mut self, path: &str, watch: Watch) -> bool {
        let list = match self.by_path.get_mut(path) {
            Some(list) => list,
            None => self.by_path.entry(path.into()).or_default(),
        };
        if list
            .iter()
            .any(|w| w.conn == watch.conn && w.token == watch.token)
        {
            return false;
        }
        list.push(watch);
        true
    }

    /// Removes a watch; `false` if there is none.
    pub fn remove(&mut self, path: &str, conn: ConnId, token: &[u8]) -> bool {
        self.remove_if(path, |watch| watch.conn == conn && *watch.token == *token) > 0
    }

    /// Removes every watch of `conn` on `path`.
    pub fn remove_all(&mut self, path: &str, conn: ConnId) {
        self.remove_if(path, |watch| watch.conn == conn);
    }

    fn remove_if(&mut self, path: &str, which: impl Fn(&Watch) -> bool) -> usize {
        let Some(list) = self.by_path.get_mut(path) else {
            return 0;
        };
        let before = list.len();
        list.retain(|watch| !which(watch));
        let removed = before - list.len();
        if list.is_empty() {
            self.by_path.remove(path);
        }
        removed
    }

    /// The watches on this very path or special name, whatever their depth.
    pub fn on(&self, path: &str) -> impl Iterator<Item = &Watch> {
        self.by_path.get(path).into_iter().flatten()
    }

    /// The watches that a change of `changed` concerns; with `exact`, only those on that very path.
    pub fn matching(&self, changed: &str, exact: bool) -> impl Iterator<Item = &Watch> {
        let levels = match exact {
            _ if self.by_path.is_empty() => 0,
            true => 1,
            false => usize::MAX,
        };
        path::with_ancestors(changed)
            .take(levels)
            .zip(0..)
            .filter_map(|(at, depth)| Some((self.by_path.get(at)?, depth)))
            .flat_map(|(list, depth): (_, u32)| {
                list.iter()
                    .filter(move |watch| watch.depth.is_none_or(|most| depth <= most))
            })
    }

    /// All watches with their paths; those on one path in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&Rc<str>, &Watch)> {
        let by_path = self.by_path.iter();
        by_path.flat_map(|(path, list)| list.iter().map(move |watch| (path, watch)))
    }

    /// How many paths are watched.
    #[cfg(test)]
    pub fn paths(&self) -> usize {
        self.by_path.len()
    }
}
