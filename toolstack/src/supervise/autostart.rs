//! Creates the guests whose configurations lie in a folder, once after each boot.

use std::fs;
use std::path::{Path, PathBuf};

use xen_backend::daemon;
use xen_hal::Placement;

use crate::config::{self, Source};
use crate::error::{Error, Kind, Result};
use crate::index::{self, Answer};
use crate::prepare::Prepared;
use crate::store::{StoreControl, find_among_all};
use crate::{create, paths};

/// Most guests that are started so.
const MAX_GUESTS: usize = 4096;
/// Longest configuration that is read.
const MAX_FILE: u64 = 1 << 20;

/// Starts the guests in order of their files' names; those that run already are left as they are. What does
/// not work is told in the log, and holds up no other.
pub fn run<C: Placement, S: StoreControl>(control: &C, store: &S) {
    let done = paths::at(paths::AUTOSTARTED);
    if done.exists() {
        return;
    }
    for file in files(&paths::at(paths::AUTOSTART)) {
        match start(control, store, &file) {
            Ok(Some(said)) => daemon::log(&format!("{}: {said}", file.display())),
            Ok(None) => {}
            Err(error) => daemon::log(&format!("{}: {error}", file.display())),
        }
    }
    // Only now: if this process is killed meanwhile, the next goes on.
    if let Err(error) = fs::write(&done, "") {
        daemon::log(&format!("write {}: {error}", done.display()));
    }
}

/// The configurations in a folder, without editors' copies and hidden files.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let plain = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| !name.starts_with('.') && !name.ends_with('~')) && path.is_file()
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(plain).collect();
    files.sort();
    files.truncate(MAX_GUESTS);
    files
}

/// Starts one; `None` if it runs already.
fn start<C: Placement, S: StoreControl>(
    control: &C,
    store: &S,
    file: &Path,
) -> Result<Option<String>> {
    let step = "read the configuration";
    let failed = |e: &std::io::Error| Error::system(step, file.display(), e);
    let length = fs::metadata(file).map_err(|e| failed(&e))?.len();
    if length > MAX_FILE {
        return Err(Error::new(step, file.display(), "it is longer than 1 MiB"));
    }
    let source = Source {
        name: file.display().to_string(),
        text: fs::read_to_string(file).map_err(|e| failed(&e))?,
    };
    let (config, _) = config::load(&[source]).map_err(|errors| {
        let text = errors.to_string();
        Error::new(step, file.display(), text.trim_end()).kind(Kind::Config)
    })?;
    let name = config.name.clone();
    let looked = || Error::store("look for the name", &name);
    let running = match index::by_name(store, &name).map_err(looked())? {
        Answer::Known(dom) => dom,
        Answer::Unknown => find_among_all(store, &name).map_err(looked())?,
    };
    if running.is_some() {
        return Ok(None);
    }
    let guest = Prepared::new(config)?;
    let guard = create::create_guarded(control, store, &guest)?;
    let dom = guard.dom();
    control
        .unpause(dom)
        .map_err(Error::hal("start domain", dom))?;
    guard.keep();
    Ok(Some(format!("{name} is started as domain {dom}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_files_are_configurations_in_order() {
        let folder = std::env::temp_dir().join(format!("xlrs-auto-{}", std::process::id()));
        fs::create_dir_all(folder.join("sub")).unwrap();
        for name in ["20-b.cfg", "10-a.cfg", ".hidden", "10-a.cfg~"] {
            fs::write(folder.join(name), "").unwrap();
        }
        let found = files(&folder);
        fs::remove_dir_all(&folder).unwrap();
        let names: Vec<_> = found.iter().map(|f| f.file_name().unwrap()).collect();
        assert_eq!(names, ["10-a.cfg", "20-b.cfg"]);
        assert!(files(Path::new("/no/such/folder")).is_empty());
    }
}
