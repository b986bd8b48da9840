//! qcow2 images, by the library imago: copy-on-write, backing files, compressed clusters, discards.
//!
//! What a write changed in the library's tables is in the file before the write is answered: a daemon that
//! is killed has nothing in memory that the guest relies on.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};

use super::qcow2_check::check;
use super::qcow2_header::Header;
use super::{MAX_TABLES, OtherFiles, bad, identity, unsupported};
use crate::request::SECTOR;
use crate::storage::{Identity, Storage};

/// Images that stand one behind the other, at most.
const MAX_CHAIN: usize = 16;

type Access = FormatAccess<imago::file::File>;

/// An open image.
pub struct Qcow2Disk {
    /// Written-locked by discards, which change mappings that others may be using.
    access: RwLock<Option<Access>>,
    /// The library has given up on it.
    broken: AtomicBool,
    sectors_512: u64,
    read_only: bool,
    can_discard: bool,
    cluster: u32,
    /// Itself, and what is behind it.
    files: Vec<Identity>,
}

impl Qcow2Disk {
    /// Opens the image in `file`, whose name is `path`.
    pub fn open(
        file: File,
        path: &Path,
        read_only: bool,
        others: &dyn OtherFiles,
    ) -> io::Result<Self> {
        let mut chain = Chain {
            others,
            seen: Vec::new(),
            memory: 0,
        };
        let (header, access) = chain.image(file, path, read_only)?;
        let sectors_512 = header.size.min(access.size()) / SECTOR;
        if sectors_512 == 0 {
            return Err(bad("it is empty"));
        }
        Ok(Qcow2Disk {
            access: RwLock::new(Some(access)),
            broken: AtomicBool::new(false),
            sectors_512,
            read_only,
            // Version 2 has no way to say that a cluster is zero.
            can_discard: !read_only && header.version >= 3,
            cluster: header.cluster as u32,
            files: chain.seen,
        })
    }

    /// Has the library do something.
    fn with<T>(&self, call: impl FnOnce(&Access) -> io::Result<T>) -> io::Result<T> {
        let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
        self.guarded(|| call(access.as_ref().ok_or_else(given_up)?))
    }

    /// A library that finds its own assumptions broken panics: that ends this disk and no other.
    fn guarded<T>(&self, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.broken.load(Ordering::Acquire) {
            return Err(given_up());
        }
        guarded(call).inspect_err(|error| {
            if error.kind() == io::ErrorKind::Other
                && error.get_ref().is_some_and(|e| e.is::<Panicked>())
            {
                self.broken.store(true, Ordering::Release);
            }
        })
    }
}

/// Opens an image and those behind it.
struct Chain<'a> {
    others: &'a dyn OtherFiles,
    seen: Vec<Identity>,
    memory: u64,
}

impl Chain<'_> {
    fn image(&mut self, file: File, path: &Path, read_only: bool) -> io::Result<(Header, Access)> {
        self.enter(&file)?;
        let header = Header::read(&file)?;
        if !read_only {
            check(&file, &header)?;
        }
        self.memory += header.memory;
        if self.memory > MAX_TABLES {
            return Err(unsupported(format!(
                "the tables of it and its backing files take more than {MAX_TABLES} bytes"
            )));
        }
        let backing = match &header.backing {
            None => None,
            Some((name, format)) => Some(self.backing(path, name, format.as_deref())?),
        };
        let data_file = match &header.data_file {
            None => None,
            Some(name) => {
                let (file, _) = self.others.open(path, name, "data file", read_only)?;
                self.enter(&file)?;
                Some(file)
            }
        };
        let access = guarded(|| {
            let data_file = data_file.map(imago::file::File::try_from).transpose()?;
            Qcow2::builder(imago::file::File::try_from(file)?)
                .write(!read_only)
                .backing(backing)
                .data_file(data_file)
                .open(DenyImplicitOpenGate::default())
                .map(FormatAccess::new)
        })?;
        Ok((header, access))
    }

    fn backing(&mut self, image: &Path, name: &str, format: Option<&str>) -> io::Result<Access> {
        let (file, path) = self.others.open(image, name, "backing file", true)?;
        match format {
            Some("qcow2") => Ok(self.image(file, &path, true)?.1),
            Some("raw") => {
                self.enter(&file)?;
                let file = imago::file::File::try_from(file)?;
                let raw = Raw::builder(file).open(DenyImplicitOpenGate::default())?;
                Ok(FormatAccess::new(raw))
            }
            Some(other) => Err(unsupported(format!(
                "its backing file has the format {other}"
            ))),
            None => Err(unsupported(
                "it does not say which format its backing file has: qemu-img rebase -u -F FORMAT",
            )),
        }
    }

    /// Counts a file of the chain and refuses one that is in it already.
    fn enter(&mut self, file: &File) -> io::Result<()> {
        let identity = identity(file)?;
        if self.seen.contains(&identity) {
            return Err(bad("its backing files lead back to themselves"));
        }
        if self.seen.len() == MAX_CHAIN {
            return Err(unsupported(format!(
                "it has more than {MAX_CHAIN} files behind it"
            )));
        }
        self.seen.push(identity);
        Ok(())
    }
}

/// The library's own code panicked.
#[derive(Debug)]
struct Panicked;

impl std::fmt::Display for Panicked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the qcow2 library gave up on this image")
    }
}

impl std::error::Error for Panicked {}

fn given_up() -> io::Error {
    io::Error::other(Panicked)
}

fn guarded<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err(given_up()))
}

impl Storage for Qcow2Disk {
    fn sectors_512(&self) -> u64 {
        self.sectors_512
    }

    fn can_discard(&self) -> bool {
        self.can_discard
    }

    fn discard_unit(&self) -> u32 {
        self.cluster
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.with(|access| access.read(to, offset))
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.with(|access| {
            access.write(from, offset)?;
            access.flush()
        })
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.with(|access| {
            access.flush()?;
            access.sync()
        })
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.can_discard {
            return Ok(());
        }
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        self.guarded(|| {
            let access = access.as_mut().ok_or_else(given_up)?;
            access.discard_to_zero(offset, len)?;
            access.flush()
        })
    }

    fn identity(&self) -> Option<Identity> {
        self.files.first().copied()
    }

    fn behind(&self) -> Vec<Identity> {
        self.files.iter().skip(1).copied().collect()
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        let access = self
            .access
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let access = access.take();
        // The library writes what it still holds.
        let _ = guarded(|| {
            drop(access);
            Ok(())
        });
    }
}
