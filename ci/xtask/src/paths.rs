//! Where things lie: the worktree, the lab folder, and the locks that keep several labs apart.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Context, Result};

/// The folder of the workspace this program was built in.
pub fn workspace() -> PathBuf {
    let ours = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    ours.ancestors().nth(2).unwrap_or(&ours).to_path_buf()
}

/// The lab folder: `$XLRS_LAB_DIR`, or `target/lab` in the workspace.
pub fn lab_dir() -> Result<PathBuf> {
    let dir = match std::env::var_os("XLRS_LAB_DIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => workspace().join("target/lab"),
    };
    make_dir(&dir)?;
    dir.canonicalize()
        .context(|| format!("finding {}", dir.display()))
}

/// Creates a folder and those above it.
pub fn make_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).context(|| format!("creating {}", dir.display()))
}

/// Writes a file whole or not at all.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new{}", std::process::id()));
    let new = PathBuf::from(name);
    std::fs::write(&new, bytes).context(|| format!("writing {}", new.display()))?;
    std::fs::rename(&new, path).context(|| format!("writing {}", path.display()))
}

/// Reads a file, naming it in the error.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).context(|| format!("reading {}", path.display()))
}

/// A lock held as long as the value lives.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until nobody else holds the lock on `path`.
    pub fn exclusive(path: &Path) -> Result<Lock> {
        if let Some(lock) = Lock::try_exclusive(path)? {
            return Ok(lock);
        }
        crate::ui::detail(format!("waiting for the lock {}", path.display()));
        Lock::take(path, FlockOperation::LockExclusive)
    }

    /// Shares the lock on `path` with other sharers.
    pub fn shared(path: &Path) -> Result<Lock> {
        Lock::take(path, FlockOperation::LockShared)
    }

    /// Takes the lock if it is free.
    pub fn try_exclusive(path: &Path) -> Result<Option<Lock>> {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e).context(|| format!("locking {}", path.display())),
        }
    }

    fn take(path: &Path, how: FlockOperation) -> Result<Lock> {
        let file = open(path)?;
        flock(&file, how).context(|| format!("locking {}", path.display()))?;
        Ok(Lock { _file: file })
    }
}

fn open(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .context(|| format!("opening the lock {}", path.display()))
}

/// A short name for contents: 64 bits of SipHash in hex. For cache names, not for trust.
#[derive(Default)]
pub struct Key(DefaultHasher);

impl Key {
    /// Adds bytes, kept apart from what comes before and after.
    pub fn add(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.0.write_usize(bytes.len());
        self.0.write(bytes);
        self
    }

    /// The name.
    pub fn hex(&self) -> String {
        format!("{:016x}", self.0.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_where_a_part_ends() {
        let key = |parts: &[&str]| {
            let mut k = Key::default();
            parts.iter().for_each(|p| {
                k.add(p);
            });
            k.hex()
        };
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["a", "b"]), key(&["ab"]));
        assert_ne!(key(&["a", "b"]), key(&["b", "a"]));
    }
}
