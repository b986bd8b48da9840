//! Sees that images have become longer: a thread of its own looks, as one that hangs must hold up nobody.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use xen_backend::{DeviceId, Wake};

use crate::storage::Storage;

/// How often sizes are looked at.
const EVERY: Duration = Duration::from_secs(2);

/// The disks that are open, and those among them whose size has changed.
pub struct Sizes(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    open: HashMap<DeviceId, Weak<dyn Storage>>,
    changed: HashSet<DeviceId>,
    running: bool,
    wake: Option<Wake>,
}

impl Sizes {
    /// Nothing yet; `wake` tells the main loop of changes.
    pub fn watched(wake: Wake) -> Sizes {
        Sizes(Arc::new(Mutex::new(State {
            wake: Some(wake),
            ..State::default()
        })))
    }

    /// Looks at a disk from now on, for as long as somebody else holds it.
    pub fn watch(&self, id: DeviceId, storage: &Arc<dyn Storage>) {
        let mut state = lock(&self.0);
        state.open.insert(id, Arc::downgrade(storage));
        if !state.running {
            let shared = self.0.clone();
            let thread = std::thread::Builder::new().name("sizes".into());
            // Without it a disk is looked at when the toolstack says so.
            state.running = thread.spawn(move || watch(&shared)).is_ok();
        }
    }

    /// The disks whose size has changed since the last time.
    pub fn take(&self) -> Vec<DeviceId> {
        lock(&self.0).changed.drain().collect()
    }
}

/// Looks until no disk is left.
fn watch(shared: &Mutex<State>) {
    loop {
        std::thread::sleep(EVERY);
        let mut state = lock(shared);
        state.open.retain(|_, storage| storage.strong_count() > 0);
        if state.open.is_empty() {
            state.running = false;
            return;
        }
        let open: Vec<_> = state
            .open
            .iter()
            .filter_map(|(id, storage)| Some((*id, storage.upgrade()?)))
            .collect();
        // Not while files are looked at.
        drop(state);
        for (id, storage) in open {
            look(shared, id, &*storage);
        }
    }
}

/// Looks at one disk's size and notes a change.
fn look(shared: &Mutex<State>, id: DeviceId, storage: &dyn Storage) {
    let before = storage.sectors_512();
    if storage.refresh().is_ok() && storage.sectors_512() != before {
        let mut state = lock(shared);
        state.changed.insert(id);
        if let Some(wake) = &state.wake {
            wake.wake();
        }
    }
}

fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use xen_sys::DomId;

    use super::*;
    use crate::storage::{Cache, FileStorage};

    #[test]
    fn a_file_that_becomes_longer_is_noticed_once() {
        let path = std::env::temp_dir().join(format!("blkback-sizes-{}", std::process::id()));
        let long = |kib: u64| {
            let file = std::fs::File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path);
            file.unwrap().set_len(kib << 10).unwrap();
        };
        long(8);
        let storage = FileStorage::open(Path::new(&path), false, Cache::Page).unwrap();
        let sizes = Sizes(Arc::default());
        let id = DeviceId {
            dom: DomId(1),
            index: 51712,
        };
        look(&sizes.0, id, &storage);
        assert_eq!(sizes.take(), []);
        long(16);
        look(&sizes.0, id, &storage);
        assert_eq!((sizes.take(), storage.sectors_512()), (vec![id], 32));
        look(&sizes.0, id, &storage);
        assert_eq!(sizes.take(), []);
        std::fs::remove_file(&path).unwrap();
    }
}
