//! A small store in memory, for tests of drivers: no permissions, no real transactions.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard};

use xen_hal::{Permission, Store, StoreError, TxId, WatchEvent};
use xen_sys::Errno;

/// Nodes and watches in one process; every clone is the same store. Writes of a transaction show at once.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    nodes: BTreeMap<String, Vec<u8>>,
    watches: Vec<(String, String)>,
    events: VecDeque<WatchEvent>,
    flood: Flood,
    full: bool,
}

/// A guest that writes without end below a watched path.
#[derive(Debug, Default)]
struct Flood {
    per_read: usize,
    left: usize,
    token: String,
}

/// Most events that a client keeps before it gives its connection up.
const MAX_EVENTS: usize = 16384;

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes nodes below `base`.
    pub fn fill(&self, base: &str, nodes: &[(&str, &str)]) {
        for (name, value) in nodes {
            let path = format!("{base}/{name}");
            self.write(None, &path, value.as_bytes())
                .expect("a write here cannot fail");
        }
    }

    /// A node's value as text, `""` if it is absent.
    pub fn text(&self, path: &str) -> String {
        let inner = self.lock();
        let value = inner.nodes.get(path).cloned().unwrap_or_default();
        String::from_utf8_lossy(&value).into_owned()
    }

    /// From now on each read comes with `per_read` events of the watch `token`, no two of which are the
    /// same, up to `total` of them.
    pub fn flood(&self, token: &str, per_read: usize, total: usize) {
        self.lock().flood = Flood {
            per_read,
            left: total,
            token: token.to_string(),
        };
    }

    /// Whether writes fail from now on (ENOSPC), as over a guest's quota.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// How many events of the flood are still to come.
    pub fn flood_left(&self) -> usize {
        self.lock().flood.left
    }

    /// How many watches there are.
    pub fn watches(&self) -> usize {
        self.lock().watches.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn is_below(path: &str, base: &str) -> bool {
    path.strip_prefix(base)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Inner {
    fn add_flood(&mut self) {
        for _ in 0..self.flood.per_read.min(self.flood.left) {
            self.flood.left -= 1;
            self.events.push_back(WatchEvent {
                path: format!("/flood/{}", self.flood.left),
                token: self.flood.token.clone(),
            });
        }
    }

    fn fire(&mut self, path: &str, removed: bool) {
        for (watched, token) in &self.watches {
            let below = is_below(path, watched);
            if below || (removed && is_below(watched, path)) {
                self.events.push_back(WatchEvent {
                    path: if below { path } else { watched }.to_string(),
                    token: token.clone(),
                });
            }
        }
    }
}

fn missing(op: &'static str, path: &str) -> StoreError {
    StoreError {
        op,
        object: path.to_string(),
        errno: Errno::ENOENT,
    }
}

impl Store for MemoryStore {
    fn read(&self, _: Option<TxId>, path: &str) -> Result<Vec<u8>, StoreError> {
        let mut inner = self.lock();
        inner.add_flood();
        if inner.events.len() > MAX_EVENTS {
            return Err(StoreError {
                op: "READ",
                object: path.to_string(),
                errno: Errno::EIO,
            });
        }
        inner
            .nodes
            .get(path)
            .cloned()
            .ok_or_else(|| missing("READ", path))
    }

    fn write(&self, _: Option<TxId>, path: &str, value: &[u8]) -> Result<(), StoreError> {
        let mut inner = self.lock();
        if inner.full {
            return Err(StoreError {
                op: "WRITE",
                object: path.to_string(),
                errno: Errno::ENOSPC,
            });
        }
        let mut parent = path;
        while let Some((above, _)) = parent.rsplit_once('/') {
            inner.nodes.entry(above.to_string()).or_default();
            parent = above;
        }
        inner.nodes.insert(path.to_string(), value.to_vec());
        inner.fire(path, false);
        Ok(())
    }

    fn mkdir(&self, tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
        self.write(tx, path, b"")
    }

    fn rm(&self, _: Option<TxId>, path: &str) -> Result<(), StoreError> {
        let mut inner = self.lock();
        if !inner.nodes.contains_key(path) {
            return Err(missing("RM", path));
        }
        inner.nodes.retain(|node, _| !is_below(node, path));
        inner.fire(path, true);
        Ok(())
    }

    fn list(&self, _: Option<TxId>, path: &str) -> Result<Vec<String>, StoreError> {
        let inner = self.lock();
        if !inner.nodes.contains_key(path) {
            return Err(missing("DIRECTORY", path));
        }
        let child = |node: &String| {
            let rest = node.strip_prefix(path)?.strip_prefix('/')?;
            (!rest.contains('/')).then(|| rest.to_string())
        };
        Ok(inner.nodes.keys().filter_map(child).collect())
    }

    fn permissions(&self, _: Option<TxId>, _: &str) -> Result<Vec<Permission>, StoreError> {
        Ok(Vec::new())
    }

    fn set_permissions(
        &self,
        _: Option<TxId>,
        _: &str,
        _: &[Permission],
    ) -> Result<(), StoreError> {
        Ok(())
    }

    fn start(&self) -> Result<TxId, StoreError> {
        Ok(TxId(NonZeroU32::MIN))
    }

    fn end(&self, _: TxId, _: bool) -> Result<(), StoreError> {
        Ok(())
    }

    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.watches.push((path.to_string(), token.to_string()));
        inner.events.push_back(WatchEvent {
            path: path.to_string(),
            token: token.to_string(),
        });
        Ok(())
    }

    fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        let mut inner = self.lock();
        let before = inner.watches.len();
        inner
            .watches
            .retain(|(p, t)| (p.as_str(), t.as_str()) != (path, token));
        if inner.watches.len() == before {
            return Err(missing("UNWATCH", path));
        }
        Ok(())
    }

    fn next_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        Ok(self.lock().events.pop_front())
    }
}
