//! A guest's disk on the fake: the real front end, waiting by letting the host run in a seed's order.

use std::cell::RefCell;

use pv_drivers::blk::{self, BlkError, Phase};
use pv_drivers::pattern;
use pv_drivers::store::StoreClient;
use xen_fake::{Events, Grants, Page, Schedule};
use xen_hal::{EventChannels, Store};

use super::{FakeGuest, GuestWire, Machine};
use crate::block::BlockGuest;
use crate::{OrStop, Outcome, Stop};

type Driver<'a> = blk::Disk<Grants, Events, &'a StoreClient<Page, GuestWire>>;

/// How often in a row nothing may happen anywhere before a wait is given up: nobody will ever wake us.
const IDLE_STEPS: usize = 60;
/// Most steps of one wait, against live locks.
const STEPS_PER_WAIT: usize = 100_000;

/// A disk of a fake guest.
pub struct FakeDisk<'a> {
    driver: Driver<'a>,
    host: Steps<'a>,
}

/// Lets others run until there is something for the disk.
struct Steps<'a> {
    machine: &'a RefCell<Machine>,
    guest: &'a FakeGuest,
    events: Events,
    schedule: Schedule,
    /// One in so many steps kills the backend, which is started again at once; 0 for never.
    kill_one_in: usize,
    kills: usize,
    toolstack: Option<Toolstack<'a>>,
}

/// Takes a step of what a toolstack does; whether it did anything.
pub type Toolstack<'a> = Box<dyn FnMut(&mut Machine) -> bool + 'a>;

impl<'a> FakeDisk<'a> {
    /// Opens the guest's xvda and waits until it is connected.
    pub fn open(
        machine: &'a RefCell<Machine>,
        guest: &'a FakeGuest,
        schedule: Schedule,
    ) -> Outcome<Self> {
        Self::open_killing(machine, guest, schedule, 0)
    }

    /// The same with a backend that dies in one of so many steps.
    pub fn open_killing(
        machine: &'a RefCell<Machine>,
        guest: &'a FakeGuest,
        schedule: Schedule,
        kill_one_in: usize,
    ) -> Outcome<Self> {
        let events = guest.domain.events();
        let grants = guest.domain.grants();
        let driver =
            Driver::open(grants, events.clone(), &guest.store, "51712").or_fail("open the disk")?;
        let host = Steps {
            machine,
            guest,
            events,
            schedule,
            kill_one_in,
            kills: 0,
            toolstack: None,
        };
        let mut disk = FakeDisk { driver, host };
        loop {
            match disk.driver.phase() {
                Phase::Connected => return Ok(disk),
                Phase::Waiting | Phase::Published => {}
                other => return Err(Stop::Failed(format!("the disk is {other:?} after opening"))),
            }
            if !disk.host.wait(&mut disk.driver) {
                let phase = disk.driver.phase();
                return Err(Stop::Failed(format!(
                    "nobody has work, and the disk is {phase:?}"
                )));
            }
        }
    }

    /// Connects it again, to be used in this way.
    pub fn reopen(&mut self, options: blk::Options) -> Outcome {
        self.driver.reopen(options).or_fail("open the disk again")?;
        while self.driver.phase().is_opening() {
            if !self.host.wait(&mut self.driver) {
                let phase = self.driver.phase();
                return Err(Stop::Failed(format!(
                    "nobody has work, and the disk is {phase:?}"
                )));
            }
        }
        Ok(())
    }

    /// Lets a toolstack take steps from now on.
    pub fn beside(&mut self, toolstack: Toolstack<'a>) {
        self.host.toolstack = Some(toolstack);
    }

    /// How often the backend was killed.
    pub fn kills(&self) -> usize {
        self.host.kills
    }

    /// The driver, for what the scenarios have no word for.
    pub fn driver(&mut self) -> &mut blk::Disk<Grants, Events, &'a StoreClient<Page, GuestWire>> {
        &mut self.driver
    }

    /// Writes any bytes.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<(), BlkError> {
        let host = &mut self.host;
        blk::write(&mut self.driver, sector, data, &mut |disk| host.wait(disk))
    }

    /// Reads any bytes.
    pub fn read(&mut self, sector: u64, data: &mut [u8]) -> Result<(), BlkError> {
        let host = &mut self.host;
        blk::read(&mut self.driver, sector, data, &mut |disk| host.wait(disk))
    }

    /// Waits until everything is on the disk.
    pub fn flush(&mut self) -> Result<(), BlkError> {
        let host = &mut self.host;
        blk::flush(&mut self.driver, &mut |disk| host.wait(disk))
    }

    /// Closes the front end and lets the backend follow.
    pub fn close(mut self) -> Outcome {
        self.driver.close().or_fail("close the disk")?;
        self.host.settle()
    }
}

impl Steps<'_> {
    /// Lets the host run, one part at a time, until there is an event for the disk; false if none will come.
    fn wait(&mut self, disk: &mut Driver<'_>) -> bool {
        let mut idle = 0;
        for _ in 0..STEPS_PER_WAIT {
            if idle == IDLE_STEPS {
                return false;
            }
            if self.for_us(disk) {
                return true;
            }
            idle = if self.step() { 0 } else { idle + 1 };
        }
        false
    }

    /// Takes an event of the disk's port or of the back end's state; whether there was one.
    fn for_us(&mut self, disk: &mut Driver<'_>) -> bool {
        if let Ok(Some(port)) = self.events.next_pending() {
            // Before the work, so that nothing is missed.
            return self.events.unmask(port).is_ok();
        }
        match self.guest.store.next_event() {
            Ok(Some(event)) if event.token == disk.token() => disk.backend_changed().is_ok(),
            _ => false,
        }
    }

    /// One part of the host takes one step; whether it did anything.
    fn step(&mut self) -> bool {
        let mut machine = self.machine.borrow_mut();
        if self.kill_one_in > 0 && self.schedule.chance(1, self.kill_one_in) {
            self.kills += 1;
            return machine.start_backend().is_ok();
        }
        let parts = 2 + usize::from(self.toolstack.is_some());
        match (self.schedule.pick(parts), &mut self.toolstack) {
            (0, _) => machine.server.step(),
            (2, Some(toolstack)) => toolstack(&mut machine),
            _ => machine.step_backend().unwrap_or(false),
        }
    }

    /// Lets the host run, from now on without killing anybody, until it has nothing to do.
    fn settle(&mut self) -> Outcome {
        self.kill_one_in = 0;
        let mut idle = 0;
        for _ in 0..STEPS_PER_WAIT {
            if idle == IDLE_STEPS {
                return Ok(());
            }
            idle = if self.step() { 0 } else { idle + 1 };
        }
        Err(Stop::Failed("the host does not come to rest".into()))
    }
}

impl BlockGuest for FakeDisk<'_> {
    fn sectors_512(&mut self) -> Outcome<u64> {
        Ok(self.driver.info().sectors_512)
    }

    fn fill(&mut self, seed: u64, first: u64, count: u64) -> Outcome {
        let mut data = vec![0; count as usize * 512];
        pattern::fill(seed, first, &mut data);
        self.write(first, &data).or_fail("write")?;
        self.flush().or_fail("flush")
    }

    fn holds(&mut self, seed: u64, first: u64, count: u64) -> Outcome<bool> {
        let mut data = vec![0; count as usize * 512];
        self.read(first, &mut data).or_fail("read")?;
        Ok(pattern::matches(seed, first, &data))
    }

    fn beyond(&mut self, write: bool, first: u64, count: u64) -> Outcome<Option<String>> {
        let mut data = vec![0; count as usize * 512];
        let result = if write {
            self.write(first, &data)
        } else {
            self.read(first, &mut data)
        };
        Ok(result.err().map(|error| error.to_string()))
    }
}
