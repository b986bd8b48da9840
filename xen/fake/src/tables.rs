//! Page tables of a PV guest: what Xen demands of them before it pins them, and where they lead.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use xen_ring::SharedMemoryExt;
use xen_sys::Mfn;

use crate::memory::Slot;

/// A domain's frames by their numbers.
pub(crate) type Frames = BTreeMap<u64, Arc<Slot>>;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const ENTRIES: usize = 512;
/// Slots of the top level that Xen fills itself (`ROOT_PAGETABLE_FIRST_XEN_SLOT` to `…_LAST_…`).
const XEN_SLOTS: std::ops::Range<usize> = 256..272;

/// The frames of all tables below a top-level one; an error says what Xen would refuse.
pub(crate) fn check(frames: &Frames, l4: Mfn) -> Result<Vec<u64>, String> {
    let mut walk = Walk {
        frames,
        levels: HashMap::new(),
        writable: Vec::new(),
    };
    walk.table(l4.0, 4)?;
    for (frame, by) in walk.writable {
        if let Some(level) = walk.levels.get(&frame) {
            return Err(format!(
                "{frame:#x}, a table of level {level}, is mapped writable by {by:#x}"
            ));
        }
    }
    Ok(walk.levels.into_keys().collect())
}

/// The frame behind an address, and whether it may be written.
pub(crate) fn translate(frames: &Frames, l4: Mfn, address: u64) -> Option<(Mfn, bool)> {
    let mut table = l4.0;
    for level in (1..=4).rev() {
        let index = (address >> (12 + 9 * (level - 1))) as usize % ENTRIES;
        let entry: u64 = frames.get(&table)?.read(index * 8);
        if entry & PRESENT == 0 {
            return None;
        }
        table = (entry & FRAME) >> 12;
        if level == 1 {
            return Some((Mfn(table), entry & WRITABLE != 0));
        }
    }
    None
}

struct Walk<'a> {
    frames: &'a Frames,
    /// Tables seen so far, and at what level.
    levels: HashMap<u64, u32>,
    /// Frames mapped writable, and by which table.
    writable: Vec<(u64, u64)>,
}

impl Walk<'_> {
    fn table(&mut self, frame: u64, level: u32) -> Result<(), String> {
        let page = self.frames.get(&frame);
        let page = page
            .ok_or_else(|| format!("{frame:#x}, a table of level {level}, is not the domain's"))?;
        match self.levels.insert(frame, level) {
            Some(before) if before == level => return Ok(()),
            Some(before) => {
                return Err(format!(
                    "{frame:#x} is a table of level {before} and of level {level}"
                ));
            }
            None => {}
        }
        for index in 0..ENTRIES {
            let entry: u64 = page.read(index * 8);
            if entry & PRESENT == 0 || (level == 4 && XEN_SLOTS.contains(&index)) {
                continue;
            }
            let target = (entry & FRAME) >> 12;
            if level > 1 {
                if entry & LARGE != 0 {
                    return Err(format!(
                        "entry {index} of {frame:#x} (level {level}) is a large page"
                    ));
                }
                self.table(target, level - 1)?;
                continue;
            }
            if !self.frames.contains_key(&target) {
                return Err(format!(
                    "entry {index} of {frame:#x} maps {target:#x}, which is not the domain's"
                ));
            }
            if entry & WRITABLE != 0 {
                self.writable.push((target, frame));
            }
        }
        Ok(())
    }
}
