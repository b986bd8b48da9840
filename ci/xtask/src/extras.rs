//! An archive of what single scenarios unpack in dom0: Debian's xendomains with its Python, GRUB as a PV guest,
//! systemd. It is no part of the image, so that every other lab stays as small as it is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::archive;
use crate::cpio::Tree;
use crate::error::{Context, Result, fail};
use crate::packages;
use crate::paths;
use crate::stock::{self, locate, names_in};

/// Programs, with the libraries they need.
const PROGRAMS: &[&str] = &[
    "usr/bin/python3.11",
    "lib/systemd/systemd",
    "lib/systemd/systemd-shutdown",
    "bin/systemctl",
    "usr/bin/systemd-analyze",
    "usr/bin/systemd-run",
];

/// Files as they are.
const FILES: &[&str] = &[
    "etc/default/xendomains",
    "usr/lib/grub-xen/grub-x86_64-xen.bin",
];

/// Scripts.
const SCRIPTS: &[&str] = &["etc/init.d/xendomains", "usr/sbin/xen"];

/// Folders with all below them.
const FOLDERS: &[&str] = &[
    "usr/lib/xen-common/bin",
    "usr/lib/python3.11",
    "lib/lsb",
    "lib/init",
];

/// Builds the archive, or finds it built.
pub fn obtain(lab: &Path) -> Result<PathBuf> {
    let set = packages::extras(lab)?;
    archive::obtain(lab, "extras", &set, include_str!("extras.rs"), build)
}

fn build(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut needed = BTreeSet::new();
    for path in PROGRAMS {
        stock::program(&mut tree, root, path, &mut needed)?;
        if !tree.contains(&format!("usr/{}", path.trim_start_matches("usr/"))) {
            return fail(format!("no package brought {path}"));
        }
    }
    tree.link("usr/bin/python3", "python3.11");
    stock::libraries(&mut tree, root, needed)?;
    for (paths, mode) in [(FILES, 0o644), (SCRIPTS, 0o755)] {
        for path in paths {
            tree.file(path, mode, paths::read(&root.join(path))?);
        }
    }
    for folder in FOLDERS {
        let mut below = Tree::new();
        stock::copy_folder(&mut below, root, folder)?;
        // dom0 has /lib as a link into /usr.
        tree.graft(below, |path| match path.strip_prefix("lib/") {
            Some(rest) => format!("usr/lib/{rest}"),
            None => path.to_string(),
        });
    }
    // Of systemd's units only those that others hang on.
    let units = root.join("lib/systemd/system");
    for name in names_in(&units)? {
        let wanted = [".target", ".slice"].iter().any(|end| name.ends_with(end));
        if let Some(found) = locate(root, &format!("lib/systemd/system/{name}")).filter(|_| wanted)
        {
            let to = format!("usr/lib/systemd/system/{name}");
            tree.file(&to, 0o644, paths::read(&found)?);
        }
    }
    Ok(tree)
}

/// Our own unit files.
pub fn units(workspace: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![workspace.join("xenstore/xenstored/xenstored.service")];
    let dir = workspace.join("toolstack/systemd");
    let entries = std::fs::read_dir(&dir).context(|| format!("reading {}", dir.display()))?;
    found.extend(entries.flatten().map(|entry| entry.path()));
    Ok(found)
}
