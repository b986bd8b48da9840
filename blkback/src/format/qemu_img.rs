//! Images made and checked by qemu-img, for tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Format, Policy, open};
use crate::disk::Disk;
use crate::storage::Storage;

/// A folder that goes away with its files.
pub struct Folder(pub PathBuf);

impl Folder {
    /// An empty one.
    pub fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("blkback-format-{}-{number}", std::process::id());
        // In memory if there is such a place: what is made to last would take most of the time.
        let shared = Path::new("/dev/shm");
        let place = if shared.is_dir() {
            shared.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let path = place.join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Allows images to refer to its files.
    pub fn policy(&self) -> Policy {
        Policy::new(std::slice::from_ref(&self.0)).unwrap()
    }

    /// Runs qemu-img in it; its options are separated by spaces.
    pub fn qemu_img(&self, args: &str) -> Result<String, String> {
        let program = option_env!("QEMU_IMG").unwrap_or("qemu-img");
        // Not with the little memory that some tests give themselves.
        let script = "ulimit -S -v unlimited; exec \"$0\" \"$@\"";
        let out = Command::new("sh")
            .args(["-c", script, program])
            .args(args.split_ascii_whitespace())
            .current_dir(&self.0)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
        match out.status.success() {
            true => Ok(text.into()),
            false => Err(format!("qemu-img {args}: {}\n{text}", out.status)),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Opens an image as the daemon does.
pub fn opened(path: &Path, format: Format, policy: &Policy) -> std::io::Result<Arc<dyn Storage>> {
    let disk = Disk::plain(path.into(), format, format == Format::Vmdk);
    open(&disk, policy)
}

/// Numbers that look random, the same for the same seed (xorshift64*).
pub struct Random(pub u64);

impl Random {
    /// The next, below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound
    }

    /// Fills bytes: all the same, as zeros often are, or all different.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        match self.below(8) {
            0 => bytes.fill(0),
            1 => bytes.fill(self.below(256) as u8),
            _ => {
                for part in bytes.chunks_mut(8) {
                    let word = self.below(u64::MAX).to_le_bytes();
                    part.copy_from_slice(&word[..part.len()]);
                }
            }
        }
    }
}
