//! An archive with QEMU where libxl looks for it: the back end qdisk. Only the bench of disks has it in dom0.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::archive;
use crate::cpio::Tree;
use crate::error::{Result, fail};
use crate::packages::{self, XenVersion};
use crate::paths;
use crate::stock;

/// What Debian's libxl starts.
const PROGRAM: &str = "usr/libexec/xen-qemu-system-i386";

/// It does not start without, though nobody looks at its screen.
const KEYMAP: &str = "usr/share/qemu/keymaps/en-us";

/// Builds the archive, or finds it built.
pub fn obtain(lab: &Path, version: XenVersion) -> Result<PathBuf> {
    let set = packages::qemu(lab, version)?;
    let name = format!("qdisk-{}", version.name());
    archive::obtain(lab, &name, &set, include_str!("qdisk.rs"), build)
}

fn build(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut needed = BTreeSet::new();
    stock::program(&mut tree, root, PROGRAM, &mut needed)?;
    if !tree.contains(PROGRAM) {
        return fail(format!("no package brought {PROGRAM}"));
    }
    tree.file(KEYMAP, 0o644, paths::read(&root.join(KEYMAP))?);
    stock::libraries(&mut tree, root, needed)?;
    Ok(tree)
}
