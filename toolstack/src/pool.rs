//! Shells: guests that are built and declared but have no name, devices and command line of their own yet, so
//! that a creation finds most of its work done. Each is one file; a creation takes a shell by renaming its
//! file into the mark of a [creation underway](crate::underway), so that at any moment exactly one of them
//! says what is to become of the domain, whoever is killed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xen_hal::{DomainControl, Placement};
use xen_sys::{DomId, Mfn};

use crate::claims::{Claims, sum};
use crate::config::DomainConfig;
use crate::create::create_shell;
use crate::error::{Error, Kind, Result};
use crate::prepare::{self, Prepared};
use crate::store::StoreControl;
use crate::underway::Underway;
use crate::{destroy, paths, uuid};

/// Most shells of a host.
pub const MAX_SHELLS: usize = 256;
/// Shells are made only while at least this part of the memory that Xen has free stays free: one in so many.
const MEMORY_SHARE: u64 = 2;
/// What the names of guests that are shells begin with.
pub const NAME_PREFIX: &str = "shell-";

/// What shells there shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// What they are for: a guest that is to be like this but for its name, command line, devices and `on_*`.
    pub config: DomainConfig,
    /// How many.
    pub count: usize,
}

/// A shell as its file tells.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// What it fits, and its guest's UUID.
    file: PathBuf,
    fit: String,
    uuid: [u8; 16],
}

/// A shell that was taken.
#[derive(Debug)]
pub struct Shell {
    /// Its mark: it goes with this process, or becomes a guest.
    pub(crate) mark: Underway,
    /// Its domain.
    pub dom: DomId,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// The page of its start_info.
    pub start_info: Mfn,
    /// The command line that stands there.
    pub cmdline: String,
}

/// What the file of a shell says.
#[derive(Serialize, Deserialize)]
struct Record {
    dom: u16,
    start_info: u64,
    cmdline: String,
}

fn folder() -> PathBuf {
    paths::at(paths::POOL)
}

/// What a shell must have been built of and as, to fit this configuration: a short text.
fn fit(config: &DomainConfig) -> io::Result<String> {
    // Whatever is not named here must agree.
    let mut like = serde_json::to_value(config).map_err(io::Error::other)?;
    if let Some(keys) = like.as_object_mut() {
        for key in ["name", "uuid", "cmdline", "disks", "nics", "events"] {
            keys.remove(key);
        }
    }
    let mut text = like.to_string();
    for path in [Some(&config.kernel), config.ramdisk.as_ref()]
        .into_iter()
        .flatten()
    {
        let meta = fs::metadata(path)?;
        let (size, seconds, ns) = (meta.len(), meta.mtime(), meta.mtime_nsec());
        text += &format!(" {}:{} {size} {seconds}.{ns}", meta.dev(), meta.ino());
    }
    Ok(format!("{:016x}", sum(&text)))
}

/// Takes a shell that fits the configuration, if there is one.
///
/// # Errors
/// A shell's file cannot be taken, or Xen cannot be asked.
pub fn take(control: &impl DomainControl, config: &DomainConfig) -> Result<Option<Shell>> {
    // A guest whose UUID is given is another one.
    if config.uuid.is_some() {
        return Ok(None);
    }
    let entries = shells();
    if entries.is_empty() {
        return Ok(None);
    }
    let mut config = config.clone();
    prepare::whole_paths(&mut config)?;
    // That there is no such kernel is told by whoever would load it.
    let Ok(fit) = fit(&config) else {
        return Ok(None);
    };
    for entry in entries.into_iter().filter(|entry| entry.fit == fit) {
        if let Some(shell) = claim(control, &entry)? {
            return Ok(Some(shell));
        }
    }
    Ok(None)
}

/// Takes this shell; `None` if another process was quicker, or it is none any more.
fn claim(control: &impl DomainControl, entry: &Entry) -> Result<Option<Shell>> {
    let failed = |e: &io::Error| Error::system("take the shell", entry.file.display(), e);
    let Some(mark) = Underway::adopt(&entry.uuid, &entry.file).map_err(|e| failed(&e))? else {
        return Ok(None);
    };
    let record: Option<Record> = mark
        .text()
        .and_then(|text| serde_json::from_str(&text).ok());
    let Some(record) = record else {
        // A file that makes no sense; its guest, if there is one, goes by the mark.
        mark.leave();
        return Ok(None);
    };
    let dom = DomId(record.dom);
    let info = match control.info(dom) {
        Ok(info) => info,
        Err(error) => {
            mark.leave();
            return Err(Error::hal("ask Xen about domain", dom)(error));
        }
    };
    if !info.is_some_and(|info| info.uuid == entry.uuid && info.flags.paused && !info.flags.dying) {
        return Ok(None);
    }
    Ok(Some(Shell {
        mark,
        dom,
        uuid: entry.uuid,
        start_info: Mfn(record.start_info),
        cmdline: record.cmdline,
    }))
}

/// All shells there are.
fn shells() -> Vec<Entry> {
    let entries = fs::read_dir(folder()).into_iter().flatten().flatten();
    let mut found: Vec<Entry> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let (fit, id) = name.to_str()?.split_once('.')?;
            Some(Entry {
                file: entry.path(),
                fit: fit.to_string(),
                uuid: uuid::parse(id)?,
            })
        })
        .collect();
    found.sort_by(|a, b| a.file.cmp(&b.file));
    found
}

/// The UUIDs of the guests that are shells.
pub fn uuids() -> Vec<[u8; 16]> {
    shells().into_iter().map(|entry| entry.uuid).collect()
}

/// What is wished for, by the name of the configuration.
pub fn wishes() -> BTreeMap<String, Wish> {
    let entries = fs::read_dir(folder()).into_iter().flatten().flatten();
    let wish = |path: &Path| -> Option<Wish> {
        (path.extension()? == "wish").then_some(())?;
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    };
    entries
        .filter_map(|entry| wish(&entry.path()))
        .map(|wish| (wish.config.name.clone(), wish))
        .collect()
}

/// How many shells there are for each wish, and how many for none.
pub fn counts() -> (Vec<(Wish, usize)>, usize) {
    let shells = shells();
    let mut fitting = 0;
    let counts = wishes().into_values().map(|wish| {
        let fit = fit(&wish.config).unwrap_or_default();
        let count = shells.iter().filter(|shell| shell.fit == fit).count();
        fitting += count;
        (wish, count)
    });
    let counts: Vec<_> = counts.collect();
    (counts, shells.len().saturating_sub(fitting))
}

/// Wishes for so many shells for guests like this; 0 ends the wish.
///
/// # Errors
/// It is more than there may be, or the file cannot be written.
pub fn wish(mut config: DomainConfig, count: usize) -> Result<()> {
    let others: usize = wishes()
        .values()
        .filter(|wish| wish.config.name != config.name)
        .map(|wish| wish.count)
        .sum();
    if others + count > MAX_SHELLS {
        let cause = format!("there may be {MAX_SHELLS} in all, and {others} are for others");
        return Err(Error::new("keep shells for", &config.name, cause).kind(Kind::Invalid));
    }
    prepare::whole_paths(&mut config)?;
    config.uuid = None;
    config.disks.clear();
    config.nics.clear();
    let path = folder().join(format!("{:016x}.wish", sum(&config.name)));
    let failed = |e: &io::Error| Error::system("write", path.display(), e);
    if count == 0 {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(&error)),
            _ => Ok(()),
        };
    }
    let text = serde_json::to_string(&Wish { config, count });
    let text = text.map_err(|e| failed(&io::Error::other(e)))?;
    let new = path.with_extension("new");
    fs::create_dir_all(folder())
        .and_then(|()| fs::write(&new, text))
        .and_then(|()| fs::rename(&new, &path))
        .map_err(|e| failed(&e))
}

/// Makes and removes shells until all is as wished, or there is no memory for more. Does nothing while
/// another process does this.
///
/// # Errors
/// As [`step`].
pub fn fill<C: Placement, S: StoreControl>(control: &C, store: &S) -> Result<()> {
    if fs::metadata(folder()).is_err() {
        return Ok(());
    }
    let alone = Claims::begin()?;
    if alone.add("pool", true, "the pool").is_err() {
        return Ok(());
    }
    while step(control, store)? {}
    Ok(())
}

/// Makes one shell that is missing, or removes one that is too many; `false` if all is as wished, or there is
/// no memory for more.
///
/// # Errors
/// A shell could not be made or removed.
pub fn step<C: Placement, S: StoreControl>(control: &C, store: &S) -> Result<bool> {
    let shells = shells();
    let mut fits = BTreeMap::new();
    let wishes = wishes();
    for wish in wishes.values() {
        if let Ok(fit) = fit(&wish.config) {
            fits.insert(fit, wish);
        }
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for shell in &shells {
        let count = counts.entry(&shell.fit).or_default();
        *count += 1;
        if *count > fits.get(&shell.fit).map_or(0, |wish| wish.count) {
            remove(control, store, shell)?;
            return Ok(true);
        }
    }
    for (fit, wish) in &fits {
        let missing = counts.get(fit.as_str()).copied().unwrap_or(0) < wish.count;
        if missing && shells.len() < MAX_SHELLS && has_room(control, wish)? {
            make(control, store, fit, wish)?;
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_room(control: &impl DomainControl, wish: &Wish) -> Result<bool> {
    let host = control
        .host()
        .map_err(Error::hal("ask Xen about", "its memory"))?;
    let free = host.free_pages.saturating_sub(host.outstanding_pages);
    Ok(wish.config.memory_kib / 4 <= free / MEMORY_SHARE)
}

fn make<C: Placement, S: StoreControl>(
    control: &C,
    store: &S,
    fit: &str,
    wish: &Wish,
) -> Result<()> {
    let mut config = wish.config.clone();
    let id = uuid::make().map_err(|e| Error::system("make a UUID", "", &e))?;
    let text = uuid::format(&id);
    config.uuid = Some(id);
    config.name = format!("{NAME_PREFIX}{}", &text[..8]);
    let guest = Prepared::new(config)?;
    let guard = create_shell(control, store, &guest)?;
    let dom = guard.dom();
    let file = folder().join(format!("{fit}.{text}"));
    let failed = |e: &io::Error| Error::system("keep the shell", file.display(), e);
    let record = |start_info: Mfn| {
        serde_json::to_string(&Record {
            dom: dom.0,
            start_info: start_info.0,
            cmdline: guest.config.cmdline.clone(),
        })
    };
    // Until its mark has become a shell's file, all of it goes if this process does.
    let text = guard.start_info().map(record).transpose();
    let text = text
        .map_err(|e| failed(&io::Error::other(e)))?
        .unwrap_or_default();
    fs::create_dir_all(folder()).map_err(|e| failed(&e))?;
    guard.become_shell(&file, &text).map_err(|e| failed(&e))
}

fn remove<C: DomainControl, S: StoreControl>(control: &C, store: &S, entry: &Entry) -> Result<()> {
    match claim(control, entry)? {
        None => Ok(()),
        Some(shell) => {
            let info = control
                .info(shell.dom)
                .map_err(Error::hal("ask Xen about domain", shell.dom))?;
            let removed = info.map_or(Ok(()), |info| destroy::remove(control, store, &info));
            if removed.is_err() {
                shell.mark.leave();
            }
            removed
        }
    }
}
