//! The daemon itself on a folder of files: sockets, rings, the deaths of domains.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use fakexen::{Folder, GuestEnd, State};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xen_sys::{DomId, Errno, Port};
use xs_client::Connection;
use xs_wire::{Client, Reply, Request};

const PATIENCE: Duration = Duration::from_secs(10);

/// A daemon in a folder of its own; both go when it is dropped.
struct Daemon {
    folder: Folder,
    process: Child,
}

impl Daemon {
    fn start(name: &str) -> Daemon {
        let path = std::env::temp_dir().join(format!("fakexen-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        let folder = Folder::create(&path).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_xenstored"))
            .arg("-N")
            .args([Path::new("--fakexen"), &path])
            .args([Path::new("--socket"), &path.join("socket")])
            .spawn()
            .unwrap();
        Daemon { folder, process }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn connect(&self) -> Connection {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Connection::open(&self.socket()) {
                Ok(connection) => return connection,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(self.folder.path());
    }
}

/// A guest that makes one request at a time through its ring.
struct Guest {
    end: GuestEnd,
    client: Client,
}

impl Guest {
    fn create(daemon: &Daemon, dom: DomId) -> Guest {
        let end = GuestEnd::create(&daemon.folder, dom).unwrap();
        daemon.folder.set_state(dom, State::Running).unwrap();
        let client = Client::new();
        Guest { end, client }
    }

    fn ask(&mut self, request: &Request<'_>) -> Reply {
        let id = self.client.request(None, request).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let sent = self.end.send(self.client.output()).unwrap();
            self.client.sent(sent);
            let mut bytes = [0; 1024];
            let len = self.end.receive(&mut bytes).unwrap();
            self.client.feed(&bytes[..len]).unwrap();
            if let Some(reply) = self.client.take_reply(id) {
                return reply;
            }
            assert!(Instant::now() < deadline, "no answer to {request:?}");
            if len == 0 && sent == 0 {
                wait(&self.end);
            }
        }
    }
}

fn wait(fd: &impl AsFd) {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let second = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&second)).unwrap();
}

#[test]
fn guests_live_and_die() {
    let daemon = Daemon::start("guests");
    let dom0 = daemon.connect();
    xen_hal::Store::watch(&dom0, "@releaseDomain", "gone").unwrap();
    assert_eq!(
        dom0.wait_event(Some(PATIENCE)).unwrap().unwrap().token,
        "gone"
    );
    let error = dom0.introduce(DomId(7), 0, Port(1)).unwrap_err();
    assert_eq!(error.errno, Errno::ENOENT, "no such domain");
    let mut guests: Vec<Guest> = (7..40)
        .map(|dom| Guest::create(&daemon, DomId(dom)))
        .collect();
    for guest in &mut guests {
        let dom = guest.end.dom();
        let home = format!("/local/domain/{dom}");
        xen_hal::Store::write(&dom0, None, &home, b"").unwrap();
        let permission = xs_wire::Permission::new(dom, xs_wire::Access::None);
        xen_hal::Store::set_permissions(&dom0, None, &home, &[permission]).unwrap();
        dom0.introduce(dom, 0, Port(1)).unwrap();
        assert_eq!(
            guest.ask(&Request::Write(b"data", &[b'x'; 1500])),
            Ok(b"OK\0".into())
        );
        assert_eq!(
            guest.ask(&Request::Read(b"data")).unwrap().len(),
            1500,
            "longer than the ring"
        );
        assert_eq!(
            guest.ask(&Request::Read(b"/tool/xenstored")),
            Err(Errno::EACCES)
        );
    }
    for (state, left) in [(State::Shutdown, true), (State::Dying, false)] {
        daemon.folder.set_state(DomId(8), state).unwrap();
        guests[0].end.tell_daemon().unwrap();
        let event = dom0.wait_event(Some(PATIENCE)).unwrap().unwrap();
        assert_eq!(event.path, "@releaseDomain");
        assert_eq!(dom0.is_introduced(DomId(8)).unwrap(), left);
    }
    let read = |dom: u16| xen_hal::Store::read(&dom0, None, &format!("/local/domain/{dom}/data"));
    assert_eq!(read(8).unwrap_err().errno, Errno::ENOENT);
    assert_eq!(read(9).unwrap().len(), 1500);
}

/// A domain dies and its number is taken by another before the daemon looks: the new one gets nothing of the old.
#[test]
fn a_number_is_used_again_at_once() {
    let daemon = Daemon::start("reborn");
    let dom0 = daemon.connect();
    let dom = DomId(7);
    let home = "/local/domain/7";
    let set_up = |guest: &mut Guest| {
        xen_hal::Store::write(&dom0, None, home, b"").unwrap();
        let own = xs_wire::Permission::new(dom, xs_wire::Access::None);
        xen_hal::Store::set_permissions(&dom0, None, home, &[own]).unwrap();
        dom0.introduce(dom, 0, Port(1)).unwrap();
        guest.ask(&Request::Read(home.as_bytes())).unwrap();
    };
    let mut old = Guest::create(&daemon, dom);
    set_up(&mut old);
    xen_hal::Store::write(&dom0, None, "/shared", b"secret").unwrap();
    let list = ["n0", "r7"].map(|entry| xs_wire::Permission::parse(entry.as_bytes()).unwrap());
    xen_hal::Store::set_permissions(&dom0, None, "/shared", &list).unwrap();
    assert!(old.ask(&Request::Read(b"/shared")).is_ok());
    old.ask(&Request::Write(b"mine", b"1")).unwrap();
    // One event for the death of the one and all that the other is told by.
    daemon.folder.replace(dom, State::Running).unwrap();
    old.end.tell_daemon().unwrap();
    drop(old);
    let mut new = Guest::create(&daemon, dom);
    set_up(&mut new);
    assert_eq!(new.ask(&Request::Read(b"mine")), Err(Errno::ENOENT));
    assert_eq!(new.ask(&Request::Read(b"/shared")), Err(Errno::EACCES));
}

fn number(name: &str, default: u32) -> u32 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

/// Domains come, ask for much, and die: the daemon's memory is back where it was. `SOAK_DOMAINS` and `SOAK_REQUESTS`, of
/// each domain, say how many; 1000 of 1000 is the whole.
#[test]
fn memory_comes_back() {
    let daemon = Daemon::start("soak");
    let dom0 = daemon.connect();
    let rss = || {
        // What is its own: the file that the state is kept in is mapped as well.
        let path = format!("/proc/{}/status", daemon.process.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.unwrap().parse::<u64>().unwrap()
    };
    let requests = number("SOAK_REQUESTS", 150);
    let lifetime = |n: u32| {
        let dom = DomId(7 + (n % 20) as u16);
        let mut guest = Guest::create(&daemon, dom);
        let home = format!("/local/domain/{dom}");
        xen_hal::Store::write(&dom0, None, &home, b"").unwrap();
        let own = xs_wire::Permission::new(dom, xs_wire::Access::None);
        xen_hal::Store::set_permissions(&dom0, None, &home, &[own]).unwrap();
        dom0.introduce(dom, 0, Port(1)).unwrap();
        for n in 0..requests {
            let path = format!("data/{}/{}", n % 7, n % 50);
            let path = path.as_bytes();
            let token = n.to_string();
            let request = match n % 10 {
                0 if n < 1000 => Request::Watch(path, token.as_bytes(), None),
                1..=4 => Request::Write(path, &[b'v'; 400][..(n % 400) as usize]),
                5 if n % 50 == 5 => Request::ResetWatches,
                6 => Request::TransactionStart,
                7 => Request::Directory(b"data"),
                8 if n % 40 == 8 => Request::Rm(b"data"),
                _ => Request::Read(path),
            };
            // Some are refused, which is as it should be.
            let _ = guest.ask(&request);
        }
        daemon.folder.remove(dom).unwrap();
        guest.end.tell_daemon().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while dom0.is_introduced(dom).unwrap() {
            assert!(
                Instant::now() < deadline,
                "the death of {dom} is not noticed"
            );
        }
    };
    let domains = number("SOAK_DOMAINS", 40);
    for n in 0..domains.div_ceil(4) {
        lifetime(n);
    }
    let before = rss();
    for n in 0..domains {
        lifetime(n);
    }
    let after = rss();
    println!("{domains} domains, {requests} requests each: {before} KiB before, {after} KiB after");
    assert!(
        after <= before + 256,
        "{before} KiB before, {after} KiB after"
    );
    let control = dom0.control(&["check"]).unwrap();
    assert_eq!(control, "OK");
}
