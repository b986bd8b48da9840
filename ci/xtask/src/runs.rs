//! The folders of runs: one per lab, locked while it lives, kept or removed at its end.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::error::Result;
use crate::paths::{Lock, make_dir};
use crate::ui;

/// The folder of one run. Dropped: removed, unless it is to be kept.
pub struct RunFolder {
    path: PathBuf,
    fate: std::sync::Mutex<Fate>,
    _lock: Lock,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Remove,
    Keep,
    KeepAndSay,
}

impl RunFolder {
    /// A new one, locked while it lives.
    pub fn new(lab: &Path, keep: bool) -> Result<RunFolder> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let runs = lab.join("runs");
        make_dir(&runs)?;
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{n}", std::process::id());
        let lock = Lock::exclusive(&runs.join(format!("{name}.lock")))?;
        let path = runs.join(&name);
        let _ = std::fs::remove_dir_all(&path);
        make_dir(&path)?;
        let fate = if keep { Fate::KeepAndSay } else { Fate::Remove };
        Ok(RunFolder {
            path,
            fate: std::sync::Mutex::new(fate),
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps it, and says at the end where it is.
    pub fn keep_and_say(&self) {
        self.set(Fate::KeepAndSay);
    }

    fn set(&self, fate: Fate) {
        *self.fate.lock().unwrap_or_else(|e| e.into_inner()) = fate;
    }

    /// Keeps it.
    pub fn keep(&self) {
        self.set(Fate::Keep);
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let fate = *self.fate.get_mut().unwrap_or_else(|e| e.into_inner());
        if fate == Fate::Remove {
            let _ = std::fs::remove_dir_all(&self.path);
            return;
        }
        if fate == Fate::KeepAndSay {
            ui::status(format!("kept: {}", self.path.display()));
        }
        let _ = std::fs::write(self.path.join(KEPT), b"");
        for bulk in ["state", "disk.img", "bench-initrd"] {
            let _ = std::fs::remove_file(self.path.join(bulk));
        }
    }
}

/// How long the folder of a run that is over is kept: `--keep`, or a failure's logs.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

/// Marks the folder of a run that is over but was to be kept.
const KEPT: &str = "kept";

/// Removes what is left of kept runs that are old, and of killed ones.
pub fn sweep(lab: &Path) {
    let runs = lab.join("runs");
    for entry in std::fs::read_dir(&runs).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "lock") {
            continue;
        }
        let Ok(Some(_lock)) = Lock::try_exclusive(&path) else {
            continue;
        };
        let dir = path.with_extension("");
        let kept = std::fs::metadata(dir.join(KEPT))
            .and_then(|m| m.modified())
            .ok();
        let age = kept.and_then(|m| m.elapsed().ok());
        if age.is_none_or(|a| a > KEPT_FOR) {
            let _ = std::fs::remove_dir_all(&dir);
            let _ = std::fs::remove_file(&path);
        }
    }
}
