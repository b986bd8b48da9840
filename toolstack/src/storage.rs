//! What is behind a disk's path, whatever it is called: the file in a loop device, a partition and its whole
//! disk, what dom0 itself has mounted.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::os;
use crate::prepare::Target;

/// linux/major.h
const LOOP_MAJOR: u32 = 7;

/// Storage; equal values are the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Id {
    /// A file, itself or in a loop device: the number of its file system, and its inode.
    File(u64, u64),
    /// A block device that is no loop device: its major and minor number.
    Block(u32, u32),
    /// What only a script knows.
    Script,
}

impl Id {
    /// What is behind a target.
    pub fn of(target: Target) -> Id {
        match target {
            Target::File(device, inode) => Id::File(device, inode),
            Target::Script => Id::Script,
            Target::Block(major, minor) => {
                loop_file(major, minor).map_or(Id::Block(major, minor), |(d, i)| Id::File(d, i))
            }
        }
    }

    /// Other storage that shares bytes with this: a partition's whole disk, a whole disk's partitions.
    pub fn relatives(self) -> Vec<Id> {
        match self {
            Id::File(..) | Id::Script => Vec::new(),
            Id::Block(major, minor) => block_relatives(Path::new("/sys"), major, minor),
        }
    }

    /// Where dom0 has it mounted, and whether for writing.
    pub fn mounted(self) -> Option<(String, bool)> {
        if self == Id::Script {
            return None;
        }
        mounted_in(
            &fs::read_to_string("/proc/self/mountinfo").ok()?,
            |major, minor| Id::of(Target::Block(major, minor)) == self,
        )
    }
}

/// The file in a loop device; none in an empty one, nor in any other device.
fn loop_file(major: u32, minor: u32) -> Option<(u64, u64)> {
    if major != LOOP_MAJOR {
        return None;
    }
    // The device itself tells exactly, even if the file was renamed or removed.
    let node = PathBuf::from(format!("/dev/loop{minor}"));
    if let Ok(device) = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(node)
        && device
            .metadata()
            .is_ok_and(|meta| meta.rdev() == libc::makedev(major, minor))
    {
        return os::loop_backing(&device).ok();
    }
    let shown = format!("/sys/dev/block/{major}:{minor}/loop/backing_file");
    let path = fs::read_to_string(shown).ok()?;
    let meta = fs::metadata(path.trim_end_matches('\n')).ok()?;
    Some((meta.dev(), meta.ino()))
}

fn block_relatives(sys: &Path, major: u32, minor: u32) -> Vec<Id> {
    let at = sys.join(format!("dev/block/{major}:{minor}"));
    let number = |folder: &Path| {
        let text = fs::read_to_string(folder.join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some(Id::Block(major.parse().ok()?, minor.parse().ok()?))
    };
    if at.join("partition").exists() {
        // `..` of what the link leads to.
        let whole = fs::canonicalize(&at).ok();
        return whole
            .and_then(|at| number(at.parent()?))
            .into_iter()
            .collect();
    }
    let entries = fs::read_dir(&at).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|folder| folder.join("partition").exists())
        .filter_map(|folder| number(&folder))
        .collect()
}

/// proc(5): the third field is the device, the fifth the mount point, the sixth its options; behind a dash
/// stand type, source and options of the file system.
fn mounted_in(mounts: &str, is: impl Fn(u32, u32) -> bool) -> Option<(String, bool)> {
    let mut found: Option<(String, bool)> = None;
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, _, device, _, point, ..] = fields.as_slice() else {
            continue;
        };
        let numbers = device.split_once(':');
        let numbers = numbers.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        // Major 0: no device is behind it.
        if let Some((major, minor)) = numbers.filter(|(major, _)| *major != 0)
            && is(major, minor)
        {
            let options = fields.last().unwrap_or(&"");
            let writable = options.split(',').any(|option| option == "rw");
            if found.as_ref().is_none_or(|(_, before)| writable && !before) {
                found = Some((point.to_string(), writable));
            }
        }
    }
    found
}

/// Whether the kernel itself has a block device to itself: mounted, or part of LVM, RAID, multipath, swap.
///
/// # Errors
/// It cannot be opened for another reason.
pub fn is_held(path: &Path) -> io::Result<bool> {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_EXCL | libc::O_NONBLOCK);
    match options.open(path) {
        Ok(_) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_number() {
        let mounts = "\
22 1 254:1 / / ro,relatime - ext4 /dev/vda1 ro,errors=remount-ro
23 22 0:21 / /proc rw - proc proc rw
24 22 254:17 / /srv/a\\040b rw,nosuid shared:1 - ext4 /dev/vdb1 rw
25 22 254:17 / /mnt ro shared:1 - ext4 /dev/vdb1 rw
nonsense
";
        let at = |major, minor| mounted_in(mounts, |a, b| (a, b) == (major, minor));
        assert_eq!(at(254, 1), Some(("/".into(), false)));
        assert_eq!(at(254, 17), Some(("/srv/a\\040b".into(), true)));
        assert_eq!(at(0, 21), None);
        assert_eq!(at(8, 0), None);
    }

    #[test]
    fn partitions_and_disks_know_each_other() {
        let sys = std::env::temp_dir().join(format!("xlrs-storage-{}", std::process::id()));
        let disk = sys.join("devices/sda");
        for (folder, dev, partition) in [
            ("", "8:0\n", false),
            ("sda1", "8:1\n", true),
            ("sda2", "8:2\n", true),
        ] {
            let folder = disk.join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("dev"), dev).unwrap();
            if partition {
                fs::write(folder.join("partition"), "1\n").unwrap();
            }
        }
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::create_dir_all(sys.join("dev/block")).unwrap();
        for (name, to) in [("8:0", "sda"), ("8:1", "sda/sda1")] {
            std::os::unix::fs::symlink(
                disk.parent().unwrap().join(to),
                sys.join("dev/block").join(name),
            )
            .unwrap();
        }
        let mut parts = block_relatives(&sys, 8, 0);
        parts.sort_by_key(|id| format!("{id:?}"));
        assert_eq!(parts, [Id::Block(8, 1), Id::Block(8, 2)]);
        assert_eq!(block_relatives(&sys, 8, 1), [Id::Block(8, 0)]);
        assert_eq!(block_relatives(&sys, 9, 1), []);
        fs::remove_dir_all(sys).unwrap();
    }
}
