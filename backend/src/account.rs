//! What the block back end counts, in a file for each queue that anybody may read while it runs: the layout,
//! which back end and toolstack share, and how it is read. The file is in memory and the counts are plain stores,
//! so that neither counting nor reading costs a system call on the data's way.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::DeviceId;

/// Where the files are: in memory, so that they are gone after a boot, as the guests are.
pub const FOLDER: &str = "/run/xlrs/blkback";
/// The first word of a file that is whole.
pub const MAGIC: u64 = u64::from_le_bytes(*b"xlrsblk1");
/// Where the counts begin.
pub const COUNTERS: usize = 64;
/// Most queues of a disk.
pub const MAX_QUEUES: usize = 8;

/// What is counted, in the order in which it stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Requests answered with success.
    Done,
    /// Requests that were refused or failed.
    Errors,
    /// Bytes read from the disk.
    ReadBytes,
    /// Bytes written to the disk.
    WrittenBytes,
    /// Flushes and barriers.
    Flushes,
    /// System calls of the queue's thread.
    Calls,
    /// Hypercalls to map or copy data.
    DataCalls,
    /// Events sent to the guest.
    Events,
    /// Pages that are kept mapped now.
    Mapped,
    /// Requests that were run again after the process before was killed.
    Replayed,
    /// Requests that are taken and not answered now.
    InFlight,
    /// Slots of the ring.
    Slots,
}

impl Count {
    /// All, in the file's order.
    pub const ALL: [Count; 12] = [
        Count::Done,
        Count::Errors,
        Count::ReadBytes,
        Count::WrittenBytes,
        Count::Flushes,
        Count::Calls,
        Count::DataCalls,
        Count::Events,
        Count::Mapped,
        Count::Replayed,
        Count::InFlight,
        Count::Slots,
    ];

    /// Its name for scripts.
    pub const fn name(self) -> &'static str {
        match self {
            Count::Done => "requests",
            Count::Errors => "errors",
            Count::ReadBytes => "read_bytes",
            Count::WrittenBytes => "written_bytes",
            Count::Flushes => "flushes",
            Count::Calls => "system_calls",
            Count::DataCalls => "data_hypercalls",
            Count::Events => "events",
            Count::Mapped => "persistent_grants",
            Count::Replayed => "replayed",
            Count::InFlight => "in_flight",
            Count::Slots => "slots",
        }
    }
}

/// The name of a queue's file.
pub fn file_name(id: DeviceId, queue: usize) -> String {
    format!("{}-{}-{queue}", id.dom, id.index)
}

/// The counts of a disk's queues, each in the order of [`Count::ALL`]; none if our back end does not serve it.
///
/// # Errors
/// A file that cannot be read, or is not one of these.
pub fn read(folder: &Path, id: DeviceId) -> io::Result<Vec<[u64; Count::ALL.len()]>> {
    let mut queues = Vec::new();
    for queue in 0..MAX_QUEUES {
        let file = match File::open(folder.join(file_name(id, queue))) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        let mut head = [0; COUNTERS + 8 * Count::ALL.len()];
        file.read_exact_at(&mut head, 0)?;
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| head[at + n]));
        if word(0) != MAGIC {
            let why = "it is being made, or of another version of blkback";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        queues.push(std::array::from_fn(|n| word(COUNTERS + 8 * n)));
    }
    Ok(queues)
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_sys::DomId;

    #[test]
    fn the_order_is_that_of_the_names() {
        for (n, count) in Count::ALL.into_iter().enumerate() {
            assert_eq!(count as usize, n, "{}", count.name());
        }
    }

    #[test]
    fn files_are_read_queue_by_queue() {
        let folder =
            std::env::temp_dir().join(format!("xen-backend-account-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let id = DeviceId {
            dom: DomId(3),
            index: 51712,
        };
        assert_eq!(read(&folder, id).unwrap(), Vec::<[u64; 12]>::new());
        for queue in 0..2u64 {
            let mut bytes = vec![0u8; 4096];
            bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
            for n in 0..12 {
                let at = COUNTERS + 8 * n;
                bytes[at..at + 8].copy_from_slice(&(100 * queue + n as u64).to_le_bytes());
            }
            std::fs::write(folder.join(file_name(id, queue as usize)), bytes).unwrap();
        }
        let queues = read(&folder, id).unwrap();
        assert_eq!(queues.len(), 2);
        assert_eq!(queues[1], std::array::from_fn(|n| 100 + n as u64));
        for (content, kind) in [
            (vec![1; 4096], io::ErrorKind::InvalidData),
            (vec![1; 3], io::ErrorKind::UnexpectedEof),
        ] {
            std::fs::write(folder.join(file_name(id, 0)), content).unwrap();
            assert_eq!(read(&folder, id).unwrap_err().kind(), kind);
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
