//! The host's qemu-img for dom0, where it judges images that guests have written: with its libraries and
//! their loader, as dom0 may have others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result, fail};
use crate::host;
use crate::paths::{self, Key, Lock};

/// What starts it in dom0.
const START: &str =
    "#!/bin/sh\nD=/lab/qemu-img\nexec $D/LOADER --library-path $D $D/qemu-img \"$@\"\n";

/// The files for /lab/qemu-img: name → where it is. `run` starts it.
pub fn obtain(lab: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let program = host::which("qemu-img").ok_or_else(|| Error("no qemu-img on the host".into()))?;
    let out = Command::new("ldd")
        .arg(&program)
        .output()
        .context(|| format!("running ldd {}", program.display()))?;
    let (libraries, loader) = parse(&String::from_utf8_lossy(&out.stdout));
    let Some(loader) = loader else {
        return fail(format!("ldd {}: no loader", program.display()));
    };
    let start = START.replace("LOADER", &file_name(&loader));
    let key = Key::default().add(paths::read(&program)?).add(&start).hex();
    // Of the host's files copies, which can be linked into each lab's folder.
    let dir = lab.join(format!("qemu-img-{key}"));
    let _lock = Lock::exclusive(&lab.join("qemu-img.lock"))?;
    let mut files = libraries;
    files.extend([program, loader]);
    if !dir.join("run").exists() {
        paths::make_dir(&dir)?;
        for from in &files {
            let to = dir.join(file_name(from));
            std::fs::copy(from, &to).context(|| format!("copying {}", from.display()))?;
        }
        paths::write_atomically(&dir.join("run"), start.as_bytes())?;
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.join("run"), mode).context(|| "making it run".into())?;
    }
    let names = files.iter().map(|file| file_name(file));
    let names = names.chain(["run".to_string()]);
    Ok(names.map(|name| (name.clone(), dir.join(name))).collect())
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The libraries and the loader that ldd names.
fn parse(text: &str) -> (Vec<PathBuf>, Option<PathBuf>) {
    let (mut libraries, mut loader) = (Vec::new(), None);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "=>", path, ..] if path.starts_with('/') => libraries.push(path.into()),
            [path, ..] if path.starts_with('/') => loader = Some(path.into()),
            _ => {}
        }
    }
    (libraries, loader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_names_libraries_and_the_loader() {
        let (libraries, loader) = parse(
            "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)\n\
             \t/lib64/ld-linux-x86-64.so.2 (0x00007f1)\n",
        );
        assert_eq!(
            libraries,
            [PathBuf::from("/lib/x86_64-linux-gnu/libz.so.1")]
        );
        assert_eq!(loader, Some("/lib64/ld-linux-x86-64.so.2".into()));
    }
}
