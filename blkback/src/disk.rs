//! What the toolstack says about a disk, read from its backend directory.

use std::path::{Path, PathBuf};

use xen_backend::Site;
use xen_hal::Result;
use xen_sys::io::blkif;

use crate::rate::Allowance;
use crate::storage::Cache;

/// How an image keeps a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's.
    Qcow2,
    /// Microsoft's, fixed or dynamic.
    Vhd,
    /// VMware's, for reading.
    Vmdk,
}

/// A disk as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The file or block device.
    pub path: PathBuf,
    /// What is in it, as the toolstack says: a guest could write any format's magic into a raw image.
    pub format: Format,
    /// The guest may not write.
    pub read_only: bool,
    /// Writable even though another guest has it open (`w!`).
    pub shared: bool,
    /// The guest is to see a CD-ROM drive.
    pub cdrom: bool,
    /// The medium can be taken out.
    pub removable: bool,
    /// The guest may discard (`discard-enable`).
    pub discard: bool,
    /// Whether data goes through the host's page cache: not if `direct-io-safe` says so, as libxl writes it
    /// for a disk with `direct-io-safe`.
    pub cache: Cache,
    /// How fast the disk may go (`max-iops`, `max-bytes-per-second`, of our own); 0 is without a limit.
    pub allowance: Allowance,
}

impl Disk {
    /// One of which nothing is said but where it is and what is in it.
    pub fn plain(path: PathBuf, format: Format, read_only: bool) -> Disk {
        Disk {
            path,
            format,
            read_only,
            shared: false,
            cdrom: false,
            removable: false,
            discard: true,
            cache: Cache::Page,
            allowance: Allowance::default(),
        }
    }

    /// Reads the nodes that libxl writes.
    pub fn read(site: &Site<'_>) -> Result<Disk> {
        let params = site.back_required("params")?;
        let mode = site.back_required("mode")?;
        let (format, path) = params_path(&params).ok_or_else(|| {
            site.guest(format!(
                "{}/params is {params:?}, which names no file in a known format",
                site.back
            ))
        })?;
        let read_only = match mode.as_str() {
            "r" | "ro" => true,
            "w" | "rw" | "w!" => false,
            _ => {
                let what = format!("{}/mode is {mode:?}, neither r nor w", site.back);
                return Err(site.guest(what));
            }
        };
        Ok(Disk {
            path,
            format,
            read_only,
            shared: mode == "w!",
            cdrom: site.back("device-type")?.as_deref() == Some("cdrom"),
            removable: site.back_flag("removable", false)?,
            discard: site.back_flag("discard-enable", true)?,
            cache: match site.back_flag("direct-io-safe", false)? {
                true => Cache::Direct,
                false => Cache::Page,
            },
            allowance: Allowance {
                requests: number(site, "max-iops")?,
                bytes: number(site, "max-bytes-per-second")?,
            },
        })
    }

    /// The `info` node: `VDISK_*` bits.
    pub fn info(&self) -> u32 {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        bit(self.cdrom, blkif::VDISK_CDROM)
            | bit(self.removable, blkif::VDISK_REMOVABLE)
            | bit(self.read_only, blkif::VDISK_READONLY)
    }
}

/// A limit that a toolstack may have written.
fn number(site: &Site<'_>, node: &str) -> Result<u64> {
    match site.back(node)? {
        None => Ok(0),
        Some(text) => text.parse().map_err(|_| {
            let what = format!("{}/{node} is {text:?}, not a number", site.back);
            site.guest(what)
        }),
    }
}

/// Format and path in a `params` node: plain, or after prefixes as toolstacks put in front; relative to
/// /dev, as Xen's block script has it. No path, or the prefix of a format that is not known, gives `None`:
/// reading such a file as raw would show its headers to the guest.
pub fn params_path(params: &str) -> Option<(Format, PathBuf)> {
    const RAW: [&str; 6] = ["phy:", "file:", "aio:", "raw:", "tap:", "tap2:"];
    const FORMATS: [(&str, Option<Format>); 6] = [
        ("qcow2:", Some(Format::Qcow2)),
        ("vhd:", Some(Format::Vhd)),
        ("vmdk:", Some(Format::Vmdk)),
        ("qcow:", None),
        ("vhdx:", None),
        ("qed:", None),
    ];
    let mut path = params;
    while let Some(rest) = RAW.iter().find_map(|prefix| path.strip_prefix(prefix)) {
        path = rest;
    }
    let mut format = Format::Raw;
    for (prefix, named) in FORMATS {
        if let Some(rest) = path.strip_prefix(prefix) {
            (format, path) = (named?, rest);
            break;
        }
    }
    (!path.is_empty()).then(|| (format, Path::new("/dev").join(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params() {
        use Format::*;
        for (params, path) in [
            ("/dev/vg/disk", Some((Raw, "/dev/vg/disk"))),
            ("aio:/a b.img", Some((Raw, "/a b.img"))),
            ("tap:aio:/a.img", Some((Raw, "/a.img"))),
            ("file:/x:y", Some((Raw, "/x:y"))),
            ("phy:loop0", Some((Raw, "/dev/loop0"))),
            ("qcow2:/a.qcow2", Some((Qcow2, "/a.qcow2"))),
            ("tap2:vhd:/a.vhd", Some((Vhd, "/a.vhd"))),
            ("vmdk:/a:b", Some((Vmdk, "/a:b"))),
            ("qcow:/a", None),
            ("tap:vhdx:/a", None),
            ("qcow2:", None),
            ("aio:", None),
            ("", None),
        ] {
            let expected = path.map(|(format, path)| (format, PathBuf::from(path)));
            assert_eq!(params_path(params), expected, "{params}");
        }
    }
}
