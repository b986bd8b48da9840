//! Creations that are underway, and devices that are attached or detached: each has a file that its process
//! has locked. A file that nobody has locked tells of a process that was killed, and its guest or device is
//! to be removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use xen_sys::DomId;

use crate::error::{Error, Result};
use crate::{paths, uuid};

/// What the files' names begin with; the guest's UUID follows.
const PREFIX: &str = "creating.";
/// The same for a device; the guest's UUID follows, its kind and its number.
const DEVICE_PREFIX: &str = "device.";
/// How often a file may be removed by another process between being opened and being locked.
const TRIES: usize = 16;

/// How long another process is waited for that has the file.
const PATIENCE: Duration = Duration::from_secs(1);

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
        let hint = "wait for that one, or choose another uuid=";
        let what = ("create a guest with UUID", uuid::format(id), hint);
        begin(path(id), what)
    }

    /// Marks a device that is about to be attached or detached.
    ///
    /// # Errors
    /// Another process is at work on this device, or the file cannot be made.
    pub fn begin_device(id: &[u8; 16], kind: &str, number: &str) -> Result<Underway> {
        let object = format!("{kind} {number} of the guest {}", uuid::format(id));
        let what = ("attach or detach", object, "wait for that one");
        begin(device_path(id, kind, number), what)
    }

    /// Takes over what a killed process has left of a device.
    ///
    /// # Errors
    /// The file system's.
    pub fn take_over_device(
        id: &[u8; 16],
        kind: &str,
        number: &str,
    ) -> io::Result<Option<Underway>> {
        take_over(device_path(id, kind, number))
    }

    /// Takes over what a killed process has left; `None` if it is still at work, or has ended well.
    ///
    /// # Errors
    /// The file system's.
    pub fn take_over(id: &[u8; 16]) -> io::Result<Option<Underway>> {
        take_over(path(id))
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
        let text = self.text()?;
        text.lines().next()?.parse().ok().map(DomId)
    }

    /// Takes a file that has become of a mark back: `None` if another process has been quicker.
    ///
    /// # Errors
    /// The file system's.
    pub fn adopt(id: &[u8; 16], file: &Path) -> io::Result<Option<Underway>> {
        let found = match lock(file, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let Some(mut mark) = found else {
            return Ok(None);
        };
        let path = path(id);
        // Whoever was quicker has renamed it and may be done with it, or be at work under its lock.
        match fs::rename(file, &path) {
            Ok(()) => mark.path = path,
            Err(error) => {
                mark.stays = true;
                return match error.kind() {
                    io::ErrorKind::NotFound => Ok(None),
                    _ => Err(error),
                };
            }
        }
        Ok(Some(mark))
    }

    /// Becomes another file, which says so much; this is what [`adopt`](Self::adopt) takes back.
    ///
    /// # Errors
    /// The file system's; the mark is then as before.
    pub fn become_file(mut self, file: &Path, text: &str) -> Result<(), (Underway, io::Error)> {
        let written = self
            .locked
            .set_len(0)
            .and_then(|()| (&self.locked).write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&self.path, file));
        match written {
            Ok(()) => {
                self.stays = true;
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }

    /// What stands in the file.
    pub fn text(&self) -> Option<String> {
        fs::read_to_string(&self.path).ok()
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

fn begin(path: PathBuf, (step, object, hint): (&str, String, &str)) -> Result<Underway> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match lock(&path, true) {
            Ok(Some(mark)) => return Ok(mark),
            // Who looks for what killed processes have left may take the file between its making and its
            // locking; it finds nothing to remove, and lets go.
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                let error = Error::new(step, object, "another xlrs is at work on it");
                return Err(error.hint(hint));
            }
            Err(error) => return Err(Error::system("write", path.display(), &error)),
        }
    }
}

fn take_over(path: PathBuf) -> io::Result<Option<Underway>> {
    match lock(&path, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other,
    }
}

/// All guests whose creation is or was underway.
pub fn all() -> Vec<[u8; 16]> {
    names()
        .filter_map(|name| uuid::parse(name.to_str()?.strip_prefix(PREFIX)?))
        .collect()
}

/// All devices that are or were underway: the guest's UUID, kind, number.
pub fn all_devices() -> Vec<([u8; 16], String, String)> {
    let parse = |name: std::ffi::OsString| {
        let rest = name.to_str()?.strip_prefix(DEVICE_PREFIX)?;
        let [id, kind, number] = rest.split('.').collect::<Vec<_>>().try_into().ok()?;
        let plain = |word: &str| word.bytes().all(|b| b.is_ascii_alphanumeric());
        let good = plain(kind) && plain(number);
        good.then_some((uuid::parse(id)?, kind.to_string(), number.to_string()))
    };
    names().filter_map(parse).collect()
}

fn names() -> impl Iterator<Item = std::ffi::OsString> {
    let entries = fs::read_dir(paths::at(paths::RUN)).into_iter().flatten();
    entries.flatten().map(|entry| entry.file_name())
}

fn device_path(id: &[u8; 16], kind: &str, number: &str) -> PathBuf {
    let name = format!("{DEVICE_PREFIX}{}.{kind}.{number}", uuid::format(id));
    paths::at(paths::RUN).join(name)
}

fn path(id: &[u8; 16]) -> PathBuf {
    paths::at(paths::RUN).join(format!("{PREFIX}{}", uuid::format(id)))
}

fn lock(path: &Path, create: bool) -> io::Result<Option<Underway>> {
    for _ in 0..TRIES {
        let file = OpenOptions::new()
            // Opened for writing: that it is closed, for whatever reason, is then told by inotify. Who only
            // takes over does not tell: it would call itself again and again if it cannot be done.
            .append(create)
            .create(create)
            .read(!create)
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
                path: path.to_owned(),
                locked: file,
                stays: false,
            }));
        }
    }
    Ok(None)
}
