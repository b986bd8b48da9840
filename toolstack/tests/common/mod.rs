//! A hypervisor and a store in one process, for tests of whole creations: every call can be made to fail.
#![allow(dead_code, unused_imports)]

mod control;
mod store;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

pub use control::FakeXen;
pub use store::FakeStore;

/// Counts calls and makes one of them fail.
#[derive(Clone, Default)]
pub struct Faults {
    calls: Rc<Cell<u64>>,
    failing: Rc<Cell<Option<u64>>>,
    last: Rc<RefCell<Option<LastCall>>>,
}

/// What happens instead of a call, which does not return.
type LastCall = (u64, Box<dyn Fn()>);

impl Faults {
    /// Makes the `n`th call from now on fail, counting from 0; and no other.
    pub fn fail(&self, n: u64) {
        self.calls.set(0);
        self.failing.set(Some(n));
    }

    /// Has `end` called in place of the `n`th call from now on.
    pub fn end_at(&self, n: u64, end: impl Fn() + 'static) {
        self.calls.set(0);
        *self.last.borrow_mut() = Some((n, Box::new(end)));
    }

    /// No call fails any more.
    pub fn stop(&self) {
        self.failing.set(None);
    }

    /// Whether the call that was to fail has come.
    pub fn has_failed(&self) -> bool {
        self.failing.get().is_some_and(|n| self.calls.get() > n)
    }

    /// To be asked by each call.
    pub fn hit(&self) -> bool {
        let now = self.calls.get();
        self.calls.set(now + 1);
        if let Some((_, end)) = self.last.borrow().as_ref().filter(|(n, _)| *n == now) {
            end();
        }
        self.failing.get() == Some(now)
    }
}

/// A PV kernel of a few bytes, as a file.
pub fn kernel_file(folder: &std::path::Path) -> std::path::PathBuf {
    const BASE: u64 = 0xffff_ffff_8000_0000;
    let note = |kind: u32, desc: &[u8]| {
        let mut out = Vec::new();
        out.extend(4u32.to_le_bytes());
        out.extend((desc.len() as u32).to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(b"Xen\0");
        out.extend(desc);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    };
    let entry = BASE + 0x10_0000;
    let notes = [
        note(5, b"xen-3.0\0"),
        note(3, &BASE.to_le_bytes()),
        note(1, &entry.to_le_bytes()),
        note(2, &(entry + 0x1000).to_le_bytes()),
    ]
    .concat();
    let code = b"the kernel's code";
    let mut file = vec![0u8; 64 + 2 * 56];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0]);
    put(24, &entry.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &[56, 0, 2, 0]);
    let code_at = 64 + 2 * 56;
    let headers = [
        (
            1u32,
            [code_at, entry, 0x10_0000, code.len() as u64, 0x3000, 4096],
        ),
        (
            4,
            [
                code_at + code.len() as u64,
                0,
                0,
                notes.len() as u64,
                notes.len() as u64,
                4,
            ],
        ),
    ];
    for (index, (kind, words)) in headers.iter().enumerate() {
        let at = 64 + 56 * index;
        put(at, &kind.to_le_bytes());
        put(at + 4, &7u32.to_le_bytes());
        for (n, word) in words.iter().enumerate() {
            put(at + 8 + 8 * n, &word.to_le_bytes());
        }
    }
    file.extend(code);
    file.extend(notes);
    let path = folder.join("kernel");
    std::fs::write(&path, file).unwrap();
    path
}
