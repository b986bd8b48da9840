//! Which disks can go on in a new image: judged by what their back end's nodes say.

use std::path::{Path, PathBuf};

use crate::config::DiskFormat;

/// The disk as its back end's nodes tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// The guest's name for it.
    pub vdev: String,
    /// Its image.
    pub backing: PathBuf,
    /// The same as the toolstack called it.
    pub named: String,
    /// What that holds.
    pub format: DiskFormat,
    /// Its length, as the guest knows it.
    pub sectors_512: u64,
    /// What else a configuration file says of it, with a comma before each.
    pub options: String,
}

/// The nodes that tell.
pub const NODES: [&str; 11] = [
    "params",
    "mode",
    "device-type",
    "state",
    "sectors",
    "sector-size",
    "dev",
    "discard-enable",
    "direct-io-safe",
    "max-iops",
    "max-bytes-per-second",
];

/// What the nodes say, if such a disk can go on in a new image; else why not, and what to do.
pub fn present(values: [&str; NODES.len()]) -> Result<Present, (String, &'static str)> {
    let [params, mode, kind, state, sectors, unit, vdev, rest @ ..] = values;
    let [discard, direct, iops, bytes] = rest;
    let no = |cause: &str, hint| Err((cause.to_string(), hint));
    let (format, path) = DiskFormat::of_params(params);
    if kind == "cdrom" {
        return no("it is a CD drive", "it can only be read: copy its image");
    }
    if mode == "w!" {
        return no(
            "other guests may write to it",
            "they would not see what this one writes from then on",
        );
    }
    if mode != "w" && mode != "rw" {
        return no("the guest only reads it", "copy its image as it is");
    }
    if !matches!(format, DiskFormat::Raw | DiskFormat::Qcow2) {
        return Err((
            format!("its format is {}", format.name()),
            "only raw and qcow2 images can be behind another; with the guest down: \
             qemu-img convert -O qcow2 OLD NEW",
        ));
    }
    if state != "4" {
        return no(
            "the guest is not connected to it",
            "try again when its kernel is up, or shut it down and use qemu-img create -b",
        );
    }
    if unit != "512" {
        return Err((
            format!("its sectors are of {unit} bytes"),
            "a qcow2 image has sectors of 512 bytes: use what the storage itself has, such as lvcreate -s",
        ));
    }
    let sectors_512 = sectors.parse().map_err(|_| {
        let cause = format!("its back end says it has {sectors:?} sectors");
        (cause, "look at blkback's log")
    })?;
    let mut options = String::new();
    for (there, name, value) in [
        (discard == "0", "no-discard", ""),
        (direct == "1", "direct-io-safe", ""),
        (!iops.is_empty(), "max-iops=", iops),
        (!bytes.is_empty(), "max-bytes-per-second=", bytes),
    ] {
        if there {
            options.extend([",", name, value]);
        }
    }
    Ok(Present {
        vdev: vdev.into(),
        backing: Path::new("/dev").join(path),
        named: path.into(),
        format,
        sectors_512,
        options,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [&str; NODES.len()] = [
        "/srv/a.img",
        "w",
        "disk",
        "4",
        "2048",
        "512",
        "xvda",
        "1",
        "",
        "",
        "",
    ];

    #[test]
    fn disks_that_can_go_on_in_a_new_image() {
        for (params, backing, format) in [
            ("/srv/a.img", "/srv/a.img", DiskFormat::Raw),
            ("aio:/srv/a.img", "/srv/a.img", DiskFormat::Raw),
            ("qcow2:/srv/a:b", "/srv/a:b", DiskFormat::Qcow2),
            ("vg/lv", "/dev/vg/lv", DiskFormat::Raw),
        ] {
            let mut values = GOOD;
            values[0] = params;
            let now = present(values).unwrap();
            assert_eq!((now.backing.to_str(), now.format), (Some(backing), format));
            assert_eq!((now.sectors_512, &*now.options), (2048, ""));
        }
    }

    #[test]
    fn what_else_is_said_of_a_disk_stays() {
        let mut values = GOOD;
        values[7..].copy_from_slice(&["0", "1", "40", "1048576"]);
        assert_eq!(
            present(values).unwrap().options,
            ",no-discard,direct-io-safe,max-iops=40,max-bytes-per-second=1048576"
        );
    }

    #[test]
    fn disks_that_cannot() {
        for (at, value, why) in [
            (0, "vhd:/srv/a.vhd", "its format is vhd"),
            (0, "vmdk:/srv/a", "its format is vmdk"),
            (1, "r", "only reads it"),
            (1, "w!", "other guests"),
            (2, "cdrom", "a CD drive"),
            (3, "2", "not connected"),
            (3, "", "not connected"),
            (4, "many", "\"many\" sectors"),
            (5, "4096", "of 4096 bytes"),
        ] {
            let mut values = GOOD;
            values[at] = value;
            let (cause, hint) = present(values).unwrap_err();
            assert!(cause.contains(why) && !hint.is_empty(), "{value}: {cause}");
        }
    }
}
