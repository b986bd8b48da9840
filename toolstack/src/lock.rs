//! Locks between commands on one host. A folder is what is locked: nothing is left behind by it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::error::{Error, Kind, Result};
use crate::paths;

/// How long another command may hold a lock.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What a lock is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// Guests that are half removed.
    Removing,
}

impl About {
    fn folder(self) -> PathBuf {
        paths::at(match self {
            About::Removing => paths::USERDATA,
        })
    }
}

/// Held until it is dropped, or the process ends.
#[derive(Debug)]
pub struct Lock {
    _folder: File,
}

impl Lock {
    /// Takes the lock alone, waiting for whoever has it.
    ///
    /// # Errors
    /// Half a minute has passed, or the folder cannot be opened.
    pub fn take(about: About) -> Result<Lock> {
        Lock::with(about, FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes it together with others who share it, but not with who has it alone.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn share(about: About) -> Result<Lock> {
        Lock::with(about, FlockOperation::NonBlockingLockShared)
    }

    fn with(about: About, operation: FlockOperation) -> Result<Lock> {
        let path = about.folder();
        let failed = |e: &std::io::Error| Error::system("lock", path.display(), e);
        let folder = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                fs::create_dir_all(&path).map_err(|e| failed(&e))?;
                File::open(&path)
            }
            other => other,
        }
        .map_err(|e| failed(&e))?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match rustix::fs::flock(&folder, operation) {
                Ok(()) => return Ok(Lock { _folder: folder }),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let cause = "another xlrs has held it for 30 s";
                    return Err(Error::new("lock", path.display(), cause)
                        .kind(Kind::TimedOut)
                        .hint(format!(
                            "`fuser -v {}` tells which process it is",
                            path.display()
                        )));
                }
                Err(error) => return Err(failed(&error.into())),
            }
        }
    }
}
