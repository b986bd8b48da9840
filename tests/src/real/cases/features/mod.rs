//! Every feature of the block back end, named, with a front end that uses it: Linux's (`linux`) and ours
//! (`ours`). Each check looks at what was negotiated and at what was done, not only at the data.

pub mod linux;
pub mod ours;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use blkback::Count;
use scenarios::{OrStop, Outcome, demand};

use crate::real::guest::read_node;
use crate::real::host::Host;
use crate::real::journals::Queues;

/// A disk of a guest.
struct Disk {
    guest: String,
    dom: u16,
    vdev: &'static str,
    image: PathBuf,
}

impl Disk {
    /// xvda is 51712, each letter 16 more.
    fn number(&self) -> u32 {
        let letter = self.vdev.bytes().last().unwrap_or(b'a');
        51712 + 16 * u32::from(letter - b'a')
    }

    /// Its queues now.
    fn queues(&self) -> Outcome<Queues> {
        Queues::of(self.dom, self.number())
    }

    /// What is done makes the back end flush at least once.
    fn flushes<T>(&self, what: &str, act: impl FnOnce() -> Outcome<T>) -> Outcome {
        let queues = self.queues()?;
        let before = queues.sum(Count::Flushes)?;
        act()?;
        let after = queues.sum(Count::Flushes)?;
        demand!(
            after > before,
            "{what}: {before} flushes before and {after} after"
        );
        Ok(())
    }

    fn back(&self, node: &str) -> String {
        let (dom, number) = (self.dom, self.number());
        format!("/local/domain/0/backend/vbd/{dom}/{number}/{node}")
    }

    fn front(&self, node: &str) -> String {
        format!(
            "/local/domain/{}/device/vbd/{}/{node}",
            self.dom,
            self.number()
        )
    }

    /// Demands that a node says this.
    fn demand_node(&self, host: &Host, path: &str, expected: &str) -> Outcome {
        let found = read_node(&host.store()?, path)?;
        demand!(found == expected, "{path} is {found:?}, not {expected:?}");
        Ok(())
    }

    /// Attaches it; `more` is the rest of its description.
    fn attach(&self, host: &Host, more: &str) -> Outcome {
        let spec = format!("vdev={},{more},target={}", self.vdev, self.image.display());
        host.toolstack(&["block-attach", &self.guest, &spec])?;
        Ok(())
    }

    fn detach(&self, host: &Host) -> Outcome {
        host.toolstack(&["block-detach", &self.guest, self.vdev])?;
        Ok(())
    }
}

/// A loop device with sectors of 4 KiB.
fn loop_4k(host: &Host) -> Outcome<String> {
    let file = host.zero_file("4k.img", 8)?.display().to_string();
    let device = host.run(&["losetup", "-b", "4096", "-f", "--show", &file])?;
    Ok(device.succeeded()?.stdout.trim().to_owned())
}

/// How much room a file takes, in KiB.
fn room_kib(path: &Path) -> Outcome<u64> {
    let meta = std::fs::metadata(path).or_broken(format!("look at {}", path.display()))?;
    Ok(meta.blocks() / 2)
}
