//! Looking at guests, on a Xen whose control interface is known and on one whose is not: then the store alone
//! tells which guests there are.

use xen_hal::Store;
use xen_sys::DomId;
use xlrs::store::{children, find_domain, name_of, no_such_domain, text};
use xlrs::{Error, Result, uuid};
use xs_client::Connection;

use super::common::Host;

/// What there is to look with.
pub enum Look {
    /// The hypervisor and the store.
    Known(Host),
    /// The store: the hypervisor is of an unknown release.
    Unknown(Connection),
}

/// A guest as far as both ways of looking tell.
pub struct Seen {
    pub dom: DomId,
    pub uuid: [u8; 16],
    pub name: Option<String>,
}

impl Look {
    pub fn open() -> Result<Look> {
        let control = super::hypervisor_if_known()?;
        let store = super::store()?;
        Ok(match control {
            Some(control) => Look::Known(Host { control, store }),
            None => Look::Unknown(store),
        })
    }

    pub fn store(&self) -> &Connection {
        match self {
            Look::Known(host) => &host.store,
            Look::Unknown(store) => store,
        }
    }

    /// The guest that a word means; it exists.
    pub fn guest(&self, word: &str) -> Result<DomId> {
        match self {
            Look::Known(host) => host.domain(word).map(|info| info.dom),
            Look::Unknown(store) => {
                let dom = find_domain(store, word)?;
                let there = known_to(store)?.contains(&dom);
                there.then_some(dom).ok_or_else(|| no_such_domain(word))
            }
        }
    }

    /// The guests that words mean; all of them without a word.
    pub fn guests(&self, words: &[String]) -> Result<Vec<Seen>> {
        if let Look::Known(host) = self {
            let named = host.named(host.domains(words)?)?;
            let seen = named.into_iter().map(|(info, name)| Seen {
                dom: info.dom,
                uuid: info.uuid,
                name,
            });
            return Ok(seen.collect());
        }
        let store = self.store();
        let doms = match words {
            [] => known_to(store)?,
            words => words
                .iter()
                .map(|word| self.guest(word))
                .collect::<Result<_>>()?,
        };
        doms.into_iter().map(|dom| seen(store, dom)).collect()
    }
}

/// The numbers of the guests that the store knows, in order.
fn known_to(store: &impl Store) -> Result<Vec<DomId>> {
    let found = children(store, None, "/local/domain");
    let found = found.map_err(Error::store("list the guests in the store", ""))?;
    let mut doms: Vec<DomId> = found
        .iter()
        .filter_map(|child| child.parse().map(DomId).ok())
        .collect();
    doms.sort_by_key(|dom| dom.0);
    Ok(doms)
}

fn seen(store: &impl Store, dom: DomId) -> Result<Seen> {
    let read = || {
        let vm = text(store, None, &format!("/local/domain/{dom}/vm"))?;
        let id = vm.and_then(|vm| uuid::parse(vm.strip_prefix("/vm/")?));
        Ok(Seen {
            dom,
            // As Xen has it where nobody has set one, such as dom0's.
            uuid: id.unwrap_or_default(),
            name: name_of(store, dom)?,
        })
    };
    read().map_err(Error::store("look at domain", dom))
}
