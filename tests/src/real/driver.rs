//! The `driver` appliance: a guest that does what its console tells it, one line at a time.

use std::cell::RefCell;
use std::time::Duration;

use scenarios::block::BlockGuest;
use scenarios::{OrStop, Outcome, Stop, demand};
use xen_hal::{Permission, Store, StoreError, TxId, WatchEvent};
use xen_sys::Errno;

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
        Self::of(Guest::create(host, config)?)
    }

    /// One that somebody else has created.
    pub fn adopt(host: &'a Host, name: &str) -> Outcome<Driver<'a>> {
        Self::of(Guest::adopt(host, name)?)
    }

    fn of(guest: Guest<'a>) -> Outcome<Driver<'a>> {
        let guest = RefCell::new(guest);
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

    /// Adds the end of its console's output to a failure.
    pub fn with_console(&self, stop: Stop) -> Stop {
        self.guest.borrow().with_console(stop)
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

    /// Its connection to the store.
    pub fn store(&self) -> GuestStore<'_, 'a> {
        GuestStore(self)
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

/// The guest's connection to the store, by commands. It reads, writes, lists, removes and permits; ENOSYS
/// for what the appliance has no command for.
pub struct GuestStore<'d, 'a>(&'d Driver<'a>);

impl GuestStore<'_, '_> {
    fn ask(&self, op: &'static str, path: &str, line: &str) -> Result<String, StoreError> {
        let error = |errno| StoreError {
            op,
            object: path.to_owned(),
            errno,
        };
        // A guest that does not answer at all is seen by its console, which the next step shows.
        let answer = self.0.command(line).map_err(|_| error(Errno::ETIMEDOUT))?;
        answer.map_err(|why| error(errno_in(&why).unwrap_or(Errno::EIO)))
    }
}

/// The error number in a message such as `xenstore READ /a: ENOENT (2): no such entry`.
fn errno_in(why: &str) -> Option<Errno> {
    let mut words = why.split(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit());
    words.find_map(|word| Errno::from_name(word.as_bytes()))
}

fn not_offered<T>(op: &'static str, object: &str) -> Result<T, StoreError> {
    Err(StoreError {
        op,
        object: object.to_owned(),
        errno: Errno::ENOSYS,
    })
}

impl Store for GuestStore<'_, '_> {
    fn read(&self, _tx: Option<TxId>, path: &str) -> Result<Vec<u8>, StoreError> {
        let text = self.ask("READ", path, &format!("store read {path}"))?;
        Ok(text.into_bytes())
    }

    fn write(&self, _tx: Option<TxId>, path: &str, value: &[u8]) -> Result<(), StoreError> {
        let value = String::from_utf8_lossy(value);
        self.ask("WRITE", path, &format!("store write {path} {value}"))
            .map(drop)
    }

    fn mkdir(&self, _tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
        not_offered("MKDIR", path)
    }

    fn rm(&self, _tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
        self.ask("RM", path, &format!("store rm {path}")).map(drop)
    }

    fn list(&self, _tx: Option<TxId>, path: &str) -> Result<Vec<String>, StoreError> {
        let names = self.ask("DIRECTORY", path, &format!("store list {path}"))?;
        Ok(names.split_whitespace().map(String::from).collect())
    }

    fn permissions(&self, _tx: Option<TxId>, path: &str) -> Result<Vec<Permission>, StoreError> {
        not_offered("GET_PERMS", path)
    }

    fn set_permissions(
        &self,
        _tx: Option<TxId>,
        path: &str,
        list: &[Permission],
    ) -> Result<(), StoreError> {
        let words: Vec<String> = list.iter().map(Permission::to_string).collect();
        let line = format!("store chmod {path} {}", words.join(" "));
        self.ask("SET_PERMS", path, &line).map(drop)
    }

    fn start(&self) -> Result<TxId, StoreError> {
        not_offered("TRANSACTION_START", "")
    }

    fn end(&self, _tx: TxId, _commit: bool) -> Result<(), StoreError> {
        not_offered("TRANSACTION_END", "")
    }

    fn watch(&self, path: &str, _token: &str) -> Result<(), StoreError> {
        not_offered("WATCH", path)
    }

    fn unwatch(&self, path: &str, _token: &str) -> Result<(), StoreError> {
        not_offered("UNWATCH", path)
    }

    fn next_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        Ok(None)
    }
}
