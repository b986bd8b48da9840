//! Which Debian packages the lab is made of, and the record of those it got.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::apt::{Package, Suite};
use crate::error::{Context, Result};
use crate::paths::{self, Lock};
use crate::ui;

/// A Xen release that the lab can boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum XenVersion {
    /// Debian 11's.
    #[value(name = "4.14")]
    V4_14,
    /// Debian 12's.
    #[value(name = "4.17")]
    V4_17,
    /// Debian 13's.
    #[value(name = "4.20")]
    V4_20,
}

impl XenVersion {
    /// All of them.
    pub const ALL: [XenVersion; 3] = [XenVersion::V4_14, XenVersion::V4_17, XenVersion::V4_20];

    /// "4.17"
    pub fn name(self) -> &'static str {
        match self {
            XenVersion::V4_14 => "4.14",
            XenVersion::V4_17 => "4.17",
            XenVersion::V4_20 => "4.20",
        }
    }

    fn suite(self) -> &'static str {
        match self {
            XenVersion::V4_14 => "bullseye",
            XenVersion::V4_17 => "bookworm",
            XenVersion::V4_20 => "trixie",
        }
    }

    fn packages(self) -> [&'static str; 2] {
        match self {
            XenVersion::V4_14 => ["xen-hypervisor-4.14-amd64", "xen-utils-4.14"],
            XenVersion::V4_17 => ["xen-hypervisor-4.17-amd64", "xen-utils-4.17"],
            XenVersion::V4_20 => ["xen-hypervisor-4.20-amd64", "xen-utils-4.20"],
        }
    }
}

/// Packages unpacked into one folder, and what they were.
pub struct PackageSet {
    /// The folder they were unpacked into.
    pub root: PathBuf,
    /// Name, version and checksum of each.
    pub packages: Vec<Package>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    layout: u32,
    suite: String,
    /// What was asked for; the packages are what it depends on, too.
    wanted: Vec<String>,
    packages: Vec<Package>,
}

/// Raise when something else is kept of what a set depends on.
const LAYOUT: u32 = 4;

/// What a stock toolstack needs beside Xen's own packages.
const TOOLS: &[&str] = &[
    "xen-utils-common",
    "xenstore-utils",
    "bash",
    "util-linux",
    "mount",
    "iproute2",
    "kmod",
    "libgcc-s1",
    "e2fsprogs",
];

/// In the dependency closure, but of no use in a dom0 without python, perl, udev and passwords.
const UNUSED: &[&str] = &[
    "adduser",
    "base-files",
    "base-passwd",
    "coreutils",
    "dash",
    "debconf",
    "debianutils",
    "diffutils",
    "dpkg",
    "findutils",
    "gcc-",
    "grep",
    "gzip",
    "hostname",
    "init-system-helpers",
    "initramfs-tools",
    "libpython",
    "libsqlite",
    "libsystemd-shared",
    "linux-base",
    "login",
    "mawk",
    "media-types",
    "ncurses-",
    "openssl",
    "passwd",
    "perl",
    "python",
    "readline-common",
    "sed",
    "sensible-utils",
    "sysvinit-utils",
    "systemd",
    "tar",
    "tzdata",
    "ucf",
    "udev",
];

fn useful(name: &str) -> bool {
    !UNUSED.iter().any(|u| {
        name == *u
            || (name.starts_with(u)
                && (u.ends_with('-') || u.starts_with("lib") || *u == "python" || *u == "perl"))
    })
}

/// Debian's kernel, and the busybox that dom0 and the Debian guest live from.
pub fn base(lab: &Path, refresh: bool) -> Result<PackageSet> {
    let wanted = ["linux-image-amd64", "busybox-static"];
    obtain(lab, "base", "bookworm", &wanted, refresh, |name| {
        name.starts_with("linux-image-") && name != "linux-image-amd64" || name == "busybox-static"
    })
}

/// One Xen with the stock tools of its own Debian release.
pub fn xen(lab: &Path, version: XenVersion, refresh: bool) -> Result<PackageSet> {
    let mut wanted = version.packages().to_vec();
    wanted.extend(TOOLS);
    let set = format!("xen-{}", version.name());
    obtain(lab, &set, version.suite(), &wanted, refresh, useful)
}

/// Xen's public C headers, which xen-sys and xen-dom0 are compared with. Returns the folder that holds `xen/`.
pub fn headers(lab: &Path) -> Result<PathBuf> {
    let only = |name: &str| name == "libxen-dev";
    let set = obtain(lab, "headers", "bookworm", &["libxen-dev"], false, only)?;
    Ok(set.root.join("usr/include"))
}

/// fio with its libraries, which it is run with.
pub fn fio(lab: &Path) -> Result<PackageSet> {
    obtain(lab, "fio", "bookworm", &["fio"], false, useful)
}

/// What single scenarios bring into dom0: programs that call a toolstack, with what they need, a boot loader
/// that is a PV guest, and systemd.
pub fn extras(lab: &Path) -> Result<PackageSet> {
    obtain(lab, "extras", "bookworm", EXTRAS, false, |name| {
        EXTRAS.contains(&name) || name.starts_with("lib") && useful(name)
    })
}

/// QEMU as the device model of that Xen's release, with its libraries.
pub fn qemu(lab: &Path, version: XenVersion) -> Result<PackageSet> {
    let wanted = ["qemu-system-xen", "qemu-system-data", "zlib1g"];
    let set = format!("qemu-{}", version.name());
    obtain(lab, &set, version.suite(), &wanted, false, |name| {
        wanted.contains(&name) || name.starts_with("lib") && useful(name)
    })
}

const EXTRAS: &[&str] = &[
    "xen-utils-common",
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "zlib1g",
    "sysvinit-utils",
    "grub-xen-host",
    "systemd",
    "libsystemd-shared",
];

fn obtain(
    lab: &Path,
    set: &str,
    suite: &'static str,
    wanted: &[&str],
    refresh: bool,
    keep: impl Fn(&str) -> bool,
) -> Result<PackageSet> {
    let dir = lab.join("packages");
    paths::make_dir(&dir)?;
    let record_path = dir.join(format!("{set}.json"));
    let _lock = Lock::exclusive(&dir.join("lock"))?;
    if let Some(found) = recorded(&record_path, &dir, set, wanted).filter(|_| !refresh) {
        return Ok(found);
    }
    let apt = Suite::refreshed(lab, suite)?;
    let packages = apt.resolve(wanted, keep)?;
    if let Some(found) = recorded(&record_path, &dir, set, wanted)
        && found.packages == packages
    {
        return Ok(found);
    }
    // A folder per content: a lab that runs from the old one is not disturbed.
    let name = folder(set, &packages);
    let (root, unfinished) = (dir.join(&name), dir.join(format!("{name}.new")));
    let _ = std::fs::remove_dir_all(&unfinished);
    let _ = std::fs::remove_dir_all(&root);
    apt.fetch(&packages, &unfinished)?;
    std::fs::rename(&unfinished, &root).context(|| format!("naming {}", root.display()))?;
    let record = Record {
        layout: LAYOUT,
        suite: suite.into(),
        wanted: wanted.iter().map(|name| name.to_string()).collect(),
        packages: packages.clone(),
    };
    let text = serde_json::to_vec_pretty(&record).context(|| "writing JSON".into())?;
    paths::write_atomically(&record_path, &text)?;
    ui::detail(format!("packages of {set}: see {}", record_path.display()));
    for p in &packages {
        ui::detail(format!("    {} {} sha256 {}", p.name, p.version, p.sha256));
    }
    Ok(PackageSet { root, packages })
}

fn folder(set: &str, packages: &[Package]) -> String {
    let mut key = paths::Key::default();
    for p in packages {
        key.add(&p.name).add(&p.version).add(&p.sha256);
    }
    format!("{set}-{}", key.hex())
}

fn recorded(record: &Path, dir: &Path, set: &str, wanted: &[&str]) -> Option<PackageSet> {
    let record: Record = serde_json::from_slice(&std::fs::read(record).ok()?).ok()?;
    let root = dir.join(folder(set, &record.packages));
    let fits = record.layout == LAYOUT && record.wanted == wanted;
    (fits && root.is_dir()).then_some(PackageSet {
        root,
        packages: record.packages,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_stay_and_interpreters_go() {
        for (name, stays) in [
            ("libc6", true),
            ("libpython3.11-minimal", false),
            ("python3", false),
            ("perl-base", false),
            ("libtirpc3", true),
            ("tar", false),
            ("udev", false),
            ("libudev1", true),
            ("gcc-12-base", false),
            ("libgcc-s1", true),
            ("xen-utils-4.17", true),
            ("bash", true),
        ] {
            assert_eq!(useful(name), stays, "{name}");
        }
    }

    #[test]
    fn what_was_fetched_is_used_for_what_it_was_fetched_for() {
        let dir = std::env::temp_dir().join(format!("xtask-packages-{}", std::process::id()));
        let package = Package {
            name: "a".into(),
            version: "1:2~3".into(),
            sha256: "00".into(),
        };
        let record = Record {
            layout: LAYOUT,
            suite: "bookworm".into(),
            wanted: vec!["a".into()],
            packages: vec![package.clone()],
        };
        let file = dir.join("set.json");
        std::fs::create_dir_all(dir.join(folder("set", &record.packages))).unwrap();
        std::fs::write(&file, serde_json::to_vec(&record).unwrap()).unwrap();
        let found = recorded(&file, &dir, "set", &["a"]).expect("it is there");
        assert_eq!(found.packages, [package]);
        assert!(recorded(&file, &dir, "set", &["a", "b"]).is_none());
        assert!(recorded(&file, &dir, "other", &["a"]).is_none());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
