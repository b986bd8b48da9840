//! The supervisor: one process for all guests of a host. It removes guests that have ended, or creates
//! them again, as their configuration says, and clears away what is left of guests that are gone.

mod again;
mod autostart;
mod crashed;
mod ended;
mod indexer;
mod keep;
mod marks;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use xen_backend::daemon::{self, Failure, Ready, Signals};
use xen_hal::{DomainControl, DomainInfo, Inspect, Placement, StoreExt};
use xen_sys::DomId;

use crate::error::Result;
use crate::lock::{About, Lock};
use crate::store::StoreControl;
use crate::underway::{self, Underway};
use crate::userdata;
use crate::{attach, destroy, paths, pool, uuid};

pub use again::Fate;
pub use ended::{Supervisor, is_waiting};
use indexer::Indexer;
pub use marks::{Marks, action};

/// Where a toolstack sees that the supervisor runs.
pub const NODE: &str = "/tool/xlrs/supervisor";
/// How long the kernel may take to unlock the file of a process that has ended.
const UNLOCK: Duration = Duration::from_millis(100);
/// How long a shell may be missing: whoever has taken it shall not be held up by the making of the next.
const POOL_DELAY: Duration = Duration::from_millis(500);
/// How long news about names and disks may wait, so that a creation is not held up by the index.
const INDEX_DELAY: Duration = Duration::from_millis(50);
/// How long a guest that has ended stays at least: the console daemon, which hears of it at the same time, shall have it
/// still before it, if it lived too short to be taken notice of.
const END_DELAY: Duration = Duration::from_millis(5);
/// How long until the index is brought up to date after the store has refused something.
const INDEX_AGAIN: Duration = Duration::from_secs(1);

/// Looks after guests until a signal asks for an end.
///
/// # Errors
/// The store or the hypervisor cannot be reached any more.
pub fn serve<C: Placement + Inspect, S: StoreControl + AsFd>(
    control: &C,
    store: &S,
    signals: &Signals,
    mut ready: Ready,
) -> Result<(), Failure> {
    let clock = SystemTime::now;
    let mut supervisor = Supervisor::new(control, store, &clock);
    let mut indexer = Indexer::new(store)?;
    store.watch("@releaseDomain", "released")?;
    store.watch("@introduceDomain", "introduced")?;
    let killed = watch_creations()?;
    let list = control.list()?;
    indexer.update(&list)?;
    supervisor.look_around(&list);
    let mut index_due = None;
    let mut at_work = clear_unfinished(control, store);
    store.write_display(None, NODE, &std::process::id())?;
    ready.announce()?;
    autostart::run(control, store);
    let mut end_due: Option<Instant> = None;
    let mut pool_due = Some(Instant::now());
    loop {
        while let Some(event) = store.next_event()? {
            if event.token == "released" {
                end_due = end_due.or_else(|| Some(Instant::now() + END_DELAY));
            }
            indexer.take(&event);
            index_due = index_due.or_else(|| Some(Instant::now() + INDEX_DELAY));
        }
        let is_due = |due: &mut Option<Instant>| {
            let now = due.is_some_and(|due| due <= Instant::now());
            *due = due.filter(|_| !now);
            now
        };
        let (ended, index) = (is_due(&mut end_due), is_due(&mut index_due));
        if ended {
            // There may be memory for more shells.
            pool_due = pool_due.or_else(|| Some(Instant::now() + POOL_DELAY));
        }
        let next_guest = supervisor.next_due();
        if ended || index || next_guest == Some(Duration::ZERO) {
            let list = control.list()?;
            if index && !keep_index(store, &mut indexer, &list)? {
                index_due = Some(Instant::now() + INDEX_AGAIN);
            }
            supervisor.look_around(&list);
            // What came meanwhile is looked at before waiting.
            continue;
        }
        let mut fds = [
            PollFd::new(store, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::new(&killed, PollFlags::IN),
        ];
        if pool_due.is_some_and(|due| due <= Instant::now()) {
            pool_due = None;
            if let Err(error) = pool::fill(control, store) {
                daemon::log(&format!("the pool of shells: {error}"));
            }
            continue;
        }
        let until =
            |due: Option<Instant>| due.map(|due| due.saturating_duration_since(Instant::now()));
        let waits = [
            // The kernel tells that a file is closed just before it unlocks it.
            at_work.then_some(UNLOCK),
            until(index_due),
            until(end_due),
            until(pool_due),
            next_guest,
        ];
        let limit = waits.into_iter().flatten().min().map(|wait| Timespec {
            tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().max(1).into(),
        });
        let ready = match poll(&mut fds, limit.as_ref()) {
            Ok(ready) => ready,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(format!("poll: {error}").into()),
        };
        if !fds[1].revents().is_empty() {
            break;
        }
        if ready == 0 || !fds[2].revents().is_empty() {
            // What is told matters not, only that something is.
            if rustix::io::read(&killed, &mut [0; 4096]).is_ok() {
                pool_due = Some(Instant::now() + POOL_DELAY);
            }
            at_work = clear_unfinished(control, store);
        }
    }
    store.rm_if_present(None, NODE)?;
    Ok(())
}

/// Brings the index up to date; says whether that is done. Meanwhile nobody relies on it.
fn keep_index<S: StoreControl>(
    store: &S,
    indexer: &mut Indexer<'_, S>,
    list: &[DomainInfo],
) -> Result<bool, Failure> {
    let updated = indexer.update(list);
    match &updated {
        Ok(()) => store.write_display(None, NODE, &std::process::id())?,
        Err(error) => {
            daemon::log(&format!("the index: {error}; it is tried again"));
            store.rm_if_present(None, NODE)?;
        }
    }
    Ok(updated.is_ok())
}

/// Tells when a process ends whose creation has not.
fn watch_creations() -> Result<OwnedFd, Failure> {
    let folder = paths::at(paths::RUN);
    let failed = |error: std::io::Error| format!("watch {}: {error}", folder.display());
    fs::create_dir_all(&folder).map_err(failed)?;
    let watch = || -> std::io::Result<OwnedFd> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags)?;
        // Creations that end well remove their files first, which are then of no interest.
        let what = inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::EXCL_UNLINK;
        inotify::add_watch(&fd, &folder, what)?;
        // Wishes come and go, shells are taken.
        let pool = paths::at(paths::POOL);
        fs::create_dir_all(&pool)?;
        let what = inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::MOVED_FROM
            | inotify::WatchFlags::DELETE;
        inotify::add_watch(&fd, &pool, what)?;
        Ok(fd)
    };
    watch().map_err(|error| failed(error).into())
}

/// Clears away what guests of ours have left that are not in the list of domains.
pub fn clear_gone<C: DomainControl, S: StoreControl>(control: &C, store: &S, list: &[DomainInfo]) {
    for (dom, id) in known_guests() {
        let there = list.iter().any(|info| info.dom == dom && info.uuid == id);
        if !there && let Err(error) = clear_away(control, store, dom, &id) {
            daemon::log(&format!("domain {dom} is gone: {error}"));
        }
    }
}

/// Removes guests whose creation was killed, and devices; says whether anybody is still at work on one.
pub fn clear_unfinished<C: DomainControl, S: StoreControl>(control: &C, store: &S) -> bool {
    let mut at_work = attach::clear_unfinished(control, store, daemon::log);
    for id in underway::all() {
        match Underway::take_over(&id) {
            Ok(Some(mark)) => remove_unfinished(control, store, &id, mark),
            Ok(None) => at_work = true,
            Err(error) => {
                let id = uuid::format(&id);
                daemon::log(&format!("the creation of {id}: {error}; it is left alone"));
            }
        }
    }
    at_work
}

fn remove_unfinished<C: DomainControl, S: StoreControl>(
    control: &C,
    store: &S,
    id: &[u8; 16],
    mark: Underway,
) {
    let list = match control.list() {
        Ok(list) => list,
        Err(error) => {
            daemon::log(&format!("list the domains: {error}"));
            return mark.leave();
        }
    };
    let half_made = list.iter().find(|i| i.uuid == *id && !i.flags.dying);
    let Some(info) = half_made else {
        // It may have been somebody else's, of which we know only what stands in the mark.
        if let Some(dom) = mark.noted()
            && let Err(error) = clear_away(control, store, dom, id)
        {
            daemon::log(&format!("domain {dom} is gone: {error}"));
            mark.leave();
        }
        return;
    };
    let ended = match destroy::remove(control, store, info) {
        Ok(()) => "it is removed".to_string(),
        Err(error) => error.to_string(),
    };
    daemon::log(&format!(
        "domain {}: its creation or removal was killed; {ended}",
        info.dom
    ));
    if destroy::is_there(control, info) {
        mark.leave();
    }
}

/// A guest of ours is gone; if nobody is at work on it, what is left of it is cleared away.
fn clear_away<C: DomainControl, S: StoreControl>(
    control: &C,
    store: &S,
    dom: DomId,
    id: &[u8; 16],
) -> Result<()> {
    let _lock = Lock::take(About::Removing)?;
    let info = control.info(dom);
    let info = info.map_err(crate::Error::hal("ask Xen about domain", dom))?;
    let there = info.is_some_and(|info| info.uuid == *id);
    if there {
        return Ok(());
    }
    let home = crate::nodes::home(dom);
    let vm = crate::store::text(store, None, &format!("{home}/vm"))?;
    // The number may belong to another guest by now.
    if vm.is_some_and(|vm| vm == crate::nodes::vm(id)) {
        // A script that fails is no reason to keep the nodes.
        let removed = destroy::remove_devices(store, dom);
        destroy::remove_nodes(store, dom, id)?;
        if let Err(error) = removed {
            daemon::log(&format!("domain {dom} is gone: {error}"));
        }
    } else {
        store.rm_if_present(None, &crate::nodes::vm(id))?;
    }
    userdata::remove(dom, id)?;
    daemon::log(&format!(
        "domain {dom} is gone; what it left is cleared away"
    ));
    Ok(())
}

/// All guests that have marks of ours.
fn known_guests() -> Vec<(DomId, [u8; 16])> {
    let entries = fs::read_dir(paths::at(paths::USERDATA))
        .into_iter()
        .flatten();
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let rest = name.to_str()?.strip_prefix("userdata-d.")?;
            let (dom, rest) = rest.split_once('.')?;
            let id = rest.strip_suffix(".xlrs")?;
            Some((DomId(dom.parse().ok()?), uuid::parse(id)?))
        })
        .collect()
}
