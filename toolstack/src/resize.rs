//! Makes a running guest's disk larger: the image, if it is a raw file, then what its back end says of it.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use xen_hal::Store;

use crate::backends::demand_ours;
use crate::config::DiskFormat;
use crate::destroy::Device;
use crate::error::{Error, Kind, Result};
use crate::store::texts;

/// How long the back end may take to notice.
const TIMEOUT: Duration = Duration::from_secs(10);
const SECTOR: u64 = 512;

/// Has the back end look at the disk's size again, after making its file so long if `bytes` says so. Returns
/// the size in sectors of 512 bytes that the guest is told.
///
/// # Errors
/// The image cannot be that long, or the back end does not notice.
pub fn resize_disk(store: &impl Store, device: &Device, bytes: Option<u64>) -> Result<u64> {
    const STEP: &str = "resize";
    let object = format!("{} {}", device.kind, device.number);
    let failed = |what: &str| Error::new(STEP, &object, what).kind(Kind::Invalid);
    let kernel =
        "make the storage larger (losetup -c for a loop device): it looks at every request";
    demand_ours(store, &device.backend, kernel)?;
    let paths =
        ["params", "physical-device-path", "mode"].map(|node| format!("{}/{node}", device.backend));
    let values = texts(store, None, &paths).map_err(Error::store("look at", &device.backend))?;
    let value = |at: usize| values.get(at).cloned().flatten().unwrap_or_default();
    let (params, path, mode) = (value(0), value(1), value(2));
    let raw = DiskFormat::without_prefix(&params) == params;
    let path = Path::new(&path);
    if !raw {
        return Err(
            failed("only raw images and block devices can be resized while they are used")
                .hint("shut the guest down, then qemu-img resize"),
        );
    }
    if let Some(bytes) = bytes {
        if mode.starts_with('r') {
            return Err(failed("the guest may only read it").hint("leave the size out"));
        }
        lengthen(path, bytes)?;
    }
    let system = |step| move |error: &_| Error::system(step, path.display(), error);
    let length = File::open(path)
        .and_then(|mut file| file.seek(SeekFrom::End(0)))
        .map_err(|error| system("look at")(&error))?;
    // Written as it was: the back end looks at whatever is written here.
    store
        .write(None, &paths[0], params.as_bytes())
        .map_err(Error::store("write", &paths[0]))?;
    let sectors = format!("{}/sectors", device.backend);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let said = texts(store, None, std::slice::from_ref(&sectors));
        let said = said.map_err(Error::store("look at", &sectors))?;
        let said: Option<u64> = said
            .into_iter()
            .flatten()
            .next()
            .and_then(|n| n.parse().ok());
        if let Some(said) = said.filter(|said| (length / SECTOR).abs_diff(*said) < 8) {
            return Ok(said);
        }
        if Instant::now() > deadline {
            return Err(failed("its back end does not say the new size")
                .kind(Kind::TimedOut)
                .hint("the guest sees it when it connects to the disk again"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Makes a file longer, never shorter.
fn lengthen(path: &Path, bytes: u64) -> Result<()> {
    let step = "make longer";
    let system = |error: &_| Error::system(step, path.display(), error).kind(Kind::Invalid);
    let meta = fs::metadata(path).map_err(|error| system(&error))?;
    let failed = |what: String| Error::new(step, path.display(), what).kind(Kind::Invalid);
    if !meta.is_file() {
        return Err(failed("it is a block device".into())
            .hint("make it larger with its own tool, such as lvextend, and leave the size out"));
    }
    if bytes < meta.len() {
        let what = format!("it has {} bytes, more than {bytes}", meta.len());
        return Err(failed(what).hint("what the guest has at its end would be lost"));
    }
    let file = File::options().write(true).open(path);
    file.and_then(|file| file.set_len(bytes))
        .map_err(|error| system(&error))
}
