//! Picks the stock tools out of one Debian release's packages: programs, the libraries they need,
//! their configuration.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::cpio::Tree;
use crate::elf;
use crate::error::{Context, Error, Result, fail};
use crate::packages::XenVersion;
use crate::paths;

/// Programs of the stock packages, beside all of /usr/lib/xen-VERSION/bin.
const PROGRAMS: &[&str] = &[
    "bin/bash",
    "bin/mount",
    "bin/umount",
    "bin/ip",
    "sbin/bridge",
    "bin/bridge",
    "sbin/tc",
    "sbin/losetup",
    "usr/bin/flock",
    "sbin/mke2fs",
    "sbin/e2fsck",
    "sbin/debugfs",
    "sbin/blkid",
    "bin/lsblk",
    "usr/bin/prlimit",
    "usr/bin/setpriv",
    "usr/bin/nsenter",
    "usr/bin/unshare",
    "usr/sbin/xenhypfs",
];

/// Loaded at run time, so that no file names them.
const LIBRARIES: &[&str] = &["libgcc_s.so.1"];

/// In /usr/lib/xen-VERSION/bin, but python or of no use here.
const NOT_FROM_XEN: &[&str] = &[
    "pygrub",
    "convert-legacy-stream",
    "verify-stream-v2",
    "xenpvnetboot",
    "xen-kdd",
    "xenlockprof",
    "flask-",
    "xen-hvm",
    "xen-mem",
    "xen-vmtrace",
    "xen-livepatch",
    "xencov",
    "gdbsx",
    "xen-ucode",
];

/// What `xl`, `xentop` and so on are called by: links into /usr/lib/xen-VERSION/bin. The daemons get
/// none: stock ones are started by full path, so that ours and theirs cannot be mistaken.
const SHORT_NAMES: &[&str] = &[
    "xl",
    "xentop",
    "xen-diag",
    "lsevtchn",
    "xenctx",
    "xen-mfndump",
    "xen-cpuid",
    "xenstore-control",
    "xenpm",
    "xentrace",
    "xenperf",
];

/// Puts Xen's tools, and what their scripts need, into `tree`.
pub fn install(tree: &mut Tree, version: XenVersion, root: &Path) -> Result<()> {
    let lib = format!("usr/lib/xen-{}/bin", version.name());
    let mut needed: BTreeSet<String> = LIBRARIES.iter().map(|l| l.to_string()).collect();
    for name in names_in(&root.join(&lib))? {
        if !NOT_FROM_XEN.iter().any(|n| name.starts_with(n)) {
            program(tree, root, &format!("{lib}/{name}"), &mut needed)?;
        }
    }
    for name in names_in(&root.join("usr/bin"))? {
        if name.starts_with("xenstore") && name != "xenstore-control" {
            program(tree, root, &format!("usr/bin/{name}"), &mut needed)?;
        }
    }
    for path in PROGRAMS {
        if locate(root, path).is_some() {
            program(tree, root, path, &mut needed)?;
        }
    }
    for must in ["usr/bin/bash", "usr/sbin/losetup", "usr/bin/flock"] {
        if !tree.contains(must) {
            return fail(format!("the stock packages brought no {must}"));
        }
    }
    if !tree.contains("usr/sbin/ip") && !tree.contains("usr/bin/ip") {
        return fail("the stock packages brought no ip");
    }
    for name in SHORT_NAMES {
        if tree.contains(&format!("{lib}/{name}")) {
            tree.link(&format!("usr/sbin/{name}"), &format!("/{lib}/{name}"));
        }
    }
    for (name, target) in [
        ("mkfs.ext4", "mke2fs"),
        ("mkfs.ext2", "mke2fs"),
        ("fsck.ext4", "e2fsck"),
    ] {
        tree.link(&format!("usr/sbin/{name}"), target);
    }
    copy_folder(tree, root, "etc/xen")?;
    tree.dir("etc/xen/auto");
    if let Some(config) = locate(root, "etc/mke2fs.conf") {
        tree.file("etc/mke2fs.conf", 0o644, paths::read(&config)?);
    }
    for terminal in ["l/linux", "x/xterm", "x/xterm-256color", "v/vt100"] {
        if let Some(found) = locate(root, &format!("lib/terminfo/{terminal}")) {
            tree.file(
                &format!("usr/lib/terminfo/{terminal}"),
                0o644,
                paths::read(&found)?,
            );
        }
    }
    libraries(tree, root, needed)
}

/// A path of the packages, whether they hold it below / or below /usr.
pub fn locate(root: &Path, path: &str) -> Option<PathBuf> {
    let bare = path.trim_start_matches("usr/");
    [root.join(bare), root.join("usr").join(bare)]
        .into_iter()
        .find(|p| p.is_file())
}

/// The names in a folder, sorted.
pub fn names_in(dir: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .context(|| format!("reading {}", dir.display()))?
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

fn in_usr(path: &str) -> String {
    format!("usr/{}", path.trim_start_matches("usr/"))
}

/// Puts a program into `tree`, and the names of the libraries that it needs into `needed`.
pub fn program(
    tree: &mut Tree,
    root: &Path,
    path: &str,
    needed: &mut BTreeSet<String>,
) -> Result<()> {
    let Some(found) = locate(root, path) else {
        return Ok(()); // a link into something that was left out
    };
    let bytes = paths::read(&found)?;
    if let Some(needs) = elf::needs(&bytes) {
        needed.extend(needs.libraries);
        if let Some(loader) = needs
            .interpreter
            .as_deref()
            .and_then(|i| Path::new(i).file_name())
        {
            needed.insert(loader.to_string_lossy().into_owned());
        }
    }
    tree.file(&in_usr(path), 0o755, bytes);
    Ok(())
}

/// Puts libraries into `tree`, and those that they need.
pub fn libraries(tree: &mut Tree, root: &Path, mut todo: BTreeSet<String>) -> Result<()> {
    const DIR: &str = "usr/lib/x86_64-linux-gnu";
    let mut done = BTreeSet::new();
    while let Some(name) = todo.pop_first() {
        if !done.insert(name.clone()) {
            continue;
        }
        let private = format!("{DIR}/systemd");
        let found = [DIR, "usr/lib64", "usr/lib", &private]
            .iter()
            .find_map(|dir| locate(root, &format!("{dir}/{name}")))
            .ok_or_else(|| Error(format!("no package brought the library {name}")))?;
        let bytes = paths::read(&found)?;
        if let Some(needs) = elf::needs(&bytes) {
            todo.extend(needs.libraries);
        }
        tree.file(&format!("{DIR}/{name}"), 0o755, bytes);
        if name.starts_with("ld-linux") {
            tree.link(&format!("usr/lib64/{name}"), &format!("/{DIR}/{name}"));
        }
    }
    Ok(())
}

/// Puts a folder with all below it into `tree`.
pub fn copy_folder(tree: &mut Tree, root: &Path, path: &str) -> Result<()> {
    let dir = root.join(path);
    for name in names_in(&dir)? {
        let (from, to) = (dir.join(&name), format!("{path}/{name}"));
        let kind = from
            .symlink_metadata()
            .context(|| format!("reading {}", from.display()))?;
        if kind.is_symlink() {
            let target =
                std::fs::read_link(&from).context(|| format!("reading {}", from.display()))?;
            tree.link(&to, &target.to_string_lossy());
        } else if kind.is_dir() {
            copy_folder(tree, root, &to)?;
        } else {
            use std::os::unix::fs::PermissionsExt;
            tree.file(&to, kind.permissions().mode() & 0o777, paths::read(&from)?);
        }
    }
    Ok(())
}
