//! The `driver` appliance: a guest that does what its console tells it, one line at a time.

use std::cell::RefCell;
use std::time::Duration;

use scenarios::block::BlockGuest;
use scenarios::{OrStop, Outcome, Stop, demand};

use crate::real::guest::{Config, Guest};
use crate::real::host::Host;

const KERNEL: &str = "/lab/guests/driver";
const MEMORY_MIB: u32 = 32;
/// How long a command may take, 64 MiB of disk included.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A guest that takes commands.
pub struct Driver<'a> {
    guest: RefCell<Guest<'a>>,
}

impl<'a> Driver<'a> {
    /// Creates it, with what `with` adds to its configuration, and waits until it listens.
    pub fn create(
        host: &'a Host,
        name: &str,
        with: impl FnOnce(Config) -> Config,
    ) -> Outcome<Driver<'a>> {
        let kernel = host.lab_file(KERNEL)?.display().to_string();
        let config = with(Config::new(name, &kernel, MEMORY_MIB));
        let guest = RefCell::new(Guest::create(host, config)?);
        let driver = Driver { guest };
        driver.ping()?;
        Ok(driver)
    }

    /// The domain's number.
    pub fn dom(&self) -> u16 {
        self.guest.borrow().dom
    }

    /// The guest itself.
    pub fn guest(&mut self) -> &mut Guest<'a> {
        self.guest.get_mut()
    }

    /// Says a line to it and does not wait for an answer.
    pub fn tell(&self, line: &str) -> Outcome {
        self.guest.borrow_mut().console.send(line)
    }

    /// Has it do something; its answer, or its error.
    pub fn command(&self, line: &str) -> Outcome<Result<String, String>> {
        let mut guest = self.guest.borrow_mut();
        guest.console.send(line)?;
        let answer = guest.console.wait_line(line, TIMEOUT, |answer| {
            let ok = answer
                .strip_prefix("ok")
                .map(|rest| Ok(rest.trim().to_owned()));
            ok.or_else(|| {
                answer
                    .strip_prefix("error ")
                    .map(|rest| Err(rest.trim().to_owned()))
            })
        });
        answer.map_err(|stop| guest.with_console(stop))
    }

    /// Demands that it answers.
    pub fn ping(&self) -> Outcome {
        self.command("ping")?
            .map(|_| ())
            .map_err(|error| Stop::Failed(format!("ping: {error}")))
    }

    /// Writes to its disk and reads back.
    pub fn fill_and_check(&self, seed: u64, first: u64, count: u64) -> Outcome {
        let mut disk = self.disk();
        disk.fill(seed, first, count)?;
        demand!(
            disk.holds(seed, first, count)?,
            "what the guest wrote reads back differently"
        );
        Ok(())
    }

    /// Its disk.
    pub fn disk(&self) -> Disk<'_, 'a> {
        Disk(self)
    }

    /// Shuts it down by the toolstack.
    pub fn shutdown(self) -> Outcome {
        self.guest.into_inner().shutdown()
    }

    /// Destroys it.
    pub fn destroy(self) -> Outcome {
        self.guest.into_inner().destroy()
    }
}

/// The guest's disk, by commands.
pub struct Disk<'d, 'a>(&'d Driver<'a>);

impl Disk<'_, '_> {
    fn demand(&self, line: &str) -> Outcome<String> {
        let answer = self.0.command(line)?;
        answer.map_err(|error| Stop::Failed(format!("{line}: {error}")))
    }
}

impl BlockGuest for Disk<'_, '_> {
    fn sectors_512(&mut self) -> Outcome<u64> {
        let answer = self.demand("disk size")?;
        answer
            .parse()
            .or_fail(format!("the disk's size is {answer:?}"))
    }

    fn fill(&mut self, seed: u64, first: u64, count: u64) -> Outcome {
        self.demand(&format!("disk fill {seed} {first} {count}"))
            .map(|_| ())
    }

    fn holds(&mut self, seed: u64, first: u64, count: u64) -> Outcome<bool> {
        match self
            .demand(&format!("disk check {seed} {first} {count}"))?
            .as_str()
        {
            "same" => Ok(true),
            "different" => Ok(false),
            other => Err(Stop::Failed(format!("disk check answers {other:?}"))),
        }
    }

    fn beyond(&mut self, write: bool, first: u64, count: u64) -> Outcome<Option<String>> {
        let verb = if write { "fill 1" } else { "check 1" };
        Ok(self
            .0
            .command(&format!("disk {verb} {first} {count}"))?
            .err())
    }
}
