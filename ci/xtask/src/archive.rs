//! Archives that are unpacked over dom0's image where they are wanted, each built once for the packages it is made of.

use std::path::{Path, PathBuf};

use crate::cpio::Tree;
use crate::error::Result;
use crate::packages::PackageSet;
use crate::paths::{self, Key, Lock};
use crate::stock::names_in;

/// Builds the archive `name` from `set`, or finds it built; `source` is the text of the code that builds it.
pub fn obtain(
    lab: &Path,
    name: &str,
    set: &PackageSet,
    source: &str,
    build: impl FnOnce(&Path) -> Result<Tree>,
) -> Result<PathBuf> {
    let mut key = Key::default();
    for package in &set.packages {
        key.add(&package.sha256);
    }
    key.add(source);
    let dir = lab.join(name);
    paths::make_dir(&dir)?;
    let file = dir.join(format!("{}.cpio", key.hex()));
    let _lock = Lock::exclusive(&dir.join("lock"))?;
    if !file.exists() {
        for old in names_in(&dir)?.iter().filter(|n| n.ends_with(".cpio")) {
            let _ = std::fs::remove_file(dir.join(old));
        }
        paths::write_atomically(&file, &build(&set.root)?.to_cpio())?;
    }
    Ok(file)
}
