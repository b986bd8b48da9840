//! Keeps the [index](crate::index) complete: guests of a stock `xl`, new names, disks that come and go.

use std::collections::{BTreeMap, BTreeSet};

use xen_hal::{DomainInfo, Store, StoreExt, WatchEvent};
use xen_sys::DomId;
use xs_wire::StoreError;

use crate::index::{self, TOP};
use crate::nodes;
use crate::store::{children, name_of};

const NAME: &str = "name";
const DISK: &str = "disk";
const BACKENDS: &str = "/local/domain/0/backend/vbd";

/// What stands in the index, as far as this process knows.
pub struct Indexer<'a, S> {
    store: &'a S,
    known: BTreeMap<u16, Known>,
    /// Guests whose name or disks may have changed.
    changed: BTreeSet<u16>,
}

struct Known {
    uuid: [u8; 16],
    entries: BTreeSet<String>,
}

impl<'a, S: Store> Indexer<'a, S> {
    /// Makes the index anew.
    ///
    /// # Errors
    /// The store's.
    pub fn new(store: &'a S) -> Result<Self, StoreError> {
        for folder in index::FOLDERS {
            store.mkdir(None, folder)?;
            for child in children(store, None, folder)? {
                store.rm_if_present(None, &format!("{folder}/{child}"))?;
            }
        }
        store.watch(BACKENDS, DISK)?;
        Ok(Indexer {
            store,
            known: BTreeMap::new(),
            changed: BTreeSet::new(),
        })
    }

    /// Notes what an event may be about.
    pub fn take(&mut self, event: &WatchEvent) {
        let below = match event.token.as_str() {
            NAME => event.path.strip_prefix("/local/domain/"),
            DISK => event
                .path
                .strip_prefix(BACKENDS)
                .and_then(|rest| rest.strip_prefix('/')),
            _ => None,
        };
        let dom: Option<u16> = below.and_then(|rest| rest.split('/').next()?.parse().ok());
        self.changed.extend(dom);
    }

    /// Brings the index up to date with what runs.
    ///
    /// # Errors
    /// The store's. What was not done is done the next time.
    pub fn update(&mut self, list: &[DomainInfo]) -> Result<(), StoreError> {
        // Nobody tells when one that is dying leaves the list.
        let alive = |dom: u16, known: &Known| {
            let same = |info: &&DomainInfo| info.dom.0 == dom && info.uuid == known.uuid;
            list.iter().find(same).is_some_and(|info| !info.flags.dying)
        };
        let gone = self
            .known
            .iter()
            .filter(|(dom, known)| !alive(**dom, known));
        let gone: Vec<u16> = gone.map(|(dom, _)| *dom).collect();
        for dom in gone {
            if let Some(known) = self.known.get(&dom) {
                let entries = known.entries.iter().map(String::as_str);
                self.remove(DomId(dom), entries)?;
                let _ = self.store.unwatch(&name_path(DomId(dom)), NAME);
            }
            self.known.remove(&dom);
        }
        for info in list.iter().filter(|info| !info.flags.dying) {
            let known = self.known.contains_key(&info.dom.0);
            if !known || self.changed.contains(&info.dom.0) {
                self.look_at(info, known)?;
                self.changed.remove(&info.dom.0);
            }
        }
        // Of those that are not there any more, nothing is left to look at.
        self.changed.clear();
        Ok(())
    }

    fn look_at(&mut self, info: &DomainInfo, known: bool) -> Result<(), StoreError> {
        let dom = info.dom;
        let Some(name) = name_of(self.store, dom)? else {
            // Not declared yet: there will be an event.
            return Ok(());
        };
        let users = index::users_of(self.store, &dom.to_string())?;
        let disks = users
            .into_iter()
            .filter_map(|(id, user)| Some((id, user.number.parse().ok()?, user.writable)));
        let wanted: BTreeMap<String, String> =
            index::entries(dom, &name, disks).into_iter().collect();
        if !known {
            self.store.watch(&name_path(dom), NAME)?;
        }
        let known = self.known.entry(dom.0).or_insert_with(|| Known {
            uuid: info.uuid,
            entries: BTreeSet::new(),
        });
        let old = known.entries.clone();
        for (entry, value) in wanted.iter().filter(|(entry, _)| !old.contains(*entry)) {
            let path = format!("{TOP}/{entry}");
            self.store.write(None, &path, value.as_bytes())?;
            known.entries.insert(entry.clone());
        }
        let left = old.iter().filter(|entry| !wanted.contains_key(*entry));
        self.remove(dom, left.map(String::as_str))?;
        if let Some(known) = self.known.get_mut(&dom.0) {
            known.entries.retain(|entry| wanted.contains_key(entry));
        }
        Ok(())
    }

    fn remove<'b>(
        &self,
        dom: DomId,
        entries: impl Iterator<Item = &'b str>,
    ) -> Result<(), StoreError> {
        let entries: Vec<&str> = entries.collect();
        if entries.is_empty() {
            return Ok(());
        }
        self.store
            .transaction(|store, tx| index::remove(store, tx, dom, entries.iter().copied()))
    }
}

fn name_path(dom: DomId) -> String {
    format!("{}/name", nodes::home(dom))
}
