//! The image that is to follow a running disk's: a snapshot's. The toolstack names it in `next-params`; it is opened
//! once to see that it can be, which `next-status` tells. When `params` names it, too, the rings are paused, it is
//! opened for good, and they go on with it.
//!
//! Invariant: at any moment `params` names an image that has all that the guest was told is written. What
//! follows is empty until the rings are paused, and an image that others rest on is written by nobody from then on.
//! Invariant: what is tried is closed again: it would remember tables of the image behind it, which changes.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xen_backend::{Change, DeviceId, Node, Site, Wake};
use xen_hal::{Error, Result};
use xen_sys::Errno;

use crate::disk::{Disk, params_path};
use crate::driver::{BlockDriver, Datapath, OpenImage, Vbd};
use crate::storage::Storage;

/// What came of opening an image.
pub type Opened = io::Result<Arc<dyn Storage>>;

/// Opens images: in threads if there is a main loop to tell, so that one that hangs holds up its disk alone.
pub struct Opener {
    open: OpenImage,
    background: Option<(Wake, Devices)>,
}

/// Devices of which there is news.
type Devices = Arc<Mutex<Vec<DeviceId>>>;

/// An image that is being opened.
pub struct Opening {
    /// Of this disk.
    pub disk: Disk,
    outcome: Arc<Mutex<Option<Opened>>>,
}

impl Opener {
    /// One that opens on the spot.
    pub fn new(open: OpenImage) -> Opener {
        Opener {
            open,
            background: None,
        }
    }

    /// The same in threads.
    pub fn in_background(self, wake: Wake) -> Opener {
        Opener {
            background: Some((wake, Devices::default())),
            ..self
        }
    }

    /// Whether it uses threads.
    pub fn is_in_background(&self) -> bool {
        self.background.is_some()
    }

    /// The devices whose image was opened, or could not be, since the last time.
    pub fn noticed(&self) -> Vec<DeviceId> {
        let devices = self.background.as_ref().map(|(_, devices)| devices);
        devices.map_or_else(Vec::new, |devices| std::mem::take(&mut *lock(devices)))
    }

    /// Opens one now.
    pub fn open(&self, disk: &Disk) -> Opened {
        (self.open)(disk)
    }

    /// Begins to open one.
    ///
    /// # Errors
    /// There are no more threads.
    pub fn begin(&self, id: DeviceId, disk: Disk) -> Result<Opening> {
        let Some((wake, devices)) = &self.background else {
            let outcome = Some(self.open(&disk));
            let outcome = Arc::new(Mutex::new(outcome));
            return Ok(Opening { disk, outcome });
        };
        let outcome: Arc<Mutex<Option<Opened>>> = Arc::default();
        let (theirs, open) = (Arc::clone(&outcome), self.open.clone());
        let (what, path) = (disk.clone(), disk.path.display().to_string());
        let (wake, devices) = (wake.clone(), devices.clone());
        let body = move || {
            let result = open(&what);
            *lock(&theirs) = Some(result);
            lock(&devices).push(id);
            wake.wake();
        };
        let thread = std::thread::Builder::new().name(format!("open {id}"));
        thread.spawn(body).map_err(|error| Error::System {
            op: "start a thread that opens",
            object: path,
            errno: Errno(error.raw_os_error().unwrap_or(Errno::EIO.0)),
        })?;
        Ok(Opening { disk, outcome })
    }
}

impl Opening {
    /// Whether there is an outcome.
    pub fn is_done(&self) -> bool {
        lock(&self.outcome).is_some()
    }

    /// The outcome, once.
    pub fn take(&self) -> Option<Opened> {
        lock(&self.outcome).take()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far a disk is on the way to its next image.
pub enum Next {
    /// It is opened, to see whether that works.
    Trying(Opening),
    /// So it was said of this one.
    Told {
        /// Which.
        disk: Disk,
        /// It can be used.
        ready: bool,
    },
    /// It is used as soon as the rings have come to rest.
    Wanted(Disk),
    /// They have, and it is opened for good.
    Taking(Opening),
}

impl<D: Datapath> BlockDriver<D> {
    /// What has become of the image that is to follow; the status to publish, if there is news.
    pub(crate) fn look_ahead(
        &mut self,
        site: &Site<'_>,
        device: &mut Vbd,
        change: &mut Change,
    ) -> Result<()> {
        let next = match named(site, &device.disk) {
            Ok(Some(next)) => next,
            Ok(None) => {
                device.next = None;
                return Ok(());
            }
            Err(Error::Store(error)) => return Err(error.into()),
            Err(error) => {
                // Said once: what is said twice is no change.
                let told = status(Some(&error.to_string()));
                if site.back(told.0)?.as_ref() != Some(&told.1) {
                    change.nodes.push(told);
                }
                return Ok(());
            }
        };
        let mut told = site.back("next-status")?.is_some();
        loop {
            match device.next.take() {
                Some(Next::Trying(opening)) if opening.disk == next => match opening.take() {
                    None => {
                        device.next = Some(Next::Trying(opening));
                        return Ok(());
                    }
                    Some(opened) => {
                        let refused = self.unfit(site.id, &next, &opened, device);
                        change.nodes.push(status(refused.as_deref()));
                        told = true;
                        device.next = Some(Next::Told {
                            disk: next.clone(),
                            ready: refused.is_none(),
                        });
                    }
                },
                Some(Next::Told { disk, ready }) if disk == next && told => {
                    // Nonsense in params counts when somebody connects.
                    change.reconnect = ready && matches!(Disk::read(site), Ok(now) if now == next);
                    device.next = Some(match change.reconnect {
                        true => Next::Wanted(next),
                        false => Next::Told { disk, ready },
                    });
                    return Ok(());
                }
                _ => match self.opener.begin(site.id, next.clone()) {
                    Ok(opening) => device.next = Some(Next::Trying(opening)),
                    Err(error) => {
                        change.nodes.push(status(Some(&error.to_string())));
                        let ready = false;
                        device.next = Some(Next::Told { disk: next, ready });
                        return Ok(());
                    }
                },
            }
        }
    }

    fn unfit(&self, id: DeviceId, disk: &Disk, opened: &Opened, device: &Vbd) -> Option<String> {
        let unfit = unfit(opened, device.storage.sectors_512());
        unfit.or_else(|| {
            let storage = opened.as_ref().ok()?;
            let refused = self.in_use.check(id, disk, &**storage);
            refused.err().map(|error| error.to_string())
        })
    }

    /// The rings are at rest: goes on with the next image, if that was wanted. What is to be published; `None`
    /// while it is being opened.
    pub(crate) fn follow(&mut self, id: DeviceId, device: &mut Vbd) -> Result<Option<Vec<Node>>> {
        let keep = |device: &mut Vbd, disk, why: &str| {
            device.next = Some(Next::Told { disk, ready: false });
            Ok(Some(vec![status(Some(why))]))
        };
        let opening = match device.next.take() {
            Some(Next::Wanted(disk)) => match self.opener.begin(id, disk.clone()) {
                Ok(opening) => opening,
                Err(error) => return keep(device, disk, &error.to_string()),
            },
            Some(Next::Taking(opening)) => opening,
            other => {
                device.next = other;
                return Ok(Some(Vec::new()));
            }
        };
        let Some(opened) = opening.take() else {
            device.next = Some(Next::Taking(opening));
            return Ok(None);
        };
        let disk = opening.disk;
        let refused = self.unfit(id, &disk, &opened, device);
        match (refused, opened) {
            (None, Ok(storage)) => {
                self.in_use.enter(id, &disk, &*storage)?;
                device.go_on_with(disk, storage);
                if let Some(sizes) = &self.sizes {
                    sizes.watch(id, &device.storage);
                }
                Ok(Some(device.place().into()))
            }
            // It was good a moment ago; the guest goes on with the image that it had.
            (refused, _) => keep(device, disk, &refused.unwrap_or_default()),
        }
    }
}

impl Vbd {
    fn go_on_with(&mut self, disk: Disk, storage: Arc<dyn Storage>) {
        self.limits.discard &= storage.can_discard();
        (self.disk, self.storage, self.next) = (disk, storage, None);
    }
}

/// The disk with the image that `next-params` names, if there is one.
///
/// # Errors
/// The store's; a name that makes no sense.
fn named(site: &Site<'_>, disk: &Disk) -> Result<Option<Disk>> {
    let Some(params) = site.back("next-params")? else {
        return Ok(None);
    };
    let (format, path) = params_path(&params).ok_or_else(|| {
        let what = format!("{params:?} names no file in a known format");
        site.guest(what)
    })?;
    let next = Disk {
        path,
        format,
        ..disk.clone()
    };
    Ok((next != *disk).then_some(next))
}

/// What is said of it: that it may be used, or why not.
fn status(refused: Option<&str>) -> Node {
    let text = match refused {
        None => "ready".to_string(),
        // Names may be long, and a node has room for 4096 bytes.
        Some(why) => format!("refused {why:.1000}"),
    };
    ("next-status", text)
}

/// Why an image cannot take the place of another that the guest uses with so many sectors.
fn unfit(opened: &Opened, sectors_512: u64) -> Option<String> {
    match opened {
        Err(error) => Some(error.to_string()),
        Ok(storage) if storage.sectors_512() != sectors_512 => Some(format!(
            "it has {} sectors, and the guest was told {sectors_512}",
            storage.sectors_512()
        )),
        Ok(_) => None,
    }
}
