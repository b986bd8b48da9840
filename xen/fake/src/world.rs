//! The world: its domains, what they hold, and what is left of it at the end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xen_hal::ShutdownReason;
use xen_sys::{DomId, GrantRef, Port};

use crate::control::{Build, DEFAULT_MEMORY_PAGES};
use crate::events::{Channel, ChannelState};
use crate::grants::{GrantState, TableState};
use crate::memory::Arena;
use crate::{Control, Events, FakeClock, Faults, Foreign, Grants, Page};

/// Xen's `GNTTAB_RESERVED_CONSOLE` and `GNTTAB_RESERVED_XENSTORE` (grant_table.h).
const CONSOLE_GREF: GrantRef = GrantRef(0);
const STORE_GREF: GrantRef = GrantRef(1);

/// A machine with some domains. Every clone is the same world.
#[derive(Clone)]
pub struct World(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) arena: Arc<Arena>,
    pub(crate) faults: Faults,
    clock: FakeClock,
}

pub(crate) struct State {
    pub(crate) domains: BTreeMap<u16, DomainState>,
    next_dom: u16,
    /// The host's memory for domains, in pages.
    pub(crate) memory_pages: u64,
    /// Domain 0's mappings of others' frames: of whom, which.
    pub(crate) frame_mappings: BTreeMap<u64, (DomId, Vec<u64>)>,
    pub(crate) refusals: Vec<String>,
    pub(crate) mappings: BTreeMap<u64, MappingState>,
    pub(crate) next_id: u64,
    pub(crate) violations: Vec<String>,
}

pub(crate) struct MappingState {
    pub(crate) by: DomId,
    pub(crate) dom: DomId,
    pub(crate) grefs: Vec<GrantRef>,
}

pub(crate) struct DomainState {
    pub(crate) table: TableState,
    pub(crate) channels: BTreeMap<u32, Channel>,
    pub(crate) pages: usize,
    pub(crate) max_pages: usize,
    pub(crate) shutdown: Option<ShutdownReason>,
    /// What the toolstack has built; nothing for domains that a test makes ready-made.
    pub(crate) build: Option<Build>,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not hide what it said behind a second one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(crate) fn new_dom(&mut self) -> DomId {
        while self.domains.contains_key(&self.next_dom) {
            self.next_dom += 1;
        }
        self.next_dom += 1;
        DomId(self.next_dom - 1)
    }

    pub(crate) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl World {
    /// A world with nothing but domain 0.
    #[allow(clippy::new_without_default)]
    pub fn new() -> World {
        let world = World(Arc::new(Shared {
            state: Mutex::new(State {
                domains: BTreeMap::new(),
                next_dom: 1,
                memory_pages: DEFAULT_MEMORY_PAGES,
                frame_mappings: BTreeMap::new(),
                refusals: Vec::new(),
                mappings: BTreeMap::new(),
                next_id: 0,
                violations: Vec::new(),
            }),
            arena: Arena::new(),
            faults: Faults::default(),
            clock: FakeClock::default(),
        }));
        world.0.lock().domains.insert(0, DomainState::new());
        world
    }

    /// Domain 0.
    pub fn dom0(&self) -> Domain {
        Domain {
            world: self.clone(),
            id: DomId::DOM0,
        }
    }

    /// A domain, ready-made or built by a toolstack.
    pub fn domain(&self, dom: DomId) -> Option<Domain> {
        self.is_alive(dom).then(|| Domain {
            world: self.clone(),
            id: dom,
        })
    }

    /// The hypervisor as domain 0's toolstack sees it.
    pub fn control(&self) -> Control {
        Control {
            world: self.0.clone(),
        }
    }

    /// Lets the host have so much memory for domains, in pages.
    pub fn set_memory_pages(&self, pages: u64) {
        self.0.lock().memory_pages = pages;
    }

    /// Why page tables were not pinned, in words; Xen itself only says so in its log.
    pub fn refusals(&self) -> Vec<String> {
        self.0.lock().refusals.clone()
    }

    /// Makes a domain as a toolstack leaves it: a console page as grant 0 and a store page as grant 1,
    /// both for domain 0, and an unbound port for each.
    pub fn create_domain(&self) -> Domain {
        let pages = [(); 2].map(|()| self.0.arena.alloc().expect("a page for a new domain"));
        let mut state = self.0.lock();
        let id = state.new_dom();
        let mut domain = DomainState::new();
        for (gref, slot) in [CONSOLE_GREF, STORE_GREF].into_iter().zip(&pages) {
            domain.table.seed(gref, DomId::DOM0, slot.clone());
        }
        for port in [1, 2] {
            let unbound = ChannelState::Unbound {
                remote: DomId::DOM0,
            };
            domain.channels.insert(port, Channel::new(unbound, None));
        }
        state.domains.insert(id.0, domain);
        drop(state);
        Domain {
            world: self.clone(),
            id,
        }
    }

    /// Destroys a domain: its ports close, its grants end, its pages are free once nobody has them mapped.
    /// What the program still holds of it (leases, ports, pages) may be dropped later. No effect if it is gone.
    pub fn destroy_domain(&self, dom: DomId) {
        assert_ne!(dom, DomId::DOM0, "domain 0 is not destroyed");
        let mut state = self.0.lock();
        let ports: Vec<u32> = match state.domains.get(&dom.0) {
            Some(domain) => domain.channels.keys().copied().collect(),
            None => return,
        };
        for port in ports {
            state.close(dom, Port(port));
        }
        let gone = state.domains.remove(&dom.0);
        state.raise_dom_exc();
        drop(state);
        drop(gone);
    }

    /// The domain has shut itself down (SCHEDOP_shutdown), or was shut down by domain 0; only the first
    /// reason counts. No effect if it is gone.
    pub fn shut_down(&self, dom: DomId, reason: ShutdownReason) {
        let mut state = self.0.lock();
        if let Some(domain) = state.domains.get_mut(&dom.0) {
            domain.shutdown.get_or_insert(reason);
            state.raise_dom_exc();
        }
    }

    /// Why a domain has shut down, if it has.
    pub fn shutdown_reason(&self, dom: DomId) -> Option<ShutdownReason> {
        self.0.lock().domains.get(&dom.0)?.shutdown
    }

    /// Whether there is such a domain.
    pub fn is_alive(&self, dom: DomId) -> bool {
        self.0.lock().domains.contains_key(&dom.0)
    }

    /// The numbers of all domains, domain 0 included.
    pub fn domains(&self) -> Vec<DomId> {
        self.0
            .lock()
            .domains
            .keys()
            .map(|&dom| DomId(dom))
            .collect()
    }

    /// Calls that are to fail.
    pub fn faults(&self) -> Faults {
        self.0.faults.clone()
    }

    /// The clock of all domains.
    pub fn clock(&self) -> FakeClock {
        self.0.clock.clone()
    }

    /// How many mappings of others' pages there are now.
    pub fn mappings(&self) -> usize {
        self.0.lock().mappings.len()
    }

    /// What a program should have given back by its end: grants (but those a toolstack made), mappings,
    /// pages, quarantined pages, ports; and everything it did that real Xen would have punished.
    pub fn leftovers(&self) -> Vec<String> {
        let state = self.0.lock();
        let mut left = state.violations.clone();
        for mapping in state.mappings.values() {
            left.push(format!(
                "domain {} maps {:?} of domain {}",
                mapping.by, mapping.grefs, mapping.dom
            ));
        }
        for (dom, frames) in state.frame_mappings.values() {
            left.push(format!(
                "domain 0 maps {} frames of domain {dom}",
                frames.len()
            ));
        }
        for (dom, domain) in &state.domains {
            if domain.build.is_some() {
                left.push(format!("domain {dom} was made by a toolstack and lives"));
            }
            for (gref, grant) in domain.table.active() {
                left.push(format!(
                    "domain {dom} grants {gref} to domain {}",
                    grant.peer
                ));
            }
            for (gref, _) in &domain.table.quarantine {
                left.push(format!("domain {dom} has a page in quarantine for {gref}"));
            }
            for (port, channel) in &domain.channels {
                if !channel.is_boot_port() {
                    left.push(format!("domain {dom} has port {port}: {:?}", channel.state));
                }
            }
            if domain.pages > 0 {
                left.push(format!("domain {dom} has {} pages", domain.pages));
            }
        }
        left
    }

    /// Panics with a list if there are [`leftovers`](Self::leftovers).
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let left = self.leftovers();
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    }
}

impl DomainState {
    pub(crate) fn new() -> Self {
        DomainState {
            table: TableState::new(),
            channels: BTreeMap::new(),
            pages: 0,
            max_pages: usize::MAX,
            shutdown: None,
            build: None,
        }
    }
}

/// A domain of the world. Every clone is the same domain.
#[derive(Clone)]
pub struct Domain {
    world: World,
    id: DomId,
}

impl Domain {
    /// Its number.
    pub fn id(&self) -> DomId {
        self.id
    }

    /// The world it lives in.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Its grant table and pages, for front ends.
    pub fn grants(&self) -> Grants {
        Grants {
            world: self.world.0.clone(),
            dom: self.id,
        }
    }

    /// Its access to others' grants, for back ends.
    pub fn foreign(&self) -> Foreign {
        Foreign {
            world: self.world.0.clone(),
            dom: self.id,
        }
    }

    /// A new owner of event channels in this domain.
    pub fn events(&self) -> Events {
        Events::new(self.world.0.clone(), self.id)
    }

    /// The guest's own access to its store page (grant 1). Panics for domain 0, which has none.
    pub fn store_page(&self) -> Page {
        self.boot_page(STORE_GREF)
    }

    /// The guest's own access to its console page (grant 0). Panics for domain 0, which has none.
    pub fn console_page(&self) -> Page {
        self.boot_page(CONSOLE_GREF)
    }

    /// The port of the console, to be taken with [`Events::adopt`].
    pub fn console_port(&self) -> Port {
        Port(1)
    }

    /// The port of the store, to be taken with [`Events::adopt`].
    pub fn store_port(&self) -> Port {
        Port(2)
    }

    /// The grant of the console page (`GNTTAB_RESERVED_CONSOLE`).
    pub fn console_gref(&self) -> GrantRef {
        CONSOLE_GREF
    }

    /// The grant of the store page (`GNTTAB_RESERVED_XENSTORE`).
    pub fn store_gref(&self) -> GrantRef {
        STORE_GREF
    }

    /// Lets the domain have so many pages at most, beside those of console and store.
    pub fn limit_pages(&self, pages: usize) {
        self.with(|domain| domain.max_pages = pages);
    }

    /// Lets the grant table have so many entries at most, the 8 reserved ones included.
    pub fn limit_grants(&self, entries: usize) {
        self.with(|domain| domain.table.max_entries = entries);
    }

    /// How many grants are active, those of the toolstack not counted.
    pub fn active_grants(&self) -> usize {
        self.with(|domain| domain.table.active().count())
    }

    /// The state of one of its grants: whom it is for and how often it is mapped now.
    pub fn grant_state(&self, gref: GrantRef) -> Option<(DomId, usize)> {
        self.with(|domain| {
            let grant: Option<&GrantState> = domain.table.get(gref);
            grant.map(|grant| (grant.peer, grant.mapped))
        })
    }

    fn with<T>(&self, body: impl FnOnce(&mut DomainState) -> T) -> T {
        let mut state = self.world.0.lock();
        let domain = state.domains.get_mut(&self.id.0);
        body(domain.unwrap_or_else(|| panic!("domain {} was destroyed", self.id)))
    }

    fn boot_page(&self, gref: GrantRef) -> Page {
        let slot = self.with(|domain| {
            let grant = domain.table.get(gref);
            grant.map(|grant| grant.slot.clone())
        });
        Page::borrowed(slot.unwrap_or_else(|| panic!("domain {} has no grant {gref}", self.id)))
    }
}
