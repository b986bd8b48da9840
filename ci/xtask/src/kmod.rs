//! Picks kernel modules and what they depend on from Debian's kernel package, and writes the
//! `modules.dep` and `modules.alias` that busybox's modprobe reads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::cpio::Tree;
use crate::elf;
use crate::error::{Context, Error, Result, fail};
use crate::paths;

/// The modules of one kernel.
pub struct Modules {
    /// "6.1.0-56-amd64"
    pub release: String,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Modules {
    /// The modules below `root`/lib/modules.
    pub fn below(root: &Path) -> Result<Modules> {
        let dir = [root.join("lib/modules"), root.join("usr/lib/modules")]
            .into_iter()
            .find(|d| d.is_dir())
            .ok_or_else(|| Error(format!("no lib/modules below {}", root.display())))?;
        let release = std::fs::read_dir(&dir)
            .context(|| format!("reading {}", dir.display()))?
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .next()
            .ok_or_else(|| Error(format!("{} is empty", dir.display())))?;
        let dir = dir.join(&release);
        let mut files = BTreeMap::new();
        walk(&dir, &mut files)?;
        let builtin = std::fs::read_to_string(dir.join("modules.builtin")).unwrap_or_default();
        let builtin = builtin.lines().map(|l| module_name(Path::new(l))).collect();
        Ok(Modules {
            release,
            files,
            builtin,
        })
    }

    /// Puts the modules `wanted`, and those they need, into `tree`.
    pub fn install(&self, wanted: &[&str], tree: &mut Tree) -> Result<()> {
        let mut todo: Vec<String> = wanted.iter().map(|w| normal(w)).collect();
        let mut done: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut aliases = String::new();
        let base = format!("usr/lib/modules/{}", self.release);
        while let Some(name) = todo.pop() {
            if done.contains_key(&name) || self.builtin.contains(&name) {
                continue;
            }
            let Some(path) = self.files.get(&name) else {
                return fail(format!("kernel {} has no module {name}", self.release));
            };
            let bytes = paths::read(path)?;
            let info = elf::modinfo(&bytes)
                .ok_or_else(|| Error(format!("{} is no kernel module", path.display())))?;
            let mut depends = Vec::new();
            for (key, value) in &info {
                match key.as_str() {
                    "depends" => {
                        depends.extend(value.split(',').filter(|d| !d.is_empty()).map(normal));
                    }
                    "alias" => aliases += &format!("alias {value} {name}\n"),
                    _ => {}
                }
            }
            todo.extend(depends.iter().cloned());
            done.insert(name.clone(), depends);
            tree.file(&format!("{base}/{name}.ko"), 0o644, bytes);
        }
        let mut dep = String::new();
        for name in done.keys() {
            let mut all = Vec::new();
            closure(name, &done, &mut all);
            // modprobe loads what stands last first.
            let all: Vec<String> = all.iter().rev().map(|d| format!("{d}.ko")).collect();
            dep += &format!("{name}.ko: {}\n", all.join(" "));
        }
        tree.file(&format!("{base}/modules.dep"), 0o644, dep);
        tree.file(&format!("{base}/modules.alias"), 0o644, aliases);
        tree.file(&format!("{base}/modules.symbols"), 0o644, Vec::new());
        Ok(())
    }
}

/// What `name` needs, each before what needs it.
fn closure(name: &str, depends: &BTreeMap<String, Vec<String>>, out: &mut Vec<String>) {
    for d in depends.get(name).into_iter().flatten() {
        if depends.contains_key(d) && !out.contains(d) {
            closure(d, depends, out);
            out.push(d.clone());
        }
    }
}

fn walk(dir: &Path, out: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).context(|| format!("reading {}", dir.display()))? {
        let entry = entry.context(|| format!("reading {}", dir.display()))?;
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&path, out)?;
        } else if path.extension().is_some_and(|e| e == "ko") {
            out.insert(module_name(&path), path);
        }
    }
    Ok(())
}

fn module_name(path: &Path) -> String {
    normal(&path.file_stem().unwrap_or_default().to_string_lossy())
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_of_needs_are_listed_once() {
        let d = |s: &[&str]| s.iter().map(|x| x.to_string()).collect::<Vec<_>>();
        let depends = BTreeMap::from([
            ("ext4".to_string(), d(&["crc", "jbd2", "mbcache"])),
            ("jbd2".to_string(), d(&["crc"])),
            ("mbcache".to_string(), d(&["jbd2"])),
            ("crc".to_string(), d(&[])),
        ]);
        let mut out = Vec::new();
        closure("ext4", &depends, &mut out);
        assert_eq!(out, ["crc", "jbd2", "mbcache"]);
    }
}
