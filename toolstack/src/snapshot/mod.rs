//! Snapshots of running disks: the image stays as it is, and the guest's disk goes on in a new one on top of it.
//!
//! Killed at any moment, command and back end leave a disk that has all that its guest was told is written:
//! 1. an empty overlay is made and lasts;
//! 2. `next-params` has the back end see whether it can be opened (`blkback/src/next.rs`);
//! 3. the guest's files name it: with nothing in it, it is what is behind it, so a guest that is created again by
//!    them now misses nothing;
//! 4. `params` names it: from then on whoever serves the disk opens it. The back end's `physical-device-path`
//!    tells when no more is written to the image behind it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use xen_backend::overlay::{MAX_NAME, Overlay};
use xen_hal::{DomainInfo, Store, StoreExt};

use crate::attach::{claim_guest, edit_files};
use crate::backends::demand_ours;
use crate::claims::Claims;
use crate::config::DiskFormat;
use crate::destroy::Device;
use crate::error::{Error, Kind, Result};
use crate::interrupt;
use crate::store::{remove_all, text, texts};
use crate::userdata::{self, Userdata};

mod present;

use present::{NODES, Present, present};

/// How long the back end may take to look at the overlay, and to go on with it: what runs is waited for.
const TIMEOUT: Duration = Duration::from_secs(60);
const STEP: &str = "make a snapshot of";

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The guest's name for the disk.
    pub vdev: String,
    /// What it writes to from now on.
    pub image: PathBuf,
    /// What stays as it is.
    pub backing: PathBuf,
    /// `raw` or `qcow2`.
    pub backing_format: &'static str,
    /// The disk's length.
    pub sectors_512: u64,
    /// The disk as a configuration file is to name it.
    pub config: String,
}

/// Has a running guest's disk go on in `path`, a new file.
///
/// # Errors
/// What is in the way; the disk is as before then, but where the message says otherwise.
pub fn snapshot_disk(
    store: &impl Store,
    info: &DomainInfo,
    device: &Device,
    path: &Path,
) -> Result<Snapshot> {
    let object = format!("{} {} of domain {}", device.kind, device.number, info.dom);
    let kernel = "snapshots are made of disks that blkback serves; \
                  else use what the storage itself has, such as lvcreate -s";
    demand_ours(store, &device.backend, kernel)?;
    let claims = Claims::begin()?;
    claim_guest(&claims, info)?;
    let now = look(store, device, &object)?;
    let image = new_path(path)?;
    let work = Work {
        store,
        info,
        device,
        object,
    };
    let overlay = Draft::create(&now, &image)?;
    let asked = work.try_out(&image);
    if let Err(error) = asked {
        work.forget();
        return Err(error);
    }
    // Nothing is taken back from here on: by the files the guest may be created again at any time.
    interrupt::ignore();
    let before = [Userdata::Xlrs, Userdata::Libxl]
        .map(|kind| (kind, userdata::read(info.dom, &info.uuid, kind)));
    let restore = || {
        let texts = before
            .iter()
            .filter_map(|(kind, text)| Some((*kind, text.as_deref()?)));
        texts
            .into_iter()
            .try_for_each(|(kind, text)| userdata::write(info.dom, &info.uuid, kind, text))
    };
    if let Err(error) = work.name_in_files(&now, &image) {
        work.forget();
        return Err(match restore() {
            Ok(()) => error,
            Err(later) => error.then(&later),
        });
    }
    overlay.keep();
    let done = work.switch(&image);
    match &done {
        Ok(()) => work.forget(),
        // The back end has gone on with the old one, and says so.
        Err(error) if error.kind == Kind::Invalid => {
            let old = format!("{}{}", now.format.prefix(), now.named);
            work.write("params", &old, None)?;
            restore()?;
            work.forget();
        }
        Err(_) => {}
    }
    done?;
    Ok(Snapshot {
        config: format!(
            "format=qcow2,vdev={},access=rw{},target={}",
            now.vdev,
            now.options,
            image.display()
        ),
        vdev: now.vdev,
        image,
        backing: now.backing,
        backing_format: now.format.name(),
        sectors_512: now.sectors_512,
    })
}

fn look(store: &impl Store, device: &Device, object: &str) -> Result<Present> {
    let paths = NODES.map(|node| format!("{}/{node}", device.backend));
    let values = texts(store, None, &paths).map_err(Error::store("look at", &device.backend))?;
    let values: [Option<String>; NODES.len()] = values.try_into().unwrap_or_default();
    present(
        values
            .each_ref()
            .map(|value| value.as_deref().unwrap_or("")),
    )
    .map_err(|(cause, hint)| {
        Error::new(STEP, object, cause)
            .kind(Kind::Invalid)
            .hint(hint)
    })
}

/// Where the new image is to be, as everybody else will find it, too.
fn new_path(path: &Path) -> Result<PathBuf> {
    let invalid = |cause: &str| Error::new(STEP, path.display(), cause).kind(Kind::Invalid);
    let whole = std::path::absolute(path)
        .map_err(|e| Error::system("find", path.display(), &e).kind(Kind::Invalid))?;
    let (Some(folder), Some(name)) = (whole.parent(), whole.file_name()) else {
        return Err(invalid("it names no file"));
    };
    let folder = fs::canonicalize(folder)
        .map_err(|e| Error::system("find", folder.display(), &e).kind(Kind::Invalid))?;
    let image = folder.join(name);
    match image.to_str() {
        Some(text) if text.len() <= MAX_NAME && !text.contains(['\n', '\0']) => Ok(image),
        _ => Err(invalid("it is too long, or no text")),
    }
}

/// The overlay, which goes away again unless it is kept.
struct Draft<'a> {
    image: &'a Path,
    kept: bool,
}

impl<'a> Draft<'a> {
    fn create(now: &Present, image: &'a Path) -> Result<Draft<'a>> {
        let failed = |object: &Path, error: &_| {
            Error::system("make", object.display(), error).kind(Kind::Invalid)
        };
        let behind = fs::metadata(&now.backing).map_err(|e| failed(&now.backing, &e))?;
        let mode = match behind.is_file() {
            true => behind.permissions().mode() & 0o777,
            false => 0o600,
        };
        let backing = now.backing.to_str().unwrap_or_default();
        let overlay = Overlay {
            backing,
            format: now.format.name(),
            sectors_512: now.sectors_512,
        };
        overlay.create(image, mode).map_err(|error| {
            if error.kind() == ErrorKind::AlreadyExists {
                return Error::new("make", image.display(), "there is such a file")
                    .kind(Kind::Exists)
                    .hint("name a new one; nothing is written over");
            }
            failed(image, &error)
        })?;
        // Whoever may use the one may use the other.
        if behind.is_file()
            && let Err(error) =
                std::os::unix::fs::chown(image, Some(behind.uid()), Some(behind.gid()))
        {
            let _ = fs::remove_file(image);
            return Err(failed(image, &error));
        }
        Ok(Draft { image, kept: false })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(self.image)
        {
            eprintln!("xlrs: remove {}: {error}", self.image.display());
        }
    }
}

struct Work<'a, S> {
    store: &'a S,
    info: &'a DomainInfo,
    device: &'a Device,
    object: String,
}

impl<S: Store> Work<'_, S> {
    fn node(&self, name: &str) -> String {
        format!("{}/{name}", self.device.backend)
    }

    fn text(&self, name: &str) -> Result<Option<String>> {
        let node = self.node(name);
        text(self.store, None, &node).map_err(Error::store("read", &node))
    }

    /// Writes a node of a device that is still there, and removes another.
    fn write(&self, name: &str, value: &str, without: Option<&str>) -> Result<()> {
        let there = self.store.transaction::<bool, Error>(|store, tx| {
            let tx = Some(tx);
            if store.read_optional(tx, &self.node("state"))?.is_none() {
                return Ok(false);
            }
            if let Some(without) = without {
                store.rm_if_present(tx, &self.node(without))?;
            }
            store.write(tx, &self.node(name), value.as_bytes())?;
            Ok(true)
        })?;
        match there {
            true => Ok(()),
            false => Err(self.gone()),
        }
    }

    fn gone(&self) -> Error {
        Error::new(STEP, &self.object, "the guest has lost it meanwhile")
    }

    fn params(&self, image: &Path) -> String {
        format!("{}{}", DiskFormat::Qcow2.prefix(), image.display())
    }

    /// Waits until `look` finds something.
    fn wait(&self, late: &str, mut look: impl FnMut() -> Result<Option<()>>) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if let Some(status) = self.text("next-status")?
                && let Some(why) = status.strip_prefix("refused ")
            {
                return Err(self.refused(why));
            }
            if self.text("state")?.is_none() {
                return Err(self.gone());
            }
            interrupt::check()?;
            if Instant::now() > deadline {
                return Err(Error::new(STEP, &self.object, late).kind(Kind::TimedOut));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn refused(&self, why: &str) -> Error {
        let error = Error::new(STEP, &self.object, format!("blkback refuses it: {why}"));
        let error = error.kind(Kind::Invalid);
        let long = ["files behind it", "backing files take"];
        if why.contains("backing file") && why.contains("folder") {
            return error.hint(
                "images may rest on files below certain folders only: \
                 start blkback with --backing FOLDER (`xlrs host start --backing FOLDER`)",
            );
        }
        match long.iter().any(|part| why.contains(part)) {
            true => error.hint(
                "with the guest down, qemu-img convert -O qcow2 makes one image of those that lie over each other",
            ),
            false => error,
        }
    }

    /// Has the back end look whether it can use the image.
    fn try_out(&self, image: &Path) -> Result<()> {
        self.write("next-params", &self.params(image), Some("next-status"))?;
        self.wait("its back end does not look at the new image", || {
            let status = self.text("next-status")?;
            Ok((status.as_deref() == Some("ready")).then_some(()))
        })
    }

    /// What the guest will be created from again. libxl knows no disk of this format at our back end: a guest of
    /// its own gets the script that passes the format on.
    fn name_in_files(&self, now: &Present, image: &Path) -> Result<()> {
        let number = &self.device.number;
        edit_files(self.info, |marks, json| {
            let ours = marks.is_some();
            let updated = marks.as_ref().is_some_and(|marks| marks.updated);
            // What has replaced the guest's configuration may mean another image by this name. Else it is this
            // disk, even if a command that was killed has named an image that did not follow.
            let is_it = |target: Option<&str>| {
                let named = |target| DiskFormat::of_params(target).1 == now.named;
                !updated || target.is_some_and(named)
            };
            let disks = marks.into_iter().flat_map(|marks| &mut marks.config.disks);
            for disk in disks {
                if disk.number.to_string() == *number && is_it(disk.target.to_str()) {
                    disk.target = image.into();
                    disk.format = DiskFormat::Qcow2;
                }
            }
            let disks = json
                .get_mut("disks")
                .and_then(serde_json::Value::as_array_mut);
            for disk in disks.into_iter().flatten() {
                let its_number = userdata::device_number("vbd", disk);
                let target = disk.get("pdev_path").and_then(serde_json::Value::as_str);
                if its_number.as_ref() == Some(number) && is_it(target) {
                    userdata::set_image(disk, image, ours);
                }
            }
        })
    }

    /// Has the back end go on with the image, and waits until it has.
    fn switch(&self, image: &Path) -> Result<()> {
        self.write("params", &self.params(image), None)
            .map_err(|error| {
                error.hint(format!(
                    "{} may be its disk when it is created again: keep it",
                    image.display()
                ))
            })?;
        let there = image.display().to_string();
        let late = "requests to the old image still run";
        let waited = self.wait(late, || {
            let now = self.text("physical-device-path")?;
            Ok((now.as_deref() == Some(&*there)).then_some(()))
        });
        waited.map_err(|error| match error.kind {
            Kind::TimedOut => error.hint(
                "the disk goes on with the new one as soon as they have ended; do not touch either",
            ),
            _ => error,
        })
    }

    /// Takes back what was asked of the back end.
    fn forget(&self) {
        let paths = ["next-params", "next-status"].map(|name| self.node(name));
        let removed = self
            .store
            .transaction::<(), Error>(|store, tx| Ok(remove_all(store, Some(tx), &paths)?));
        if let Err(error) = removed {
            eprintln!("xlrs: while cleaning up: {error}");
        }
    }
}
