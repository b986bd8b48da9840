//! The guest's pages that stay mapped from request to request (`feature-persistent`): a bounded pool, so that
//! a request needs no hypercall for its data.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use xen_hal::{AccessMode, ForeignGrants, Result};
use xen_sys::{DomId, GrantRef};

use crate::memory::Memory;

/// Pages that one queue keeps mapped, at most: what Linux's back end keeps.
pub const MAX_PAGES: usize = 1056;

/// Pages that all queues of the process keep mapped, at most: each takes one of the 65 530 mappings that
/// Linux lets a process have.
const MAX_IN_PROCESS: usize = 49_152;

static IN_PROCESS: AtomicUsize = AtomicUsize::new(0);

/// Mapped pages of one guest.
pub struct Pool<G: ForeignGrants> {
    dom: DomId,
    grants: G,
    pages: HashMap<GrantRef, Page, BuildHasherDefault<Spread>>,
    limit: usize,
    /// Counts uses: the age of a page is how many came after its last one.
    clock: u64,
    /// No room before this many uses: looking for some again would be in vain.
    full_until: u64,
    /// Hypercalls made.
    calls: u64,
}

struct Page {
    memory: Memory,
    used: u64,
    _place: Place,
}

/// Spreads grants, which are small numbers that follow each other. A guest that picks numbers which collide
/// makes its own lookups slow, in a table that is bounded.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(byte.into());
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0.rotate_left(32) ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }
}

/// A share of what the process may map.
struct Place;

impl Place {
    fn take() -> Option<Place> {
        let room = |taken| (taken < MAX_IN_PROCESS).then_some(taken + 1);
        IN_PROCESS
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, room)
            .ok()
            .map(|_| Place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        IN_PROCESS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<G: ForeignGrants> Pool<G>
where
    G::Mapping: Send + Sync + 'static,
{
    /// An empty pool for up to `limit` pages of `dom`'s.
    pub fn new(dom: DomId, grants: G, limit: usize) -> Self {
        Pool {
            dom,
            grants,
            pages: HashMap::default(),
            limit,
            clock: 0,
            full_until: 0,
            calls: 0,
        }
    }

    /// The page, mapped for reading and writing; `None` if there is no room for it, and the data has to be
    /// copied by Xen instead.
    pub fn get(&mut self, gref: GrantRef) -> Result<Option<Memory>> {
        self.clock += 1;
        if let Some(page) = self.pages.get_mut(&gref) {
            page.used = self.clock;
            return Ok(Some(page.memory.clone()));
        }
        if self.pages.len() >= self.limit && !self.make_room() {
            return Ok(None);
        }
        let Some(place) = Place::take() else {
            return Ok(None);
        };
        self.calls += 1;
        let mapping = self.grants.map(self.dom, &[gref], AccessMode::ReadWrite)?;
        let memory: Memory = Arc::new(mapping);
        let page = Page {
            memory: memory.clone(),
            used: self.clock,
            _place: place,
        };
        self.pages.insert(gref, page);
        Ok(Some(memory))
    }

    /// Unmaps the pages that were used longest ago, a sixteenth of the limit. But none that was used among
    /// the last uses, four for each page: a guest with more pages than fit would otherwise have each of them
    /// mapped and unmapped for each request, which costs more than a copy.
    fn make_room(&mut self) -> bool {
        if self.clock < self.full_until {
            return false;
        }
        let oldest = self.clock.saturating_sub(4 * self.limit as u64);
        let mut ages: Vec<(u64, GrantRef)> = self
            .pages
            .iter()
            .filter(|(_, page)| page.used < oldest && Arc::strong_count(&page.memory) == 1)
            .map(|(&gref, page)| (page.used, gref))
            .collect();
        if ages.is_empty() {
            self.full_until = self.clock + self.limit as u64 / 4;
            return false;
        }
        ages.sort_unstable_by_key(|&(used, gref)| (used, gref.0));
        ages.truncate((self.limit / 16).max(1));
        for (_, gref) in ages {
            self.calls += 1;
            self.pages.remove(&gref);
        }
        true
    }

    /// How many pages are mapped.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// How many hypercalls it has made.
    pub fn calls(&self) -> u64 {
        self.calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_fake::World;
    use xen_hal::Lease;

    #[test]
    fn pages_stay_until_others_are_used_for_long() {
        let world = World::new();
        let guest = world.create_domain();
        let grants = guest.grants();
        let leases: Vec<_> = (0..5)
            .map(|_| Lease::fresh(&grants, DomId::DOM0).unwrap())
            .collect();
        let mut pool = Pool::new(guest.id(), world.dom0().foreign(), 4);
        let held = pool.get(leases[0].gref()).unwrap();
        for round in 0..3 {
            for lease in &leases[..4] {
                assert!(pool.get(lease.gref()).unwrap().is_some());
            }
            assert_eq!((world.mappings(), pool.calls()), (4, 4), "round {round}");
        }
        // All four are in use: the fifth is to be copied.
        assert!(pool.get(leases[4].gref()).unwrap().is_none());
        // For long only the second is used: the others go, but not what is held.
        for _ in 0..20 {
            pool.get(leases[1].gref()).unwrap();
        }
        assert!(pool.get(leases[4].gref()).unwrap().is_some());
        assert_eq!((world.mappings(), pool.len()), (4, 4));
        let calls = pool.calls();
        pool.get(leases[0].gref()).unwrap();
        assert_eq!(pool.calls(), calls, "what was held is still there");
        assert!(pool.get(GrantRef(4000)).is_err());
        drop((pool, held));
        assert_eq!(world.mappings(), 0);
    }
}
