//! The supervisor: one process for all guests of a host. It removes guests that have ended, or creates
//! them again, as their configuration says, and clears away what is left of guests that are gone.

mod autostart;
mod indexer;
mod keep;
mod marks;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use xen_backend::daemon::{self, Failure, Ready, Signals};
use xen_hal::{DomainControl, DomainInfo, Inspect, Placement, StoreExt};
use xen_sys::DomId;

use crate::config::Action;
use crate::error::Result;
use crate::lock::{About, Lock};
use crate::prepare::Prepared;
use crate::store::StoreControl;
use crate::underway::{self, Underway};
use crate::userdata::{self, Userdata};
use crate::{attach, create, destroy, paths, pool, uuid};

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
/// A guest that ends sooner than this after it was created is not created again: it would go on for ever.
const LEAST_LIFE: Duration = Duration::from_secs(1);

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
    let mut supervisor = Supervisor {
        control,
        store,
        left_alone: BTreeMap::new(),
        indexer: Indexer::new(store)?,
    };
    store.watch("@releaseDomain", "released")?;
    store.watch("@introduceDomain", "introduced")?;
    let killed = watch_creations()?;
    supervisor.look_around(true)?;
    let mut at_work = clear_unfinished(control, store);
    store.write_display(None, NODE, &std::process::id())?;
    ready.announce()?;
    autostart::run(control, store);
    let mut index_due: Option<Instant> = None;
    let mut end_due: Option<Instant> = None;
    let mut pool_due = Some(Instant::now());
    loop {
        while let Some(event) = store.next_event()? {
            if event.token == "released" {
                end_due = end_due.or_else(|| Some(Instant::now() + END_DELAY));
            }
            supervisor.indexer.take(&event);
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
        if ended || index {
            supervisor.look_around(index)?;
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
        ];
        let limit = waits.into_iter().flatten().min().map(|wait| Timespec {
            tv_sec: 0,
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

struct Supervisor<'a, C, S> {
    control: &'a C,
    store: &'a S,
    /// Guests that have ended and stay, with their UUID: told once.
    left_alone: BTreeMap<u16, [u8; 16]>,
    indexer: Indexer<'a, S>,
}

impl<C: Placement + Inspect, S: StoreControl> Supervisor<'_, C, S> {
    fn look_around(&mut self, index: bool) -> Result<(), Failure> {
        let list = self.control.list()?;
        if index {
            self.indexer.update(&list)?;
        }
        self.left_alone
            .retain(|dom, uuid| list.iter().any(|i| i.dom.0 == *dom && i.uuid == *uuid));
        for info in &list {
            if info.flags.shutdown && !info.flags.dying && info.dom != DomId::DOM0 {
                self.ended(info);
            }
        }
        clear_gone(self.control, self.store, &list);
        Ok(())
    }

    /// A guest has ended by itself.
    fn ended(&mut self, info: &DomainInfo) {
        let dom = info.dom;
        if self.left_alone.get(&dom.0) == Some(&info.uuid) {
            return;
        }
        let Some(reason) = info.shutdown_reason else {
            return;
        };
        // A stock xl has a process of its own for each of its guests.
        let Some(text) = userdata::read(dom, &info.uuid, Userdata::Xlrs) else {
            self.left_alone.insert(dom.0, info.uuid);
            return;
        };
        let Some(marks) = Marks::decode(&text) else {
            daemon::log(&format!(
                "domain {dom}: its file makes no sense; it is left alone"
            ));
            self.left_alone.insert(dom.0, info.uuid);
            return;
        };
        let mut marks = marks;
        // It may have been given another name since.
        if let Ok(Some(name)) = crate::store::name_of(self.store, dom)
            && !marks.updated
        {
            marks.config.name = name;
        }
        let action = action(&marks.config.events, reason);
        let name = &marks.config.name;
        daemon::log(&format!(
            "{name} (domain {dom}) has ended: {reason:?}; {}",
            action.name()
        ));
        let result = match action {
            Action::Preserve => {
                self.left_alone.insert(dom.0, info.uuid);
                return;
            }
            Action::Destroy => self.remove(dom),
            Action::CoredumpDestroy => {
                self.dump(info, name);
                self.remove(dom)
            }
            Action::CoredumpRestart => {
                self.dump(info, name);
                self.restart(dom, &marks)
            }
            Action::Restart | Action::SoftReset => self.restart(dom, &marks),
            Action::RenameRestart => self.rename_restart(info, &marks),
        };
        if let Err(error) = result {
            daemon::log(&format!("{name} (domain {dom}): {error}"));
            // Trying again at every event would not help.
            self.left_alone.insert(dom.0, info.uuid);
        }
    }

    fn remove(&self, dom: DomId) -> Result<()> {
        destroy::destroy(self.control, self.store, dom)
    }

    /// That it cannot be dumped is no reason to leave it lying about.
    fn dump(&self, info: &DomainInfo, name: &str) {
        let said = match keep::dump(self.control, info, name) {
            Ok(path) => format!("its memory is in {}", path.display()),
            Err(error) => error.to_string(),
        };
        daemon::log(&format!("{name} (domain {}): {said}", info.dom));
    }

    fn rename_restart(&mut self, info: &DomainInfo, marks: &Marks) -> Result<()> {
        let lived = age(info.dom, marks);
        let name = keep::set_aside(self.control, self.store, info, marks)?;
        daemon::log(&format!("domain {} stays as {name}", info.dom));
        self.create_again(marks, lived)
    }

    fn restart(&self, dom: DomId, marks: &Marks) -> Result<()> {
        let lived = age(dom, marks);
        self.remove(dom)?;
        self.create_again(marks, lived)
    }

    fn create_again(&self, marks: &Marks, lived: Option<Duration>) -> Result<()> {
        if lived.is_some_and(|lived| lived < LEAST_LIFE) {
            daemon::log(&format!(
                "{}: it lived less than {} s and is not created again",
                marks.config.name,
                LEAST_LIFE.as_secs()
            ));
            return Ok(());
        }
        let start = Instant::now();
        let guest = Prepared::new(marks.config.clone())?;
        let guard = create::create_guarded(self.control, self.store, &guest)?;
        let dom = guard.dom();
        let started = self.control.unpause(dom);
        started.map_err(crate::Error::hal("start domain", dom))?;
        guard.keep();
        daemon::log(&format!(
            "{}: created again as domain {dom} in {} ms",
            guest.config.name,
            start.elapsed().as_millis()
        ));
        Ok(())
    }
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

/// How long ago a guest was created.
fn age(dom: DomId, marks: &Marks) -> Option<Duration> {
    let id = marks.config.uuid?;
    let written = fs::metadata(userdata::path(dom, &id, Userdata::Xlrs)).ok()?;
    written.modified().ok()?.elapsed().ok()
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
