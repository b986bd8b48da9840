//! A guest's log file, of bounded size: when it is full it becomes `NAME.log.1` and a new one begins.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use xen_backend::daemon;

/// Longest log file; as much again is kept of the one before it.
const MAX_LEN: u64 = 1 << 20;

/// A log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    len: u64,
    max_len: u64,
    failed: bool,
}

impl LogFile {
    /// Opens `guest-NAME.log` in `folder`, to write behind what it holds.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(folder: &Path, name: &str) -> io::Result<LogFile> {
        // A name is given by whoever creates guests, who may be less trusted than this daemon.
        let safe: String = name
            .chars()
            .map(|c| if c == '/' || c.is_control() { '_' } else { c })
            .take(200)
            .collect();
        Self::with_limit(folder.join(format!("guest-{safe}.log")), MAX_LEN)
    }

    fn with_limit(path: PathBuf, max_len: u64) -> io::Result<LogFile> {
        let file = match (open(&path), path.parent()) {
            (Err(error), Some(folder)) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(folder)?;
                open(&path)?
            }
            (opened, _) => opened?,
        };
        let len = file.metadata()?.len();
        Ok(LogFile {
            path,
            file,
            len,
            max_len,
            failed: false,
        })
    }

    /// Writes behind the end. What cannot be written is lost; that is told once.
    pub fn write(&mut self, bytes: &[u8]) {
        if let Err(error) = self.try_write(bytes)
            && !std::mem::replace(&mut self.failed, true)
        {
            daemon::log(&format!("{}: {error}; output is lost", self.path.display()));
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len >= self.max_len {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            fs::rename(&self.path, old)?;
            self.file = open(&self.path)?;
            self.len = 0;
        }
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        self.failed = false;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_becomes_the_old_one() {
        let folder = std::env::temp_dir().join(format!("xlrs-log-{}", std::process::id()));
        let path = folder.join("guest-x.log");
        let mut log = LogFile::with_limit(path.clone(), 100).unwrap();
        for round in 0..50 {
            log.write(format!("line number {round:03}\n").as_bytes());
        }
        let (new, old) = (
            fs::read_to_string(&path).unwrap(),
            fs::read_to_string(folder.join("guest-x.log.1")).unwrap(),
        );
        assert!(new.ends_with("line number 049\n"));
        assert!(old.len() + new.len() < 300, "{} {}", old.len(), new.len());
        let last_of_old: u32 = old.trim().rsplit(' ').next().unwrap().parse().unwrap();
        let first_of_new: u32 = new
            .lines()
            .next()
            .unwrap()
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(
            last_of_old + 1,
            first_of_new,
            "nothing is lost between the two"
        );
        let odd = LogFile::open(&folder, "../a\nb").unwrap();
        assert_eq!(odd.path, folder.join("guest-.._a_b.log"));
        fs::remove_dir_all(folder).unwrap();
    }
}
