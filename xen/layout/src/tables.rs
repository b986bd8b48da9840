//! The page tables a guest starts with: 4 KiB pages, four levels, every table itself mapped read-only.

use alloc::vec;
use alloc::vec::Vec;

use xen_sys::{Mfn, Pfn};

use crate::LayoutError;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

const ENTRIES: usize = 512;
/// The bits of an address that the four levels translate.
const ADDRESS_MASK: u64 = (1 << 48) - 1;

/// Frames mapped one after another, and the tables made for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First virtual address.
    pub vaddr: u64,
    /// Pages mapped.
    pub pages: u64,
    /// The first frame mapped.
    pub first: Pfn,
    /// The tables that did not exist before this mapping, top level first.
    pub runs: Vec<TableRun>,
}

/// Tables of one level for consecutive addresses, in consecutive frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRun {
    /// 4 is the top, 1 holds the pages' entries.
    pub level: u32,
    /// Which table of its level the first is: the address divided by what one table spans.
    pub index: u64,
    /// How many.
    pub count: u64,
    /// The frame of the first.
    pub first: Pfn,
}

/// The tables' content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageTables {
    /// The frame of each table; the first is the top.
    pub frames: Vec<Pfn>,
    /// 512 entries for each table.
    pub entries: Vec<u64>,
}

/// Which tables a mapping needs on top of those of the mappings before it, from `first_table` on.
pub(crate) fn runs(before: &[Mapping], vaddr: u64, pages: u64, first_table: u64) -> Vec<TableRun> {
    let last_byte = vaddr + (pages - 1) * 4096;
    let mut next = first_table;
    let mut out = Vec::new();
    for level in (1..=4).rev() {
        let shift = 12 + 9 * level;
        let (mut first, mut last) = (
            (vaddr & ADDRESS_MASK) >> shift,
            (last_byte & ADDRESS_MASK) >> shift,
        );
        let existing = before
            .iter()
            .flat_map(|mapping| &mapping.runs)
            .filter(|run| run.level == level);
        for run in existing {
            // Mappings do not overlap, so at most the first and the last table exist.
            while first <= last && (run.index..run.index + run.count).contains(&first) {
                first += 1;
            }
            while first < last && (run.index..run.index + run.count).contains(&last) {
                last -= 1;
            }
        }
        if first > last {
            continue;
        }
        let count = last - first + 1;
        out.push(TableRun {
            level,
            index: first,
            count,
            first: Pfn(next),
        });
        next += count;
    }
    out
}

/// How many tables these are.
pub(crate) fn count(runs: &[TableRun]) -> u64 {
    runs.iter().map(|run| run.count).sum()
}

/// Fills the tables in. `p2m` holds the machine frame of every page of the guest.
pub(crate) fn build(mappings: &[Mapping], p2m: &[Mfn]) -> Result<PageTables, LayoutError> {
    let runs: Vec<TableRun> = mappings
        .iter()
        .flat_map(|mapping| mapping.runs.iter().copied())
        .collect();
    let frames: Vec<Pfn> = runs
        .iter()
        .flat_map(|run| (run.first.0..run.first.0 + run.count).map(Pfn))
        .collect();
    let mut tables = PageTables {
        entries: vec![0; frames.len() * ENTRIES],
        frames,
    };
    let place = Places::new(&runs);
    let machine = |pfn: u64| {
        usize::try_from(pfn)
            .ok()
            .and_then(|index| p2m.get(index))
            .map(|mfn| mfn.0 << 12)
            .ok_or(LayoutError::WrongFrameCount {
                given: p2m.len(),
                expected: pfn + 1,
            })
    };
    for run in runs.iter().filter(|run| run.level < 4) {
        for i in 0..run.count {
            let index = run.index + i;
            if let Some(parent) = place.find(run.level + 1, index >> 9) {
                tables.entries[parent * ENTRIES + (index & 511) as usize] =
                    machine(run.first.0 + i)? | PRESENT | WRITABLE | USER | ACCESSED | DIRTY;
            }
        }
    }
    for mapping in mappings {
        let first_page = (mapping.vaddr & ADDRESS_MASK) >> 12;
        let mut done = 0;
        while done < mapping.pages {
            // All that one table maps at once: a look-up for each page would take longer than to fill it in.
            let (table, from) = ((first_page + done) >> 9, (first_page + done) & 511);
            let count = (ENTRIES as u64 - from).min(mapping.pages - done);
            let pfn = mapping.first.0 + done;
            let frames = p2m_part(p2m, pfn, count)?;
            if let Some(table) = place.find(1, table) {
                let entries = &mut tables.entries[table * ENTRIES..][from as usize..];
                for (entry, mfn) in entries.iter_mut().zip(frames) {
                    *entry = mfn.0 << 12 | PRESENT | ACCESSED | WRITABLE;
                }
                // Xen refuses a page table that its guest could write to.
                for own in &runs {
                    let last = (own.first.0 + own.count).min(pfn + count);
                    for frame in own.first.0.max(pfn)..last {
                        entries[(frame - pfn) as usize] &= !WRITABLE;
                    }
                }
            }
            done += count;
        }
    }
    Ok(tables)
}

/// The machine frames of `count` pages from `first` on.
fn p2m_part(p2m: &[Mfn], first: u64, count: u64) -> Result<&[Mfn], LayoutError> {
    let wanted = usize::try_from(first)
        .ok()
        .zip(usize::try_from(first + count).ok());
    wanted
        .and_then(|(first, end)| p2m.get(first..end))
        .ok_or(LayoutError::WrongFrameCount {
            given: p2m.len(),
            expected: first + count,
        })
}

/// Finds a table's place among all by its level and index.
struct Places<'a> {
    runs: &'a [TableRun],
}

impl<'a> Places<'a> {
    fn new(runs: &'a [TableRun]) -> Self {
        Places { runs }
    }

    fn find(&self, level: u32, index: u64) -> Option<usize> {
        let mut before = 0;
        for run in self.runs {
            if run.level == level && (run.index..run.index + run.count).contains(&index) {
                return Some((before + index - run.index) as usize);
            }
            before += run.count;
        }
        None
    }
}
