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
