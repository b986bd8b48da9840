//! A lock between commands on one host.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::error::{Error, Kind, Result};

/// Where locks, pid files and sockets lie.
pub const RUN: &str = "/run/xlrs";
/// How long another command may hold a lock.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Held until it is dropped, or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of this name, waiting for whoever has it.
    ///
    /// # Errors
    /// Half a minute has passed, or the folder cannot be written.
    pub fn take(name: &str) -> Result<Lock> {
        Lock::with(name, FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes it together with others who share it, but not with who has it alone.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn share(name: &str) -> Result<Lock> {
        Lock::with(name, FlockOperation::NonBlockingLockShared)
    }

    fn with(name: &str, operation: FlockOperation) -> Result<Lock> {
        let path = Path::new(RUN).join(format!("{name}.lock"));
        let failed = |e: &std::io::Error| Error::system("lock", path.display(), e);
        let open = || {
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(false).open(&path)
        };
        let file = match open() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                fs::create_dir_all(RUN).map_err(|e| failed(&e))?;
                open()
            }
            other => other,
        }
        .map_err(|e| failed(&e))?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match rustix::fs::flock(&file, operation) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let cause = "another xlrs has held it for 30 s";
                    return Err(Error::new("lock", path.display(), cause)
                        .kind(Kind::TimedOut)
                        .hint("`fuser -v` on that file tells which process it is"));
                }
                Err(error) => return Err(failed(&error.into())),
            }
        }
    }
}
