//! One element of `disk=[…]` (xl-disk-configuration(5)).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::vdev::vdev_number;

/// What an image file's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskFormat {
    /// The disk's bytes as they are.
    Raw,
    /// Old QEMU copy-on-write.
    Qcow,
    /// QEMU copy-on-write 2.
    Qcow2,
    /// Microsoft virtual hard disk.
    Vhd,
    /// VMware disk. An extension: stock xl does not know it.
    Vmdk,
    /// QEMU enhanced disk.
    Qed,
    /// No medium.
    Empty,
}

impl DiskFormat {
    /// What stands before the path in a back end's `params`: nothing for raw images.
    pub const fn prefix(self) -> &'static str {
        match self {
            DiskFormat::Raw | DiskFormat::Empty => "",
            DiskFormat::Qcow => "qcow:",
            DiskFormat::Qcow2 => "qcow2:",
            DiskFormat::Vhd => "vhd:",
            DiskFormat::Vmdk => "vmdk:",
            DiskFormat::Qed => "qed:",
        }
    }

    /// The format that `params` names, and what is behind its name.
    pub fn of_params(params: &str) -> (DiskFormat, &str) {
        match params.split_once(':') {
            Some(("aio", path)) => (DiskFormat::Raw, path),
            Some((name @ ("raw" | "qcow" | "qcow2" | "vhd" | "vmdk" | "qed"), path)) => {
                (DiskFormat::parse(name).unwrap_or(DiskFormat::Raw), path)
            }
            _ => (DiskFormat::Raw, params),
        }
    }

    /// `params` without the format's name, if one is there.
    pub fn without_prefix(params: &str) -> &str {
        DiskFormat::of_params(params).1
    }

    /// The name in libxl's JSON, which has none for what libxl does not know.
    pub const fn libxl_name(self) -> &'static str {
        match self {
            DiskFormat::Vmdk => "unknown",
            other => other.name(),
        }
    }

    /// qemu-img's name of a format that needs it; raw images do not.
    pub const fn qemu_name(self) -> Option<&'static str> {
        match self {
            DiskFormat::Raw | DiskFormat::Empty => None,
            DiskFormat::Vhd => Some("vpc"),
            other => Some(other.name()),
        }
    }

    /// The name in configuration files.
    pub const fn name(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow => "qcow",
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Vhd => "vhd",
            DiskFormat::Vmdk => "vmdk",
            DiskFormat::Qed => "qed",
            DiskFormat::Empty => "empty",
        }
    }

    fn parse(text: &str) -> Option<DiskFormat> {
        Some(match text {
            "" | "raw" => DiskFormat::Raw,
            "qcow" => DiskFormat::Qcow,
            "qcow2" => DiskFormat::Qcow2,
            "vhd" => DiskFormat::Vhd,
            "vmdk" => DiskFormat::Vmdk,
            "qed" => DiskFormat::Qed,
            "empty" => DiskFormat::Empty,
            _ => return None,
        })
    }
}

/// A disk as the file describes it, its syntax checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// The image file or block device.
    pub target: PathBuf,
    /// What it holds.
    pub format: DiskFormat,
    /// The guest's name for it.
    pub vdev: String,
    /// The number of that name.
    pub number: u32,
    /// Whether the guest may write.
    pub writable: bool,
    /// A CD drive.
    pub cdrom: bool,
    /// Whether the guest may give blocks back; `None` leaves it to the backend.
    pub discard: Option<bool>,
    /// `backendtype=`, if given.
    pub backend_type: Option<String>,
    /// `script=`, if given.
    pub script: Option<String>,
    /// `backend=`, if given and not dom0.
    pub backend: Option<String>,
    /// The host's page cache is passed by: `direct-io-safe`.
    #[serde(default)]
    pub direct_io_safe: bool,
    /// Whether the guest may trust the back end with its memory; it may, if nothing is said.
    #[serde(default)]
    pub trusted: Option<bool>,
    /// Most requests in a second: `max-iops=`, an extension.
    #[serde(default)]
    pub max_iops: Option<u64>,
    /// Most bytes in a second: `max-bytes-per-second=`, an extension.
    #[serde(default)]
    pub max_bytes_per_second: Option<u64>,
}

/// What has been read of a disk so far.
#[derive(Default)]
struct Draft {
    target: Option<String>,
    format: Option<DiskFormat>,
    vdev: Option<String>,
    access: Option<bool>,
    access_placed: bool,
    cdrom: bool,
    discard: Option<bool>,
    backend_type: Option<String>,
    script: Option<String>,
    backend: Option<String>,
    direct_io_safe: bool,
    trusted: Option<bool>,
    max_iops: Option<u64>,
    max_bytes_per_second: Option<u64>,
    old_prefix: bool,
}

impl DiskConfig {
    /// Reads one element.
    ///
    /// # Errors
    /// What is wrong, and what to do about it if that is known.
    pub fn parse(text: &str) -> Result<DiskConfig, (String, Option<String>)> {
        let mut draft = Draft::default();
        let mut rest = text.trim();
        while !rest.is_empty() {
            if let Some(target) = rest.strip_prefix("target=") {
                let target = target.strip_suffix(',').unwrap_or(target);
                set_once(&mut draft.target, target, "target")?;
                break;
            }
            let (item, tail) = rest.split_once(',').unwrap_or((rest, ""));
            draft.take(item.trim())?;
            rest = tail.trim_start();
        }
        draft.finish()
    }
}

type Complaint = (String, Option<String>);

fn complain<T>(message: impl Into<String>) -> Result<T, Complaint> {
    Err((message.into(), None))
}

/// Sets what may be set once; an empty text counts as not set.
fn set_once(to: &mut Option<String>, value: &str, what: &str) -> Result<(), Complaint> {
    if to.as_ref().is_some_and(|old| !old.is_empty()) {
        return complain(format!("{what} is given twice"));
    }
    *to = Some(value.to_string());
    Ok(())
}

/// Sets a limit, a number and perhaps a unit: K, M, G, each 1024 of the one before.
fn set_limit(to: &mut Option<u64>, key: &str, value: &str) -> Result<(), Complaint> {
    let (digits, shift) = match value.split_at_checked(value.len().saturating_sub(1)) {
        Some((digits, "K" | "k")) => (digits, 10),
        Some((digits, "M" | "m")) => (digits, 20),
        Some((digits, "G" | "g")) => (digits, 30),
        _ => (value, 0),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = plain.then(|| digits.parse::<u64>().ok()).flatten();
    let number = number.and_then(|number| number.checked_mul(1 << shift));
    match number.filter(|number| *number > 0) {
        None => Err((
            format!("{key} is `{value}`, which is no number above 0"),
            Some(format!("such as {key}=500 or {key}=10M")),
        )),
        Some(_) if to.is_some() => complain(format!("{key} is given twice")),
        limit => {
            *to = limit;
            Ok(())
        }
    }
}

fn is_word(text: &str) -> bool {
    let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.bytes().all(letters)
}

impl Draft {
    fn take(&mut self, item: &str) -> Result<(), Complaint> {
        if let Some((key, value)) = item.split_once('=')
            && !key.contains('/')
        {
            return self.keyed(key.trim(), value.trim());
        }
        match item {
            "cdrom" => self.cdrom = true,
            "discard" => self.discard = Some(true),
            "no-discard" => self.discard = Some(false),
            "direct-io-safe" => self.direct_io_safe = true,
            "trusted" => self.trusted = Some(true),
            "untrusted" => self.trusted = Some(false),
            _ => return self.positional(item),
        }
        Ok(())
    }

    fn keyed(&mut self, key: &str, value: &str) -> Result<(), Complaint> {
        match key {
            "format" => self.set_format(value)?,
            "vdev" => set_once(&mut self.vdev, value, "vdev")?,
            "access" => self.set_access(value)?,
            "backend" => set_once(&mut self.backend, value, "backend")?,
            "backendtype" => {
                if !["phy", "tap", "qdisk", "standalone"].contains(&value) {
                    return complain(format!("unknown backendtype `{value}`"));
                }
                match self.backend_type.replace(value.to_string()) {
                    Some(old) if old != value => return complain("backendtype is given twice"),
                    _ => {}
                }
            }
            "script" => set_once(&mut self.script, value, "script")?,
            "max-iops" => set_limit(&mut self.max_iops, key, value)?,
            "max-bytes-per-second" => set_limit(&mut self.max_bytes_per_second, key, value)?,
            "devtype" => match value {
                "cdrom" => self.cdrom = true,
                "disk" => self.cdrom = false,
                _ => return complain(format!("unknown devtype `{value}`")),
            },
            _ => {
                let known = [
                    "format",
                    "vdev",
                    "access",
                    "backend",
                    "backendtype",
                    "script",
                    "devtype",
                    "target",
                    "max-iops",
                    "max-bytes-per-second",
                ];
                let near = super::diag::nearest(key, known).map(|k| format!("did you mean `{k}`?"));
                return Err((format!("unknown disk parameter `{key}`"), near));
            }
        }
        Ok(())
    }

    /// Target, format, vdev, access, whichever is not yet there, in this order.
    fn positional(&mut self, item: &str) -> Result<(), Complaint> {
        if self.target.is_none() {
            return self.set_target(item);
        }
        if self.format.is_none() && !self.old_prefix {
            return self.set_format(item);
        }
        if self.vdev.is_none() {
            return self.set_name(item);
        }
        if !self.access_placed {
            self.access_placed = true;
            return match item {
                "" => self.set_access("w"),
                _ => self.set_access(item),
            };
        }
        complain(format!("too many parameters at `{item}`"))
    }

    /// The name at its place, where `:cdrom` or `:disk` may be behind it.
    fn set_name(&mut self, item: &str) -> Result<(), Complaint> {
        let name = match item.split_once(':') {
            Some((name, "cdrom")) => {
                self.cdrom = true;
                name
            }
            Some((name, "disk")) => {
                self.cdrom = false;
                name
            }
            _ => item,
        };
        set_once(&mut self.vdev, name, "vdev")
    }

    /// The target at its place, with the prefixes that xend knew.
    fn set_target(&mut self, mut item: &str) -> Result<(), Complaint> {
        while let Some((prefix, rest)) = item.split_once(':') {
            match prefix {
                "raw" | "qcow" | "qcow2" | "vhd" | "vmdk" => self.set_format(prefix)?,
                "tapdisk" | "tap" | "tap2" | "aio" | "ioemu" | "file" | "phy" => {}
                "iscsi" | "nbd" | "drbd" => {
                    set_once(&mut self.script, &format!("block-{prefix}"), "script")?;
                }
                _ if is_word(prefix)
                    && !rest
                        .starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) =>
                {
                    let message = format!("unknown prefix `{prefix}:`");
                    let hint = "a path with a colon goes last, behind target=";
                    return Err((message, Some(hint.into())));
                }
                _ => break,
            }
            self.old_prefix = true;
            item = rest;
        }
        self.target = Some(item.to_string());
        Ok(())
    }

    fn set_format(&mut self, value: &str) -> Result<(), Complaint> {
        match DiskFormat::parse(value) {
            Some(format) => match self.format.replace(format) {
                Some(old) if old != format => complain("format is given twice"),
                _ => Ok(()),
            },
            None => Err((
                format!("unknown disk format `{value}`"),
                Some(match value {
                    "vdi" | "vhdx" => "convert it: qemu-img convert -O qcow2 OLD NEW".into(),
                    _ => "known ones are raw, qcow2, vhd, vmdk and empty".into(),
                }),
            )),
        }
    }

    fn set_access(&mut self, value: &str) -> Result<(), Complaint> {
        match value {
            "r" | "ro" => self.access = Some(false),
            "w" | "rw" => self.access = Some(true),
            "w!" | "r!" => {
                return Err((
                    format!("access `{value}` is not supported any more"),
                    Some("write w, or share the disk read-only with r".into()),
                ));
            }
            _ => {
                return Err((
                    format!("unknown access `{value}`"),
                    Some("write r or w".into()),
                ));
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<DiskConfig, Complaint> {
        let format = self.format.unwrap_or(DiskFormat::Raw);
        let Some(vdev) = self.vdev.filter(|vdev| !vdev.is_empty()) else {
            return Err((
                "the disk has no virtual device name".into(),
                Some("such as xvda: \"/path/to/image,raw,xvda,w\"".into()),
            ));
        };
        let number = vdev_number(&vdev).map_err(|_| {
            (
                format!("`{vdev}` is not the name of a virtual disk"),
                Some("such as xvda, xvdb, hda or sda1".into()),
            )
        })?;
        let target = self.target.unwrap_or_default();
        if target.is_empty() && format != DiskFormat::Empty {
            return Err((
                "the disk has no target".into(),
                Some("name the image file or block device first: \"/path,raw,xvda,w\"".into()),
            ));
        }
        Ok(DiskConfig {
            target: target.into(),
            format,
            vdev,
            number,
            // As libxl: whatever access= says.
            writable: !self.cdrom && self.access.unwrap_or(true),
            cdrom: self.cdrom,
            discard: self.discard,
            backend_type: self.backend_type,
            script: self.script,
            backend: self.backend.filter(|v| v != "0" && v != "Domain-0"),
            direct_io_safe: self.direct_io_safe,
            trusted: self.trusted,
            max_iops: self.max_iops,
            max_bytes_per_second: self.max_bytes_per_second,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_are_read() {
        for (text, target, format, vdev, writable) in [
            ("/a.img,raw,xvda,w", "/a.img", DiskFormat::Raw, "xvda", true),
            ("/a.img,,xvdb,r", "/a.img", DiskFormat::Raw, "xvdb", false),
            (
                "phy:/dev/vg/a,xvda,w",
                "/dev/vg/a",
                DiskFormat::Raw,
                "xvda",
                true,
            ),
            (
                "file:/a.img,xvda1,r",
                "/a.img",
                DiskFormat::Raw,
                "xvda1",
                false,
            ),
            (
                "tap:qcow2:/a.q,xvda,w",
                "/a.q",
                DiskFormat::Qcow2,
                "xvda",
                true,
            ),
            (
                "format=vhd, vdev=hda, access=rw, target=/a,b=c",
                "/a,b=c",
                DiskFormat::Vhd,
                "hda",
                true,
            ),
            ("vdev=xvda,target=/x", "/x", DiskFormat::Raw, "xvda", true),
            ("/x,raw,hdc:cdrom,r", "/x", DiskFormat::Raw, "hdc", false),
            (
                "nbd:host:1,xvda,r",
                "host:1",
                DiskFormat::Raw,
                "xvda",
                false,
            ),
            ("/x,raw,hdc,cdrom", "/x", DiskFormat::Raw, "hdc", false),
            (
                "/dev/a=b,raw,xvda",
                "/dev/a=b",
                DiskFormat::Raw,
                "xvda",
                true,
            ),
        ] {
            let disk = DiskConfig::parse(text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
            assert_eq!(disk.target, PathBuf::from(target), "{text}");
            assert_eq!(
                (disk.format, disk.vdev.as_str(), disk.writable),
                (format, vdev, writable),
                "{text}"
            );
        }
    }

    #[test]
    fn limits() {
        for (words, iops, bytes) in [
            ("", None, None),
            ("max-iops=500,", Some(500), None),
            (
                "max-iops=2k,max-bytes-per-second=10M,",
                Some(2048),
                Some(10 << 20),
            ),
        ] {
            let disk = DiskConfig::parse(&format!("{words}vdev=xvda,target=/x")).unwrap();
            assert_eq!((disk.max_iops, disk.max_bytes_per_second), (iops, bytes));
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("", "no virtual device"),
            ("/a.img", "no virtual device"),
            ("/a.img,raw,floppy,w", "`floppy` is not the name"),
            ("/a.img,rav,xvda,w", "unknown disk format `rav`"),
            ("/a.img,raw,xvda,w!", "not supported any more"),
            ("/a.img,raw,xvda,x", "unknown access"),
            ("/a.img,raw,xvda,w,more", "too many parameters"),
            ("vdev=xvda", "no target"),
            ("http://x/y,raw,xvda", "unknown prefix `http:`"),
            ("/a,raw,xvda,vdev=xvdb", "vdev is given twice"),
            ("/a,raw,xvda,w,target=/b", "target is given twice"),
            (
                "formt=raw,vdev=xvda,target=/x",
                "unknown disk parameter `formt`",
            ),
            ("backendtype=foo,vdev=xvda,target=/x", "unknown backendtype"),
            ("max-iops=0,vdev=xvda,target=/x", "no number above 0"),
            ("max-iops=M,vdev=xvda,target=/x", "no number above 0"),
            ("max-iops=+1,vdev=xvda,target=/x", "no number above 0"),
            ("max-iops=é,vdev=xvda,target=/x", "no number above 0"),
            (
                "max-bytes-per-second=99999999999G,vdev=xvda,target=/x",
                "no number above 0",
            ),
            ("max-iops=1,max-iops=1,vdev=xvda,target=/x", "given twice"),
        ] {
            let (message, _) = DiskConfig::parse(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_text_never_panics(text in "([a-z]{1,4}|=|,|:|/|!| |target=|vdev=|xvda|raw)*") {
            let _ = DiskConfig::parse(&text);
        }
    }
}
