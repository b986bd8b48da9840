//! Creations that are underway: each has a file that its process has locked. A file that nobody has
//! locked tells of a process that was killed, and its guest is to be removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use xen_sys::DomId;

use crate::error::{Error, Result};
use crate::{paths, uuid};

/// What the files' names begin with; the guest's UUID follows.
const PREFIX: &str = "creating.";
/// How often a file may be removed by another process between being opened and being locked.
const TRIES: usize = 16;

/// The mark of one creation. Its file goes when this is dropped.
#[derive(Debug)]
pub struct Underway {
    path: PathBuf,
    locked: File,
    stays: bool,
}

impl Underway {
    /// Marks a guest that is about to be made.
    ///
    /// # Errors
    /// Another process is at work on this guest, or the file cannot be made.
    pub fn begin(id: &[u8; 16]) -> Result<Underway> {
        let path = path(id);
        match lock(&path, true) {
            Ok(Some(mark)) => Ok(mark),
            Ok(None) => Err(Error::new(
                "create a guest with UUID",
                uuid::format(id),
                "another xlrs is at work on it",
            )
            .hint("wait for that one, or choose another uuid=")),
            Err(error) => Err(Error::system("write", path.display(), &error)),
        }
    }

    /// Takes over what a killed process has left; `None` if it is still at work, or has ended well.
    ///
    /// # Errors
    /// The file system's.
    pub fn take_over(id: &[u8; 16]) -> io::Result<Option<Underway>> {
        match lock(&path(id), false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other,
        }
    }

    /// Notes whose mark it is: the guest may be gone by the time that somebody takes it over.
    ///
    /// # Errors
    /// The file system's.
    pub fn note(&self, dom: DomId) -> Result<()> {
        let written = (&self.locked).write_all(format!("{dom}\n").as_bytes());
        written.map_err(|e| Error::system("write", self.path.display(), &e))
    }

    /// What was noted.
    pub fn noted(&self) -> Option<DomId> {
        let text = fs::read_to_string(&self.path).ok()?;
        text.lines().next()?.parse().ok().map(DomId)
    }

    /// The file stays: somebody else shall remove what could not be removed here.
    pub fn leave(mut self) {
        self.stays = true;
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if !self.stays
            && let Err(error) = fs::remove_file(&self.path)
        {
            eprintln!("xlrs: remove {}: {error}", self.path.display());
        }
    }
}

/// All guests whose creation is or was underway.
pub fn all() -> Vec<[u8; 16]> {
    let entries = fs::read_dir(paths::at(paths::RUN)).into_iter().flatten();
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| uuid::parse(name.to_str()?.strip_prefix(PREFIX)?))
        .collect()
}

fn path(id: &[u8; 16]) -> PathBuf {
    paths::at(paths::RUN).join(format!("{PREFIX}{}", uuid::format(id)))
}

fn lock(path: &PathBuf, create: bool) -> io::Result<Option<Underway>> {
    for _ in 0..TRIES {
        let file = OpenOptions::new()
            // Opened for writing: that it is closed, for whatever reason, is then told by inotify.
            .append(true)
            .create(create)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // Whoever had it before may have removed it: then it marks nothing.
        if file.metadata()?.nlink() > 0 {
            return Ok(Some(Underway {
                path: path.clone(),
                locked: file,
                stays: false,
            }));
        }
    }
    Ok(None)
}
