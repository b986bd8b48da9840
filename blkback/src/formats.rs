//! Images in a format: which there are, and qcow2 and VMDK by way of imago.

use std::fmt::Debug;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::file::File;
use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::vmdk::Vmdk;
use imago::{FormatAccess, FormatDriverBuilder, Storage as _, StorageOpenOptions};

use crate::disk::{Disk, Format};
use crate::driver::OpenImage;
use crate::storage::{Cache, FileStorage, Identity, Storage, open_image};
use crate::vhd::Vhd;

/// An [`OpenImage`] for every format. An image may name other files (a backing file, a VMDK's data) only below
/// one of these folders: what it names is opened with the daemon's rights.
pub fn open_any(backing_folders: Vec<PathBuf>) -> OpenImage {
    Arc::new(move |disk| open(disk, &backing_folders))
}

fn open(disk: &Disk, backing: &[PathBuf]) -> io::Result<Arc<dyn Storage>> {
    let (path, read_only) = (disk.path.as_path(), disk.read_only);
    Ok(match disk.format {
        Format::Raw => Arc::new(FileStorage::open(path, read_only, disk.cache)?),
        Format::Vhd => Arc::new(Vhd::open(path, read_only)?),
        Format::Qcow2 => {
            let gate = Below(backing.to_vec());
            let image = Qcow2::<File>::builder(storage(path, read_only)?)
                .write(!read_only)
                .open(gate)?;
            Arc::new(Image::new(path, image, read_only)?)
        }
        Format::Vmdk if !read_only => {
            let why = "VMDK images can only be read (mode r)";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        Format::Vmdk => {
            let gate = Below(backing.to_vec());
            let image = Vmdk::<File>::builder(storage(path, read_only)?).open(gate)?;
            Arc::new(Image::new(path, image, read_only)?)
        }
    })
}

fn storage(path: &Path, read_only: bool) -> io::Result<File> {
    // Refuses pipes and other things that would make us wait.
    drop(open_image(path, read_only, Cache::Page)?);
    File::open(StorageOpenOptions::new().filename(path).write(!read_only))
}

/// Lets images name backing files below some folders, in a format that they name too.
struct Below(Vec<PathBuf>);

impl Below {
    fn check(&self, path: Option<&Path>) -> io::Result<()> {
        let denied = |why: String| io::Error::new(io::ErrorKind::PermissionDenied, why);
        let path = path.ok_or_else(|| denied("a backing file without a name".into()))?;
        // With all links followed: what is allowed is a place, not a name.
        let real = path.canonicalize()?;
        let allowed = self.0.iter().any(|folder| {
            folder
                .canonicalize()
                .is_ok_and(|folder| real.starts_with(folder))
        });
        match allowed {
            true => Ok(()),
            false => Err(denied(format!(
                "backing file {}: backing files are allowed only where --backing says",
                real.display()
            ))),
        }
    }
}

impl ImplicitOpenGate<File> for Below {
    fn open_format<F: FormatDriverBuilder<File>>(
        &mut self,
        builder: F,
    ) -> io::Result<FormatAccess<File>> {
        self.check(builder.get_image_path().as_deref())?;
        Ok(FormatAccess::new(builder.open(Below(self.0.clone()))?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<File> {
        self.check(options.get_filename())?;
        File::open(options)
    }
}

/// An image that imago reads and writes.
struct Image {
    access: FormatAccess<File>,
    sectors_512: u64,
    writable: bool,
    identity: Identity,
}

impl Image {
    fn new<D>(path: &Path, image: D, read_only: bool) -> io::Result<Image>
    where
        D: imago::format::drivers::FormatDriverInstance<Storage = File> + Debug + 'static,
    {
        let meta = std::fs::metadata(path)?;
        let access = FormatAccess::new(image);
        let sectors_512 = access.size() / 512;
        if sectors_512 == 0 {
            let why = "the disk in the image is shorter than a sector";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(Image {
            access,
            sectors_512,
            writable: !read_only,
            identity: Identity::File(meta.dev(), meta.ino()),
        })
    }
}

impl Storage for Image {
    fn sectors_512(&self) -> u64 {
        self.sectors_512
    }

    fn can_discard(&self) -> bool {
        self.writable
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.access.read(to, offset)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.access.write(from, offset)?;
        // The guest takes it for written now, and goes on when this process is killed: what the image knows
        // of it must not be in our memory alone.
        self.access.flush()
    }

    fn flush(&self) -> io::Result<()> {
        self.access.flush()?;
        self.access.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.access.write_zeroes(offset, len)?;
        self.access.flush()
    }

    fn identity(&self) -> Option<Identity> {
        Some(self.identity)
    }
}
