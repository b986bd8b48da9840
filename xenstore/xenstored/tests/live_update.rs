//! The daemon becomes another program, and nobody notices: sockets, rings, transactions, watches, what was half sent.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use fakexen::{Folder, GuestEnd, State};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xen_sys::{DomId, Port};
use xs_wire::{Decoder, Header, Op, Request};

const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon in a folder of its own; both go when it is dropped.
struct Daemon {
    folder: Folder,
    process: Child,
}

impl Daemon {
    fn start(name: &str) -> Daemon {
        let path = std::env::temp_dir().join(format!("live-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        let folder = Folder::create(&path).unwrap();
        let process = Daemon::spawn(&path);
        Daemon { folder, process }
    }

    fn spawn(path: &Path) -> Child {
        Command::new(PROGRAM)
            .arg("-N")
            .args([Path::new("--fakexen"), path])
            .args([Path::new("--socket"), &path.join("socket")])
            .args([Path::new("--pid-file"), &path.join("pid")])
            .spawn()
            .unwrap()
    }

    /// Kills it and starts it again.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = Daemon::spawn(self.folder.path());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn connect(&self) -> Client {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(self.path("socket")) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let events = Vec::new();
                    return Client { stream, events };
                }
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The number of the daemon's process as it says in its file.
    fn pid(&self) -> u32 {
        let text = std::fs::read_to_string(self.path("pid")).unwrap();
        text.trim().parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(self.folder.path());
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_xenstored");

/// A socket client that makes one request at a time.
struct Client {
    stream: UnixStream,
    events: Vec<Vec<u8>>,
}

fn encode(tx: u32, request: &Request<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    request.encode(&mut body).unwrap();
    let header = Header {
        op: request.op().code(),
        req_id: 1,
        tx_id: tx,
        len: body.len() as u32,
    };
    [&header.encode()[..], &body].concat()
}

impl Client {
    fn send(&mut self, tx: u32, request: &Request<'_>) {
        self.stream.write_all(&encode(tx, request)).unwrap();
    }

    fn message(&mut self) -> (Header, Vec<u8>) {
        let mut head = [0; Header::SIZE];
        self.stream.read_exact(&mut head).unwrap();
        let header = Header::decode(&head);
        let mut body = vec![0; header.len as usize];
        self.stream.read_exact(&mut body).unwrap();
        (header, body)
    }

    /// The reply to what was sent, as text without NULs at its end; errors as "!ENOENT".
    fn reply(&mut self) -> String {
        loop {
            let (header, body) = self.message();
            let text = String::from_utf8(body.clone()).unwrap();
            let text = text.trim_end_matches('\0').to_owned();
            match Op::from_code(header.op) {
                Some(Op::WatchEvent) => self.events.push(body),
                Some(Op::Error) => return format!("!{text}"),
                _ => return text,
            }
        }
    }

    fn ask(&mut self, tx: u32, request: Request<'_>) -> String {
        self.send(tx, &request);
        self.reply()
    }

    fn write(&mut self, path: &str, value: &str) {
        let request = Request::Write(path.as_bytes(), value.as_bytes());
        assert_eq!(self.ask(0, request), "OK", "{path}");
    }

    fn read(&mut self, tx: u32, path: &str) -> String {
        self.ask(tx, Request::Read(path.as_bytes()))
    }

    fn start(&mut self) -> u32 {
        self.ask(0, Request::TransactionStart).parse().unwrap()
    }

    fn event(&mut self) -> String {
        let body = match self.events.is_empty() {
            false => self.events.remove(0),
            true => self.message().1,
        };
        let text = String::from_utf8(body).unwrap();
        text.trim_end_matches('\0').replace('\0', " ")
    }

    fn control(&mut self, words: &[&[u8]]) -> String {
        self.ask(0, Request::Control(words.to_vec()))
    }

    /// A live update as xenstore-control asks for it.
    fn update(&mut self, program: &str) -> String {
        let said = self.control(&[b"live-update", b"-f", program.as_bytes()]);
        if said != "OK" {
            return said;
        }
        self.control(&[b"live-update", b"-s", b"-t", b"60"])
    }
}

struct Guest {
    end: GuestEnd,
    decoder: Decoder,
    messages: Vec<(u32, String)>,
}

impl Guest {
    fn create(daemon: &Daemon, dom0: &mut Client, dom: u16) -> Guest {
        let dom = DomId(dom);
        let end = GuestEnd::create(&daemon.folder, dom).unwrap();
        daemon.folder.set_state(dom, State::Running).unwrap();
        let home = format!("/local/domain/{dom}");
        dom0.write(&home, "");
        let permission = xs_wire::Permission::new(dom, xs_wire::Access::None);
        let request = Request::SetPerms(home.as_bytes(), vec![permission]);
        assert_eq!(dom0.ask(0, request), "OK");
        assert_eq!(dom0.ask(0, Request::Introduce(dom, 0, Port(1))), "OK");
        Guest {
            end,
            decoder: Decoder::new(),
            messages: Vec::new(),
        }
    }

    fn send(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let sent = self.end.send(bytes).unwrap();
            bytes = &bytes[sent..];
            self.receive();
        }
    }

    fn receive(&mut self) {
        let mut room = [0; 1024];
        let len = self.end.receive(&mut room).unwrap();
        let mut input = &room[..len];
        while let Some(message) = self.decoder.feed(&mut input).unwrap() {
            let body = String::from_utf8(message.body).unwrap();
            let body = body.trim_end_matches('\0').replace('\0', " ");
            self.messages.push((message.header.op, body));
        }
    }

    fn message(&mut self) -> (u32, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if !self.messages.is_empty() {
                return self.messages.remove(0);
            }
            let fd = self.end.as_fd();
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            let short = Timespec {
                tv_sec: 0,
                tv_nsec: 50_000_000,
            };
            poll(&mut fds, Some(&short)).unwrap();
            self.receive();
            assert!(Instant::now() < deadline, "nothing comes");
        }
    }

    fn ask(&mut self, tx: u32, request: Request<'_>) -> String {
        self.send(&encode(tx, &request));
        self.message().1
    }
}

#[test]
fn nobody_notices() {
    let daemon = Daemon::start("all");
    let mut dom0 = daemon.connect();
    let mut admin = daemon.connect();
    let mut guests: Vec<Guest> = (7..10)
        .map(|dom| Guest::create(&daemon, &mut dom0, dom))
        .collect();
    let pid = daemon.pid();
    assert_eq!(pid, daemon.process.id());

    // Watches, in all their forms.
    let watches = [
        ("@releaseDomain", "gone", None),
        ("relative", "rel", None),
        ("/deep", "depth", Some(1)),
    ];
    for (path, token, depth) in watches {
        let request = Request::Watch(path.as_bytes(), token.as_bytes(), depth);
        assert_eq!(dom0.ask(0, request), "OK");
        assert_eq!(dom0.event(), format!("{path} {token}"));
    }
    assert_eq!(guests[0].ask(0, Request::Watch(b"data", b"t", None)), "OK");
    assert_eq!(guests[0].message().1, "data t");

    for round in 0..3 {
        // Transactions: one will commit, one conflict, one see the old state; a guest's too.
        dom0.write("/counter", "1");
        dom0.write("/other", "1");
        let mut clients: Vec<Client> = (0..3).map(|_| daemon.connect()).collect();
        let txs: Vec<u32> = clients.iter_mut().map(Client::start).collect();
        assert_eq!(clients[0].read(txs[0], "/other"), "1");
        assert_eq!(clients[1].read(txs[1], "/counter"), "1");
        for (client, tx) in clients.iter_mut().zip(&txs).take(2) {
            let value = format!("by {tx}");
            let path = format!("/result/{tx}");
            let request = Request::Write(path.as_bytes(), value.as_bytes());
            assert_eq!(client.ask(*tx, request), "OK");
        }
        let guest_tx = guests[1].ask(0, Request::TransactionStart).parse().unwrap();
        let request = Request::Write(b"data", b"of the guest");
        assert_eq!(guests[1].ask(guest_tx, request), "OK");
        dom0.write("/counter", "2");

        // Half of a request, on a socket and in a ring.
        let mut half = daemon.connect();
        let whole = encode(0, &Request::Read(b"/counter"));
        half.stream.write_all(&whole[..20]).unwrap();
        let guest_whole = encode(0, &Request::Write(b"data", &[b'x'; 1500]));
        guests[2].send(&guest_whole[..700]);
        // Events that nobody has taken, and far more output than a socket holds.
        let mut lazy = daemon.connect();
        assert_eq!(lazy.ask(0, Request::Watch(b"/lazy", b"tok", None)), "OK");
        for n in 0..5000 {
            dom0.write(&format!("/lazy/{n:0>60}"), "");
        }
        for _ in 0..40 {
            lazy.send(0, &Request::Directory(b"/local/domain"));
        }

        assert_eq!(admin.update(PROGRAM), "OK");

        assert_eq!(daemon.pid(), pid);
        half.stream.write_all(&whole[20..]).unwrap();
        assert_eq!(half.reply(), "2");
        guests[2].send(&guest_whole[700..]);
        assert_eq!(guests[2].message().1, "OK");
        let read = guests[2].ask(0, Request::Read(b"data"));
        assert_eq!(read, "x".repeat(1500));

        assert_eq!(clients[2].read(txs[2], "/counter"), "1", "its old state");
        let ends = ["OK", "!EAGAIN", "OK"];
        for ((client, tx), end) in clients.iter_mut().zip(&txs).zip(ends) {
            assert_eq!(client.ask(*tx, Request::TransactionEnd(true)), end);
        }
        assert_eq!(
            dom0.read(0, &format!("/result/{}", txs[0])),
            format!("by {}", txs[0])
        );
        assert_eq!(dom0.read(0, &format!("/result/{}", txs[1])), "!ENOENT");
        assert_eq!(guests[1].ask(guest_tx, Request::TransactionEnd(true)), "OK");
        assert_eq!(dom0.read(0, "/local/domain/8/data"), "of the guest");

        // Each event once, and each reply.
        let (mut events, mut replies) = (0, 0);
        while events < 5001 || replies < 40 {
            match Op::from_code(lazy.message().0.op) {
                Some(Op::WatchEvent) => events += 1,
                Some(Op::Directory) => replies += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((events, replies), (5001, 40));

        dom0.write("relative", &round.to_string());
        assert_eq!(dom0.event(), "relative rel");
        dom0.write("/deep/a/b/c", "");
        dom0.write("/deep/a", "");
        assert_eq!(dom0.event(), "/deep/a depth");
        dom0.write("/local/domain/7/data", "y");
        assert_eq!(guests[0].message().1, "data t");
        assert_eq!(admin.control(&[b"check"]), "OK");
        // Those who come after find the daemon where it was.
        assert_eq!(daemon.connect().read(0, "/counter"), "2");
        assert_eq!(dom0.ask(0, Request::Rm(b"/lazy")), "OK");
        let second = Command::new(PROGRAM)
            .args(["-N", "--no-xen", "--pid-file"])
            .arg(daemon.path("pid"))
            .arg("--socket")
            .arg(daemon.path("second"))
            .output()
            .unwrap();
        let said = String::from_utf8(second.stderr).unwrap();
        assert!(said.contains("another store daemon runs"), "{said}");
    }

    // A domain dies: its node goes, and it is told.
    daemon.folder.set_state(DomId(9), State::Dying).unwrap();
    guests[2].end.tell_daemon().unwrap();
    assert_eq!(dom0.event(), "@releaseDomain gone");
    assert_eq!(dom0.read(0, "/local/domain/9/data"), "!ENOENT");
    assert!(!daemon.path("state_dump").exists());
}

#[test]
fn it_survives_its_death_afterwards() {
    let mut daemon = Daemon::start("dies");
    let mut dom0 = daemon.connect();
    let mut guest = Guest::create(&daemon, &mut dom0, 7);
    dom0.write("/before", "1");
    assert_eq!(guest.ask(0, Request::Watch(b"data", b"t", None)), "OK");
    assert_eq!(guest.message().1, "data t");
    assert_eq!(dom0.update(PROGRAM), "OK");
    dom0.write("/after", "2");
    let tx = guest.ask(0, Request::TransactionStart).parse().unwrap();
    assert_eq!(guest.ask(tx, Request::Write(b"data", b"x")), "OK");
    daemon.kill();
    let mut dom0 = daemon.connect();
    assert_eq!(dom0.read(0, "/before"), "1");
    assert_eq!(dom0.read(0, "/after"), "2");
    assert_eq!(guest.ask(tx, Request::TransactionEnd(true)), "OK");
    assert_eq!(guest.message().1, "data t");
    assert_eq!(dom0.update(PROGRAM), "OK");
    assert_eq!(dom0.read(0, "/local/domain/7/data"), "x");
}

#[test]
fn what_fails_changes_nothing() {
    let daemon = Daemon::start("fails");
    let mut admin = daemon.connect();
    let mut client = daemon.connect();
    client.write("/a", "1");
    let tx = client.start();
    assert_eq!(client.read(tx, "/a"), "1");
    assert!(admin.update("/nowhere").contains("No such file"));
    assert!(admin.update("/etc/passwd").contains("not executable"));

    // Not ours: no transaction may be open, or it is to be forced.
    let program = daemon.path("broken");
    std::fs::write(&program, "#! /nowhere/interpreter\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = program.to_str().unwrap();
    let name = program.as_bytes();
    assert_eq!(admin.control(&[b"live-update", b"-f", name]), "OK");
    let said = admin.control(&[b"live-update", b"-s", b"-t", b"0"]);
    assert!(said.contains("1 transactions are open"), "{said}");
    // While one waits, another's start waits too; abort lets both go on.
    let mut other = daemon.connect();
    assert_eq!(admin.control(&[b"live-update", b"-f", name]), "OK");
    admin.send(
        0,
        &Request::Control(vec![b"live-update", b"-s", b"-t", b"60"]),
    );
    while daemon.connect().control(&[b"live-update", b"-f", name])
        != "live-update session already active."
    {}
    other.send(0, &Request::TransactionStart);
    other
        .stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert!(other.stream.read(&mut [0]).is_err(), "it waits");
    other.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(client.control(&[b"live-update", b"-a"]), "OK");
    assert_eq!(admin.reply(), "Cancellation was requested");
    assert!(other.reply().parse::<u32>().is_ok());
    drop(other);
    // It cannot be started: everything goes on, the transaction too.
    assert_eq!(admin.control(&[b"live-update", b"-f", name]), "OK");
    let said = admin.control(&[b"live-update", b"-s", b"-t", b"0", b"-F"]);
    assert!(said.contains("cannot start"), "{said}");
    // One that has the mark of ours and cannot read the state is not become.
    let mut liar = b"#! /bin/false\n".to_vec();
    liar.extend(b"xlrs xenstored live update 1");
    std::fs::write(program, liar).unwrap();
    let said = admin.update(program);
    assert!(said.contains("cannot go on"), "{said}");
    assert_eq!(client.ask(tx, Request::TransactionEnd(true)), "OK");
    assert!(!daemon.path("state_dump").exists());
    // And it can still be done, and be stopped.
    assert_eq!(admin.update(PROGRAM), "OK");
    assert_eq!(client.read(0, "/a"), "1");
}

/// C xenstored reads a message's rest with calls that wait, and takes "not yet" for the connection's end.
#[test]
fn what_another_s_program_inherits_waits() {
    let daemon = Daemon::start("waits");
    let mut client = daemon.connect();
    client.write("/a", "1");
    let flags = daemon.path("flags");
    let program = daemon.path("theirs");
    // Its standard streams are not looked at.
    let script = format!(
        "#! /bin/sh\nfor f in /proc/$$/fd/*; do n=${{f##*/}}; [ $n -gt 2 ] && [ -S $f ] &&\n\
         grep flags: /proc/$$/fdinfo/$n; done > {0}.new; mv {0}.new {0}; exec sleep 60\n",
        flags.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let name = program.to_str().unwrap().as_bytes();
    assert_eq!(client.control(&[b"live-update", b"-f", name]), "OK");
    client.send(0, &Request::Control(vec![b"live-update", b"-s"]));
    let begun = Instant::now();
    while !flags.exists() {
        assert!(begun.elapsed() < PATIENCE, "the program does not run");
        std::thread::sleep(Duration::from_millis(5));
    }
    let flags = std::fs::read_to_string(flags).unwrap();
    let all: Vec<u32> = flags
        .lines()
        .map(|line| u32::from_str_radix(line.trim_start_matches("flags:").trim(), 8).unwrap())
        .collect();
    assert!(
        all.len() >= 3,
        "the client's, the listening one, the world's: {all:?}"
    );
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits();
    assert!(all.iter().all(|flags| flags & nonblock == 0), "{flags}");
}

#[test]
fn there_must_be_a_state() {
    let path = std::env::temp_dir().join(format!("live-{}-none", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    let run = || {
        let out = Command::new(PROGRAM)
            .args(["-U", "--no-xen", "--socket"])
            .arg(path.join("socket"))
            .output()
            .unwrap();
        assert!(!out.status.success());
        String::from_utf8(out.stderr).unwrap()
    };
    assert!(run().contains("no daemon has left a state"));
    std::fs::write(path.join("state_dump"), "rubbish").unwrap();
    assert!(run().contains("broken"));
    std::fs::set_permissions(
        path.join("state_dump"),
        std::fs::Permissions::from_mode(0o666),
    )
    .unwrap();
    assert!(run().contains("written by others"));
    std::fs::remove_dir_all(path).unwrap();
}
