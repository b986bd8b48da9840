//! Builds the two initial RAM disks: dom0 with one Debian release's stock tools, and the small
//! Debian guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio::Tree;
use crate::error::{Context, Error, Result, fail};
use crate::kmod::Modules;
use crate::packages::{PackageSet, XenVersion};
use crate::paths::{self, Key, Lock};
use crate::stock::{self, locate, names_in};
use crate::ui;

/// Modules in the dom0 image; which of them are loaded at boot is in `image/init`.
const DOM0_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "9p",
    "9pnet_virtio",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-privcmd",
    "xenfs",
    "xen-blkback",
    "xen-netback",
    "xen-blkfront",
    "xen-netfront",
    "tun",
    "bridge",
    "loop",
    "ext4",
    "crc32c_generic",
    "dummy",
    "veth",
    "null_blk",
];

const GUEST_MODULES: &[&str] = &["xen-blkfront", "xen-netfront", "ext4", "crc32c_generic"];

/// A built image and the kernel it goes with.
pub struct Image {
    /// Debian's kernel.
    pub vmlinuz: PathBuf,
    /// Unpacked Xen, as QEMU's `-kernel` wants it.
    pub xen: PathBuf,
    /// dom0's RAM disk.
    pub initrd: PathBuf,
    /// The Debian guest's RAM disk.
    pub guest_initrd: PathBuf,
    /// Changes when anything in it changes.
    pub key: String,
}

/// Builds the image for one Xen release, or finds it built.
pub fn obtain(
    lab: &Path,
    version: XenVersion,
    base: &PackageSet,
    xen: &PackageSet,
    agent: &Path,
) -> Result<Image> {
    let mut key = Key::default();
    for p in base.packages.iter().chain(&xen.packages) {
        key.add(&p.sha256);
    }
    key.add(paths::read(agent)?);
    for part in [
        INIT,
        ATTACH,
        UP,
        GUEST_INIT,
        include_str!("image.rs"),
        include_str!("stock.rs"),
        include_str!("kmod.rs"),
    ] {
        key.add(part);
    }
    let key = key.hex();
    let dir = lab.join("images").join(format!("{}-{key}", version.name()));
    let image = Image {
        vmlinuz: dir.join("vmlinuz"),
        xen: dir.join("xen"),
        initrd: dir.join("initrd"),
        guest_initrd: dir.join("guest-initrd"),
        key,
    };
    paths::make_dir(&lab.join("images"))?;
    let _lock = Lock::exclusive(&lab.join("images/lock"))?;
    if dir.join("complete").exists() {
        return Ok(image);
    }
    paths::make_dir(&dir)?;
    ui::slow(
        &format!("building the dom0 image for Xen {}", version.name()),
        || build(&image, version, base, xen, agent),
    )?;
    paths::write_atomically(&dir.join("complete"), b"")?;
    discard_others(&lab.join("images"), version, &dir);
    Ok(image)
}

const INIT: &str = include_str!("../image/init");
const ATTACH: &str = include_str!("../image/attach");
const UP: &str = include_str!("../image/up");
const GUEST_INIT: &str = include_str!("../image/guest-init");

/// How many images per Xen release are kept.
const KEEP_IMAGES: usize = 4;

fn discard_others(dir: &Path, version: XenVersion, current: &Path) {
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.is_dir() && p != current)
        .filter(|p| {
            let name = p
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            name.starts_with(version.name())
        })
        .collect();
    found.sort_by_key(|p| std::fs::metadata(p).and_then(|m| m.modified()).ok());
    while found.len() >= KEEP_IMAGES {
        let _ = std::fs::remove_dir_all(found.remove(0));
    }
}

fn build(
    image: &Image,
    version: XenVersion,
    base: &PackageSet,
    xen: &PackageSet,
    agent: &Path,
) -> Result<()> {
    let modules = Modules::below(&base.root)?;
    let kernel = base.root.join(format!("boot/vmlinuz-{}", modules.release));
    std::fs::copy(&kernel, &image.vmlinuz).context(|| format!("copying {}", kernel.display()))?;
    gunzip(&find_xen(&xen.root)?, &image.xen)?;
    let busybox = busybox(base)?;

    let mut tree = dom0_skeleton();
    stock::install(&mut tree, version, &xen.root)?;
    busybox_links(&mut tree, &busybox)?;
    modules.install(DOM0_MODULES, &mut tree)?;
    tree.file("usr/sbin/lab-agent", 0o755, paths::read(agent)?);
    tree.file("init", 0o755, INIT);
    tree.file("usr/lib/lab/attach", 0o755, ATTACH);
    tree.file("usr/lib/lab/up", 0o755, UP);
    tree.file("etc/lab-xen", 0o644, format!("{}\n", version.name()));
    paths::write_atomically(&image.initrd, &tree.to_cpio())?;

    let mut guest = Tree::new();
    merged_folders(&mut guest, "");
    guest.file("usr/bin/busybox", 0o755, paths::read(&busybox)?);
    guest.char_device("dev/console", 5, 1);
    guest.file("init", 0o755, GUEST_INIT);
    modules.install(GUEST_MODULES, &mut guest)?;
    paths::write_atomically(&image.guest_initrd, &guest.to_cpio())
}

/// /bin, /sbin and /lib as links into /usr.
fn merged_folders(tree: &mut Tree, prefix: &str) {
    for (name, target) in [("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib", "usr/lib")] {
        tree.dir(&format!("{prefix}{target}"));
        tree.link(&format!("{prefix}{name}"), target);
    }
}

fn dom0_skeleton() -> Tree {
    let mut tree = Tree::new();
    merged_folders(&mut tree, "");
    tree.link("sbin", "usr/sbin");
    for dir in [
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "root",
        "mnt",
        "lab",
        "usr/sbin",
        "var/lib/xen",
        "var/lib/xenstored",
        "var/lib/xlrs",
        "var/log/xen",
        "var/log/xlrs",
        "var/tmp",
        "usr/lib64",
    ] {
        tree.dir(dir);
    }
    tree.link("lib64", "usr/lib64");
    tree.link("var/run", "/run");
    tree.link("var/lock", "/run/lock");
    tree.char_device("dev/console", 5, 1);
    tree.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nxlrs:x:900:900:xlrs:/var/lib/xlrs:/bin/false\n");
    tree.file(
        "etc/group",
        0o644,
        "root:x:0:\nnogroup:x:65534:\nxlrs:x:900:\n",
    );
    tree.file("etc/hosts", 0o644, "127.0.0.1 localhost dom0\n");
    tree.file(
        "etc/nsswitch.conf",
        0o644,
        "passwd: files\ngroup: files\nhosts: files\n",
    );
    tree.link("etc/mtab", "/proc/self/mounts");
    tree
}

fn busybox(base: &PackageSet) -> Result<PathBuf> {
    locate(&base.root, "bin/busybox")
        .ok_or_else(|| Error("busybox-static brought no busybox".into()))
}

/// busybox and its applets, where the stock tools have not brought a program of that name.
fn busybox_links(tree: &mut Tree, busybox: &Path) -> Result<()> {
    let out = Command::new(busybox)
        .arg("--list")
        .output()
        .context(|| format!("running {}", busybox.display()))?;
    let list = String::from_utf8_lossy(&out.stdout).into_owned();
    if list.lines().count() < 100 {
        return fail(format!("{} --list: no list", busybox.display()));
    }
    tree.file("usr/bin/busybox", 0o755, paths::read(busybox)?);
    // busybox's own shell would run its applets instead of the stock tools of the same name.
    tree.link("usr/bin/sh", "bash");
    // Where the kernel looks.
    tree.link("usr/sbin/modprobe", "/usr/bin/busybox");
    for applet in list.lines() {
        let taken = ["usr/bin", "usr/sbin"]
            .iter()
            .any(|d| tree.contains(&format!("{d}/{applet}")));
        if !taken {
            tree.link(&format!("usr/bin/{applet}"), "busybox");
        }
    }
    Ok(())
}

fn find_xen(root: &Path) -> Result<PathBuf> {
    names_in(&root.join("boot"))?
        .into_iter()
        .find(|n| n.starts_with("xen-4") && n.ends_with(".gz"))
        .map(|n| root.join("boot").join(n))
        .ok_or_else(|| Error(format!("no boot/xen-*.gz below {}", root.display())))
}

fn gunzip(from: &Path, to: &Path) -> Result<()> {
    let out = Command::new("gzip")
        .arg("-dc")
        .arg(from)
        .output()
        .context(|| "running gzip".into())?;
    if !out.status.success() {
        return fail(format!("gzip -dc {}: {}", from.display(), out.status));
    }
    paths::write_atomically(to, &out.stdout)
}
