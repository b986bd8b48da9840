//! What a creation has for itself while it lasts: the name of its guest, its disks. Claims are locks on
//! single bytes of one file, at places that names and disks are mapped to: nothing grows with the number of
//! guests, nobody waits for another's creation, and what a killed process had is free at once.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;

use crate::error::{Error, Result};
use crate::{os, paths};

/// Held until this is dropped, or the process ends.
#[derive(Debug)]
pub struct Claims {
    file: File,
}

impl Claims {
    /// Claims nothing yet.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn begin() -> Result<Claims> {
        let path = paths::at(paths::CLAIMS);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let opened = match options.open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => path
                .parent()
                .map_or(Ok(()), fs::create_dir_all)
                .and_then(|()| options.open(&path)),
            other => other,
        };
        let file = opened.map_err(|e| Error::system("open", path.display(), &e))?;
        Ok(Claims { file })
    }

    /// Claims what `key` stands for, `alone` or together with others that do not want it alone; `what`
    /// names it in the error.
    ///
    /// # Errors
    /// Another process has it.
    pub fn add(&self, key: &str, alone: bool, what: &str) -> Result<()> {
        match os::lock_byte(&self.file, sum(key) >> 1, alone) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let cause = "another xlrs is just creating a guest with it";
                Err(Error::new("claim", what, cause)
                    .hint("wait until that one is done, then try again"))
            }
            Err(error) => Err(Error::system("claim", what, &error)),
        }
    }
}

/// FNV-1a, 64 bits.
pub fn sum(text: &str) -> u64 {
    let step = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_fnv() {
        assert_eq!(sum(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(sum("a"), 0xaf63_dc4c_8601_ec8c);
    }
}
