//! The folder: where everything lies, and the states of domains.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use xen_sys::{DomId, PAGE_SIZE};

use crate::Page;

/// The port of dom0's kernel, which any number will do for.
const KERNEL_PORT: &str = "1";

/// A domain's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It lives.
    Running,
    /// It has shut down.
    Shutdown,
    /// It is being torn down.
    Dying,
}

impl State {
    const NAMES: [(State, &'static str); 3] = [
        (State::Running, "running"),
        (State::Shutdown, "shutdown"),
        (State::Dying, "dying"),
    ];
}

/// A folder of files that stand for Xen.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// An existing one.
    pub fn new(path: impl Into<PathBuf>) -> Folder {
        Folder(path.into())
    }

    /// Makes one, with nothing but dom0's ring and port.
    pub fn create(path: impl Into<PathBuf>) -> io::Result<Folder> {
        let folder = Folder(path.into());
        fs::create_dir_all(&folder.0)?;
        folder.clear_ring(DomId::DOM0)?;
        // No line end: oxenstored takes every byte for a digit.
        fs::write(folder.0.join("port.0"), KERNEL_PORT)?;
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The daemon's datagram socket.
    pub fn daemon_socket(&self) -> PathBuf {
        self.0.join("evtchn.sock")
    }

    /// A guest's datagram socket.
    pub fn guest_socket(&self, dom: DomId) -> PathBuf {
        self.0.join(format!("guest.{dom}.sock"))
    }

    fn ring(&self, dom: DomId) -> PathBuf {
        self.0.join(format!("ring.{dom}"))
    }

    fn state_file(&self, dom: DomId) -> PathBuf {
        self.0.join(format!("dom.{dom}"))
    }

    /// Maps a domain's ring.
    pub fn map_ring(&self, dom: DomId) -> io::Result<Page> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(self.ring(dom))?;
        Page::map(&file)
    }

    /// Zeroes a domain's ring in place; makes it if it is not there.
    pub fn clear_ring(&self, dom: DomId) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.ring(dom))?;
        file.write_all_at(&[0; PAGE_SIZE], 0)
    }

    /// Lets a domain exist, in this state. The daemon is not told: see
    /// [`tell_daemon`](crate::GuestEnd::tell_daemon).
    pub fn set_state(&self, dom: DomId, state: State) -> io::Result<()> {
        let (_, name) = State::NAMES[state as usize];
        let identity = match self.identity(dom) {
            0 => fresh_identity(),
            known => known,
        };
        self.write_state(dom, &format!("{name} {identity}"))
    }

    /// Lets another domain of the same number take a domain's place, as if it had died in between.
    pub fn replace(&self, dom: DomId, state: State) -> io::Result<()> {
        let (_, name) = State::NAMES[state as usize];
        self.write_state(dom, &format!("{name} {}", fresh_identity()))
    }

    /// As a whole: a daemon that looks meanwhile finds the old state or the new.
    fn write_state(&self, dom: DomId, text: &str) -> io::Result<()> {
        let new = self.0.join(format!("new.{dom}"));
        fs::write(&new, text)?;
        fs::rename(new, self.state_file(dom))
    }

    /// A number that no other domain has; 0 if the domain was made without one, or there is none.
    pub fn identity(&self, dom: DomId) -> u64 {
        let text = fs::read_to_string(self.state_file(dom)).unwrap_or_default();
        let second = text.split_whitespace().nth(1);
        second.and_then(|word| word.parse().ok()).unwrap_or(0)
    }

    /// Lets a domain be gone.
    pub fn remove(&self, dom: DomId) -> io::Result<()> {
        fs::remove_file(self.state_file(dom))
    }

    /// A domain's state; `None` if there is none. dom0 always runs.
    pub fn state(&self, dom: DomId) -> Option<State> {
        if dom == DomId::DOM0 {
            return Some(State::Running);
        }
        let text = fs::read(self.state_file(dom)).ok()?;
        let known = State::NAMES
            .into_iter()
            .find(|(_, name)| text.starts_with(name.as_bytes()));
        Some(known.map_or(State::Running, |(state, _)| state))
    }

    /// The states of all domains.
    pub fn states(&self) -> io::Result<Vec<(DomId, State)>> {
        let mut all = vec![(DomId::DOM0, State::Running)];
        for entry in fs::read_dir(&self.0)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("dom."));
            let dom = number.and_then(|number| number.parse().ok()).map(DomId);
            if let Some(dom) = dom.filter(|dom| *dom != DomId::DOM0)
                && let Some(state) = self.state(dom)
            {
                all.push((dom, state));
            }
        }
        Ok(all)
    }
}

/// A number that was not given before, in this process or another.
fn fresh_identity() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static LAST: AtomicU64 = AtomicU64::new(0);
    let count = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    u64::from(std::process::id()) << 32 | count
}
