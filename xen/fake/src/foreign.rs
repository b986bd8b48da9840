//! A domain's access to what others have granted it, for back ends.

use std::sync::Arc;

use xen_hal::{AccessMode, CopyBuffer, Error, ForeignGrants, GrantCopy, Result};
use xen_ring::SharedMemoryExt;
use xen_sys::types::PAGE_SIZE;
use xen_sys::{DomId, GrantRef};

use crate::Call;
use crate::grants::resolve;
use crate::memory::{Slot, View};
use crate::world::{MappingState, Shared, State};

// GNTST_* (grant_table.h).
const OKAY: i16 = 0;
const GENERAL_ERROR: i16 = -1;
const BAD_DOMAIN: i16 = -2;
const BAD_GNTREF: i16 = -3;
const BAD_COPY_ARG: i16 = -10;
const NO_SPACE: i16 = -13;

/// What a domain can do with others' grants. Every clone is the same domain.
#[derive(Clone)]
pub struct Foreign {
    pub(crate) world: Arc<Shared>,
    pub(crate) dom: DomId,
}

/// Granted pages, mapped one after another; dropping it unmaps them.
pub struct Mapping {
    pub(crate) view: View,
    world: Arc<Shared>,
    id: u64,
}

impl State {
    /// The page behind a grant, if `caller` may use it so (`_set_status` in Xen's grant_table.c): a
    /// reference beyond the table is a bad one, every other refusal a general error.
    fn granted(
        &self,
        caller: DomId,
        dom: DomId,
        gref: GrantRef,
        mode: AccessMode,
    ) -> Result<Arc<Slot>, i16> {
        let domain = self.domains.get(&dom.0).ok_or(BAD_DOMAIN)?;
        if gref.0 as usize >= domain.table.size() {
            return Err(BAD_GNTREF);
        }
        let grant = domain.table.get(gref).ok_or(GENERAL_ERROR)?;
        let writes = mode == AccessMode::ReadWrite;
        if grant.peer != caller || (writes && grant.mode == AccessMode::ReadOnly) {
            return Err(GENERAL_ERROR);
        }
        Ok(grant.slot.clone())
    }
}

impl ForeignGrants for Foreign {
    type Mapping = Mapping;

    fn map(&self, dom: DomId, grefs: &[GrantRef], mode: AccessMode) -> Result<Mapping> {
        let dom = resolve(dom, self.dom);
        let refused = |gref: GrantRef, status| Error::MapGrant { dom, gref, status };
        let mut state = self.world.lock();
        if self.world.faults.hit(Call::Map) {
            let first = grefs.first().copied().unwrap_or_default();
            return Err(refused(first, NO_SPACE));
        }
        let pages = grefs
            .iter()
            .map(|&gref| {
                let page = state.granted(self.dom, dom, gref, mode);
                page.map_err(|status| refused(gref, status))
            })
            .collect::<Result<Vec<_>>>()?;
        let view = View::new(pages, mode == AccessMode::ReadWrite).map_err(|_| {
            let first = grefs.first().copied().unwrap_or_default();
            refused(first, NO_SPACE)
        })?;
        let id = state.new_id();
        for gref in grefs {
            let table = state
                .domains
                .get_mut(&dom.0)
                .map(|domain| &mut domain.table);
            if let Some(grant) = table.and_then(|table| table.get_mut(*gref)) {
                grant.mapped += 1;
            }
        }
        let mapping = MappingState {
            by: self.dom,
            dom,
            grefs: grefs.to_vec(),
        };
        state.mappings.insert(id, mapping);
        drop(state);
        Ok(Mapping {
            view,
            world: self.world.clone(),
            id,
        })
    }

    fn copy(&self, dom: DomId, pieces: &mut [GrantCopy<'_>]) -> Result<()> {
        let dom = resolve(dom, self.dom);
        for piece in pieces {
            piece.status = self.copy_piece(dom, piece).err().unwrap_or(OKAY);
        }
        Ok(())
    }
}

impl Foreign {
    fn copy_piece(&self, dom: DomId, piece: &mut GrantCopy<'_>) -> Result<(), i16> {
        let offset = usize::from(piece.offset);
        if self.world.faults.hit(Call::Copy) {
            return Err(GENERAL_ERROR);
        }
        if offset + piece.local.len() > PAGE_SIZE {
            return Err(BAD_COPY_ARG);
        }
        let mode = match piece.local {
            CopyBuffer::FromGrant(_) => AccessMode::ReadOnly,
            CopyBuffer::ToGrant(_) => AccessMode::ReadWrite,
        };
        let state = self.world.lock();
        let page = state.granted(self.dom, dom, piece.gref, mode)?;
        // Held until the copy is done: nobody ends the grant meanwhile.
        match &mut piece.local {
            CopyBuffer::FromGrant(to) => page.read_bytes(offset, to),
            CopyBuffer::ToGrant(from) => page.write_bytes(offset, from),
        }
        drop(state);
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let mut state = self.world.lock();
        let Some(mapping) = state.mappings.remove(&self.id) else {
            return;
        };
        // A domain that was destroyed meanwhile has no table any more.
        if let Some(domain) = state.domains.get_mut(&mapping.dom.0) {
            for gref in mapping.grefs {
                if let Some(grant) = domain.table.get_mut(gref) {
                    grant.mapped -= 1;
                }
            }
        }
    }
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapping({})", self.id)
    }
}
