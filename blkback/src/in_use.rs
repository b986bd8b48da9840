//! What is open now: no image is written by one guest while another has it, or has one that rests on it.

use std::collections::HashMap;

use xen_backend::DeviceId;
use xen_hal::{Error, Result};
use xen_sys::Errno;

use crate::disk::Disk;
use crate::storage::{Identity, Storage};

/// What each device has open, and whether for writing.
#[derive(Default)]
pub struct InUse(HashMap<DeviceId, Vec<(Identity, bool)>>);

impl InUse {
    /// Notes what a device has open from now on.
    ///
    /// # Errors
    /// As [`check`](Self::check); what it had open before is still noted then.
    pub fn enter(&mut self, id: DeviceId, disk: &Disk, storage: &dyn Storage) -> Result<()> {
        self.check(id, disk, storage)?;
        self.0.insert(id, uses(disk, storage));
        Ok(())
    }

    /// It has nothing open any more.
    pub fn leave(&mut self, id: DeviceId) {
        self.0.remove(&id);
    }

    /// Whether a device may have this open.
    ///
    /// # Errors
    /// Another is in the way.
    pub fn check(&self, id: DeviceId, disk: &Disk, storage: &dyn Storage) -> Result<()> {
        let uses = uses(disk, storage);
        let clashes = |(theirs, they_write): &(Identity, bool)| {
            let clash = |(own, write): &(Identity, bool)| own == theirs && (*write || *they_write);
            uses.iter().any(clash)
        };
        let mut others = self.0.iter().filter(|(other, _)| **other != id);
        match others.find(|(_, theirs)| theirs.iter().any(clashes)) {
            Some((other, _)) if !disk.shared => Err(Error::System {
                op: "open",
                object: format!(
                    "{} (vbd/{other} has it open; mode w! allows that)",
                    disk.path.display()
                ),
                errno: Errno::EBUSY,
            }),
            _ => Ok(()),
        }
    }
}

fn uses(disk: &Disk, storage: &dyn Storage) -> Vec<(Identity, bool)> {
    let own = storage.identity().map(|own| (own, !disk.read_only));
    let behind = storage.behind().into_iter().map(|other| (other, false));
    own.into_iter().chain(behind).collect()
}
