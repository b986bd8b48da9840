//! A kernel's file, of which no more is read than is looked at.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use pv_layout::Source;
use xen_ring::SharedMemory;

use crate::os;

/// How much of the beginning is read at once: the headers are there.
const HEAD: u64 = 1024;

/// An open file, its first bytes read.
#[derive(Debug)]
pub struct KernelFile {
    file: File,
    len: u64,
    head: Vec<u8>,
    /// Why a part could not be read.
    error: OnceLock<io::Error>,
}

impl KernelFile {
    /// Reads the beginning of an open file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn new(file: File) -> io::Result<KernelFile> {
        let len = file.metadata()?.len();
        let mut head = vec![0; len.min(HEAD) as usize];
        file.read_exact_at(&mut head, 0)?;
        Ok(KernelFile {
            file,
            len,
            head,
            error: OnceLock::new(),
        })
    }

    /// Whether it begins as ELF files do.
    pub fn is_elf(&self) -> bool {
        self.head.starts_with(b"\x7fELF")
    }

    /// All of it.
    ///
    /// # Errors
    /// It cannot be read, or has shrunk meanwhile.
    pub fn read_all(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.len as usize];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Puts bytes of it into a guest's memory.
    ///
    /// # Errors
    /// It cannot be read, or has shrunk meanwhile.
    pub fn put(
        &self,
        from: u64,
        memory: &impl SharedMemory,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        os::read_to_guest(&self.file, from, memory, at, len)
    }

    /// Why something could not be read that is within the file.
    pub fn error(&self) -> Option<&io::Error> {
        self.error.get()
    }
}

impl Source for KernelFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn part(&self, at: u64, len: u64) -> Option<Cow<'_, [u8]>> {
        let end = at.checked_add(len).filter(|&end| end <= self.len)?;
        if end <= self.head.len() as u64 {
            return Some(Cow::Borrowed(&self.head[at as usize..end as usize]));
        }
        let mut bytes = vec![0; len as usize];
        match self.file.read_exact_at(&mut bytes, at) {
            Ok(()) => Some(Cow::Owned(bytes)),
            Err(error) => {
                // The first one tells.
                let _ = self.error.set(error);
                None
            }
        }
    }
}
