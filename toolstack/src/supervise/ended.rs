//! What becomes of guests that have ended: they are removed, kept, or created again, as their configuration says.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use xen_backend::daemon;
use xen_hal::{DomainInfo, Inspect, Placement, ShutdownReason};
use xen_sys::DomId;

use super::{Fate, Marks, action, clear_gone, crashed, keep};
use crate::config::Action;
use crate::error::Result;
use crate::prepare::Prepared;
use crate::store::StoreControl;
use crate::userdata::{self, Userdata};
use crate::{create, destroy};

/// Looks after the guests of a host, whenever it is called.
pub struct Supervisor<'a, C, S> {
    control: &'a C,
    store: &'a S,
    clock: &'a dyn Fn() -> SystemTime,
    /// Guests that have ended and stay, with their UUID: told once.
    left_alone: BTreeMap<u16, [u8; 16]>,
    /// Guests that have ended and stay until they are created again, with their UUID. They keep their names and
    /// disks meanwhile, and whoever destroys one has ended it for good.
    waiting: BTreeMap<u16, ([u8; 16], Fate)>,
}

impl<'a, C: Placement + Inspect, S: StoreControl> Supervisor<'a, C, S> {
    /// One that knows nothing yet.
    pub fn new(control: &'a C, store: &'a S, clock: &'a dyn Fn() -> SystemTime) -> Self {
        Supervisor {
            control,
            store,
            clock,
            left_alone: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// Does what is to be done now about the guests in the list, and about those that are not in it any more.
    pub fn look_around(&mut self, list: &[DomainInfo]) {
        let ended = |info: &&DomainInfo| info.flags.shutdown && !info.flags.dying;
        let there = |dom: u16, uuid: [u8; 16]| {
            let mut all = list.iter().filter(ended);
            all.any(|info| info.dom.0 == dom && info.uuid == uuid)
        };
        self.left_alone.retain(|dom, uuid| there(*dom, *uuid));
        self.waiting.retain(|dom, (uuid, _)| there(*dom, *uuid));
        for info in list.iter().filter(ended) {
            if info.dom != DomId::DOM0 {
                self.ended(info);
            }
        }
        clear_gone(self.control, self.store, list);
    }

    /// How long until a guest is to be created again.
    pub fn next_due(&self) -> Option<Duration> {
        let now = (self.clock)();
        let fates = self.waiting.values();
        fates.map(|(_, fate)| fate.left(now)).min()
    }

    /// A guest has ended by itself.
    fn ended(&mut self, info: &DomainInfo) {
        let dom = info.dom;
        if self.left_alone.get(&dom.0) == Some(&info.uuid) {
            return;
        }
        let waits = self.waiting.get(&dom.0);
        if waits.is_some_and(|(_, fate)| !fate.left((self.clock)()).is_zero()) {
            return;
        }
        let Some(reason) = info.shutdown_reason else {
            return;
        };
        // A stock xl has a process of its own for each of its guests.
        let Some(text) = userdata::read(dom, &info.uuid, Userdata::Xlrs) else {
            self.leave_alone(info);
            return;
        };
        let Some(mut marks) = Marks::decode(&text) else {
            daemon::log(&format!(
                "domain {dom}: its file makes no sense; it is left alone"
            ));
            self.leave_alone(info);
            return;
        };
        // It may have been given another name since.
        if let Ok(Some(name)) = crate::store::name_of(self.store, dom)
            && !marks.updated
        {
            marks.config.name = name;
        }
        let action = action(&marks.config.events, reason);
        let name = marks.config.name.clone();
        if marks.fate.again_ms.is_none() {
            daemon::log(&format!(
                "{name} (domain {dom}) has ended: {reason:?}; {}",
                action.name()
            ));
            if reason == ShutdownReason::Crash {
                for line in crashed::vcpus(self.control, info) {
                    daemon::log(&format!("{name} (domain {dom}): {line}"));
                }
            }
        }
        let result = match action {
            Action::Preserve => {
                self.leave_alone(info);
                return;
            }
            Action::Destroy => self.remove(dom),
            Action::CoredumpDestroy => {
                self.dump(info, &name);
                self.remove(dom)
            }
            Action::CoredumpRestart
            | Action::Restart
            | Action::SoftReset
            | Action::RenameRestart => self.again(info, &mut marks, action),
        };
        if let Err(error) = result {
            daemon::log(&format!("{name} (domain {dom}): {error}"));
            // Trying again at every event would not help.
            self.leave_alone(info);
        }
    }

    fn leave_alone(&mut self, info: &DomainInfo) {
        self.waiting.remove(&info.dom.0);
        self.left_alone.insert(info.dom.0, info.uuid);
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

    /// Creates a guest again, if the time has come for it.
    fn again(&mut self, info: &DomainInfo, marks: &mut Marks, action: Action) -> Result<()> {
        let now = (self.clock)();
        if marks.fate.again_ms.is_none() {
            marks.fate = marks.fate.ended(age(info, now), now);
            let pause = marks.fate.left(now);
            if !pause.is_zero() {
                let why = format!(
                    "that is the {}. time in a row soon after it was created",
                    marks.fate.short_lives
                );
                return self.wait(info, marks, &why);
            }
        } else if !marks.fate.left(now).is_zero() {
            // Another supervisor has begun to wait.
            self.waiting.insert(info.dom.0, (info.uuid, marks.fate));
            return Ok(());
        }
        // As long as what it needs is not there, it stays.
        let guest = match Prepared::new(marks.config.clone()) {
            Ok(guest) => guest,
            Err(error) => {
                marks.fate = marks.fate.failed(now);
                return self.wait(info, marks, &error.to_string());
            }
        };
        self.waiting.remove(&info.dom.0);
        if action == Action::CoredumpRestart {
            self.dump(info, &marks.config.name);
        }
        if action == Action::RenameRestart {
            let kept = keep::set_aside(self.control, self.store, info, marks)?;
            daemon::log(&format!("domain {} stays as {kept}", info.dom));
        } else {
            self.remove(info.dom)?;
        }
        self.create(&guest, marks.fate.next())
    }

    /// Leaves a guest as it is for a while. Its marks say so, for a supervisor that is started meanwhile.
    fn wait(&mut self, info: &DomainInfo, marks: &Marks, why: &str) -> Result<()> {
        let name = &marks.config.name;
        daemon::log(&format!(
            "{name} (domain {}): {why}; it is created again in {} s, unless it is destroyed (xlrs destroy {name})",
            info.dom,
            marks.fate.left((self.clock)()).as_millis().div_ceil(1000)
        ));
        userdata::write(info.dom, &info.uuid, Userdata::Xlrs, &marks.encode())?;
        self.waiting.insert(info.dom.0, (info.uuid, marks.fate));
        Ok(())
    }

    fn create(&self, guest: &Prepared, fate: Fate) -> Result<()> {
        let start = Instant::now();
        let guard = create::create_guarded(self.control, self.store, guest)?;
        let dom = guard.dom();
        if fate != Fate::default() {
            let marks = Marks {
                fate,
                ..Marks::of(guest)
            };
            userdata::write(dom, &guest.uuid, Userdata::Xlrs, &marks.encode())?;
        }
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

/// Whether a guest has ended and is to be created again later.
pub fn is_waiting(info: &DomainInfo) -> bool {
    let text = info
        .flags
        .shutdown
        .then(|| userdata::read(info.dom, &info.uuid, Userdata::Xlrs));
    let marks = text.flatten().and_then(|text| Marks::decode(&text));
    marks.is_some_and(|marks| marks.fate.again_ms.is_some())
}

/// How long ago a guest was created, or its configuration changed.
fn age(info: &DomainInfo, now: SystemTime) -> Option<Duration> {
    let written = fs::metadata(userdata::path(info.dom, &info.uuid, Userdata::Xlrs)).ok()?;
    now.duration_since(written.modified().ok()?).ok()
}
