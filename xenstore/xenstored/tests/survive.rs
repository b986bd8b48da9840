//! A daemon that is killed again and again, at every step that it can be killed at: its clients only wait.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fakexen::{Folder, GuestEnd, State};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use xen_sys::{DomId, Errno, Port};
use xs_wire::{Client, Permission, Reply, Request, TxId};

const PATIENCE: Duration = Duration::from_secs(30);
/// Says at which steps daemons kill themselves, one after the other; understood by builds for tests.
const KILL_AT: &str = "XENSTORED_KILL_AT";

/// A keeper with its daemons, in a folder of its own; all goes when it is dropped.
struct Kept {
    folder: Folder,
    keeper: Child,
}

impl Kept {
    fn start(name: &str, kill_at: &str) -> Kept {
        let memory = Path::new("/dev/shm");
        let top = match memory.is_dir() {
            true => memory.to_owned(),
            false => std::env::temp_dir(),
        };
        let path = top.join(format!("survive-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        let folder = Folder::create(&path).unwrap();
        let keeper = Command::new(env!("CARGO_BIN_EXE_xenstored"))
            .args(["--no-fork", "--keep"])
            .args([Path::new("--fakexen"), &path])
            .args([Path::new("--socket"), &path.join("socket")])
            .args([Path::new("--pid-file"), &path.join("pid")])
            .args([Path::new("--log-file"), &path.join("log")])
            .env(KILL_AT, kill_at)
            .spawn()
            .unwrap();
        Kept { folder, keeper }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// Nothing was lost, and all was done again as before.
    fn check_log(&self) {
        let log = self.log();
        assert!(
            !log.contains("other outcome") && !log.contains("not of use"),
            "{log}"
        );
        // "xenstored: goes on with 3 connections of 3 and 0 new ones"
        for line in log.lines().filter(|line| line.contains("goes on with")) {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(words[4], words[7], "{line}");
        }
    }

    /// How often a daemon was started again.
    fn deaths(&self) -> usize {
        self.log().matches("it is started again").count()
    }

    fn connect(&self) -> Peer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(self.file("socket")) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    return Peer::new(Transport::Socket(stream));
                }
                Err(error) => assert!(Instant::now() < deadline, "{error}\n{}", self.log()),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills the daemon if there is one just now.
    fn kill(&self) {
        let text = std::fs::read_to_string(self.file("pid")).unwrap_or_default();
        if let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw)
            && std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
                .is_ok_and(|stat| stat.contains(&format!(" {} ", self.keeper.id())))
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let end = log.len().saturating_sub(3000);
            eprintln!("{}", log.get(end..).unwrap_or(&log));
        }
        let pid = Pid::from_child(&self.keeper);
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.keeper.wait();
        let _ = std::fs::remove_dir_all(self.folder.path());
    }
}

enum Transport {
    Socket(UnixStream),
    Ring(GuestEnd),
}

/// A client on a socket or a ring that makes one request at a time, and has what it is told looked at: a reply to what was
/// not asked, or to what was answered already, fails the test.
struct Peer {
    transport: Transport,
    client: Client,
}

impl Peer {
    fn new(transport: Transport) -> Peer {
        let client = Client::new();
        Peer { transport, client }
    }

    fn try_ask(&mut self, tx: Option<TxId>, request: &Request<'_>) -> Reply {
        let id = self.client.request(tx, request).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.pump(true);
            if let Some(reply) = self.client.take_reply(id) {
                return reply;
            }
            assert!(Instant::now() < deadline, "no answer to {:?}", request.op());
        }
    }

    fn ask(&mut self, request: Request<'_>) -> Vec<u8> {
        let reply = self.try_ask(None, &request);
        reply.unwrap_or_else(|errno| panic!("{request:?}: {errno}"))
    }

    /// Moves bytes; with `wait`, waits for some.
    fn pump(&mut self, wait: bool) {
        let mut bytes = [0; 4096];
        match &mut self.transport {
            Transport::Socket(stream) => {
                let output = self.client.output();
                stream.write_all(output).unwrap();
                let len = output.len();
                self.client.sent(len);
                if wait || readable(stream, 0) {
                    let len = stream.read(&mut bytes).unwrap();
                    assert!(len > 0, "the connection was lost");
                    self.client.feed(&bytes[..len]).unwrap();
                }
            }
            Transport::Ring(end) => {
                let sent = end.send(self.client.output()).unwrap();
                self.client.sent(sent);
                let len = end.receive(&mut bytes).unwrap();
                self.client.feed(&bytes[..len]).unwrap();
                if wait && sent == 0 && len == 0 {
                    readable(end, 1);
                }
            }
        }
    }

    /// All events that come until there are `count`, and then none for a moment.
    fn events(&mut self, count: usize) -> Vec<(String, String)> {
        let mut events = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        let mut quiet = 0;
        while quiet < 2 {
            self.pump(false);
            while let Some(event) = self.client.next_event() {
                events.push((event.path, event.token));
            }
            if events.len() < count {
                assert!(
                    Instant::now() < deadline,
                    "{} of {count} events: {events:?}",
                    events.len()
                );
                std::thread::sleep(Duration::from_millis(1));
            } else {
                quiet += 1;
            }
        }
        assert_eq!(events.len(), count, "{events:?}");
        events
    }

    fn transaction(&mut self) -> TxId {
        let number = self.ask(Request::TransactionStart);
        let text = str::from_utf8(&number[..number.len() - 1]).unwrap();
        TxId(text.parse().unwrap())
    }
}

fn readable(fd: &impl AsFd, seconds: i64) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&time)).unwrap() > 0
}

/// A guest with a home, introduced.
fn guest(kept: &Kept, dom0: &mut Peer, dom: DomId) -> Peer {
    let end = GuestEnd::create(&kept.folder, dom).unwrap();
    kept.folder.set_state(dom, State::Running).unwrap();
    let home = format!("/local/domain/{dom}");
    dom0.ask(Request::Mkdir(home.as_bytes()));
    let own = vec![Permission::owner(dom)];
    dom0.ask(Request::SetPerms(home.as_bytes(), own));
    dom0.ask(Request::Introduce(dom, 0, Port(1)));
    Peer::new(Transport::Ring(end))
}

/// Everything a host does, with every answer and event foretold. Returns how often the daemon died meanwhile.
fn everything(name: &str, kill_at: &str) -> usize {
    let kept = Kept::start(name, kill_at);
    let mut kernel = Peer::new(Transport::Ring(
        GuestEnd::create(&kept.folder, DomId::DOM0).unwrap(),
    ));
    let (mut a, mut b) = (kept.connect(), kept.connect());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let pair = |path: &str, token: &str| (path.to_owned(), token.to_owned());

    kernel.ask(Request::Watch(b"/backend", b"be", None));
    assert_eq!(kernel.events(1), [pair("/backend", "be")]);
    a.ask(Request::Watch(b"@releaseDomain", b"gone", None));
    a.ask(Request::Watch(b"/local/domain/7/data", b"seven", None));
    assert_eq!(a.events(2).len(), 2);
    b.ask(Request::Write(b"/backend/vbd/7", b"1"));
    assert_eq!(kernel.events(1), [pair("/backend/vbd/7", "be")]);

    // A guest whose requests and replies are longer than its ring.
    let mut seven = guest(&kept, &mut a, DomId(7));
    let value = vec![b'v'; 1900];
    seven.ask(Request::Write(b"data/x", &value));
    assert_eq!(a.events(1), [pair("/local/domain/7/data/x", "seven")]);
    assert_eq!(seven.ask(Request::Read(b"data/x")), value);
    seven.ask(Request::Watch(b"data", b"own", None));
    assert_eq!(seven.events(1), [pair("data", "own")]);

    // A transaction that is open across deaths, beside changes; one that must fail; a client that takes turns.
    let tx = a.transaction();
    let mut within = |request| a.try_ask(Some(tx), &request);
    within(Request::Write(b"/tx/a", b"1")).unwrap();
    b.ask(Request::Write(b"/other", b"2"));
    assert_eq!(within(Request::Read(b"/tx/a")).unwrap(), b"1");
    assert_eq!(
        b.try_ask(None, &Request::Read(b"/tx/a")),
        Err(Errno::ENOENT)
    );
    within(Request::TransactionEnd(true)).unwrap();
    assert_eq!(b.ask(Request::Read(b"/tx/a")), b"1");
    for round in 0..2 {
        let tx = a.transaction();
        let old = a.try_ask(Some(tx), &Request::Read(b"/other")).unwrap();
        b.ask(Request::Write(b"/other", format!("{round}").as_bytes()));
        a.try_ask(Some(tx), &Request::Write(b"/sum", &old)).unwrap();
        let end = a.try_ask(Some(tx), &Request::TransactionEnd(true));
        assert_eq!(end, Err(Errno::EAGAIN), "round {round}");
    }

    // Permissions, settings, removal with events, a list that comes in pieces.
    b.ask(Request::SetPerms(
        b"/tx/a",
        vec![
            Permission::owner(DomId::DOM0),
            Permission::parse(b"r7").unwrap(),
        ],
    ));
    assert_eq!(seven.ask(Request::Read(b"/tx/a")), b"1");
    b.ask(Request::SetQuota(Some(DomId(7)), b"watches", 1));
    let refused = seven.try_ask(None, &Request::Watch(b"more", b"t", None));
    assert_eq!(refused, Err(Errno::ENOSPC));
    b.ask(Request::Rm(b"/local/domain/7/data/x"));
    assert_eq!(a.events(1), [pair("/local/domain/7/data/x", "seven")]);
    assert_eq!(seven.events(1), [pair("data/x", "own")]);

    // Many requests at once, some of them in pieces.
    let ids: Vec<_> = (0..20)
        .map(|n| {
            let path = format!("/many/{n}");
            b.client
                .request(None, &Request::Write(path.as_bytes(), &value))
                .unwrap()
        })
        .collect();
    for (n, id) in ids.into_iter().enumerate() {
        let reply = loop {
            if let Some(reply) = b.client.take_reply(id) {
                break reply;
            }
            b.pump(true);
        };
        assert_eq!(reply.as_deref(), Ok(&b"OK\0"[..]), "{n}");
    }
    let list = b.ask(Request::Directory(b"/many"));
    assert_eq!(list.iter().filter(|byte| **byte == 0).count(), 20);

    // A death that is told, also if it happens while nobody looks.
    kept.folder.remove(DomId(7)).unwrap();
    if let Transport::Ring(end) = &seven.transport {
        end.tell_daemon().unwrap();
    }
    let mut gone = a.events(2);
    gone.sort();
    assert_eq!(
        gone,
        [
            pair("/local/domain/7/data", "seven"),
            pair("@releaseDomain", "gone")
        ]
    );
    let introduced = a.ask(Request::IsDomainIntroduced(DomId(7)));
    assert_eq!(introduced, b"F\0");
    b.ask(Request::Write(b"/backend/vbd/8", b"1"));
    assert_eq!(kernel.events(1), [pair("/backend/vbd/8", "be")]);

    // A client that ends is gone, a new one is served.
    drop(a);
    let mut c = kept.connect();
    assert_eq!(text(&c.ask(Request::Control(vec![b"check"]))), "OK\0");
    // Killed before it has begun, it leaves nothing to go on from.
    if kept.log().contains("goes on with") {
        kept.check_log();
    }
    kept.deaths()
}

/// How many steps are tried: every `SURVIVE_EVERY`-th.
fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
#[cfg_attr(
    not(debug_assertions),
    ignore = "the daemon kills itself at a step only in a build with debug assertions"
)]
fn killed_at_each_step() {
    let every = setting("SURVIVE_EVERY", 40);
    let mut steps = 1;
    let mut runs = 0;
    loop {
        let deaths = everything(&format!("step-{steps}"), &steps.to_string());
        runs += 1;
        if deaths == 0 {
            break;
        }
        assert_eq!(deaths, 1, "killed at {steps}");
        steps += every;
    }
    assert!(steps > 300, "only {steps} steps were tried");
    println!("{runs} runs, {steps} steps");
}

#[test]
#[cfg_attr(
    not(debug_assertions),
    ignore = "the daemon kills itself at a step only in a build with debug assertions"
)]
fn killed_while_it_recovers() {
    // Lives one after the other: in the middle of work, then at each step of going on.
    for step in (1..100).step_by(setting("SURVIVE_EVERY", 40).div_ceil(4)) {
        let lives = format!("300,{step},{step},{}", step + 50);
        let deaths = everything(&format!("again-{step}"), &lives);
        assert_eq!(deaths, 4, "{lives}");
    }
}

/// Clients of all kinds at work while the daemon is killed at random moments, and at the end all adds up.
#[test]
fn killed_under_load() {
    let kills = setting("SURVIVE_KILLS", 40);
    let kept = Kept::start("load", "");
    let stop = AtomicBool::new(false);
    let counted = AtomicU64::new(0);
    let mut boss = kept.connect();
    boss.ask(Request::Write(b"/count", b"0"));
    let mut watcher = kept.connect();
    watcher.ask(Request::Watch(b"/c", b"c", None));
    watcher.events(1);
    let guests: Vec<Peer> = (10..14)
        .map(|dom| guest(&kept, &mut boss, DomId(dom)))
        .collect();
    let written = std::thread::scope(|scope| {
        let stop = &stop;
        let counted = &counted;
        let mut work = Vec::new();
        // Each writes its own node, and reads back what was acknowledged.
        for n in 0..4 {
            let mut peer = kept.connect();
            work.push(scope.spawn(move || {
                let mut value = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    value += 1;
                    // Never the same soon again: an event that waits takes the place of an equal one.
                    let path = format!("/c/{n}/{}", value % 20_000);
                    peer.ask(Request::Write(
                        path.as_bytes(),
                        value.to_string().as_bytes(),
                    ));
                    let read = peer.ask(Request::Read(path.as_bytes()));
                    assert_eq!(read, value.to_string().into_bytes(), "{path}");
                }
                (format!("/c/{n}"), value)
            }));
        }
        for (n, mut peer) in guests.into_iter().enumerate() {
            work.push(scope.spawn(move || {
                let mut value = 0u64;
                peer.ask(Request::Watch(b"big", b"b", None));
                peer.events(1);
                while !stop.load(Ordering::Relaxed) {
                    value += 1;
                    let text = format!("{value:0>1500}");
                    peer.ask(Request::Write(b"big", text.as_bytes()));
                    assert_eq!(peer.ask(Request::Read(b"big")), text.as_bytes());
                    assert_eq!(peer.events(1), [("big".to_owned(), "b".to_owned())]);
                }
                (format!("guest {n}"), value)
            }));
        }
        // All add to one number, in transactions.
        for _ in 0..3 {
            let mut peer = kept.connect();
            work.push(scope.spawn(move || {
                let mut commits = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let tx = peer.transaction();
                    let old = peer.try_ask(Some(tx), &Request::Read(b"/count")).unwrap();
                    let old: u64 = str::from_utf8(&old).unwrap().parse().unwrap();
                    let new = (old + 1).to_string();
                    peer.try_ask(Some(tx), &Request::Write(b"/count", new.as_bytes()))
                        .unwrap();
                    match peer.try_ask(Some(tx), &Request::TransactionEnd(true)) {
                        Ok(_) => commits += 1,
                        Err(errno) => assert_eq!(errno, Errno::EAGAIN),
                    }
                }
                counted.fetch_add(commits, Ordering::Relaxed);
                (String::from("commits"), commits)
            }));
        }
        // Clients that come and go. Between accept and the keeper's having the socket, it dies with the daemon: such a
        // client has had no answer yet.
        work.push(scope.spawn(|| {
            let mut sum = 0;
            let mut lost = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut stream = UnixStream::connect(kept.file("socket")).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let hello = b"\x02\0\0\0\x01\0\0\0\0\0\0\0\x10\0\0\0/tool/xenstored\0";
                let mut reply = [0; 16];
                let answered = stream
                    .write_all(hello)
                    .and_then(|()| stream.read_exact(&mut reply));
                if answered.is_err() {
                    lost += 1;
                    continue;
                }
                let mut peer = Peer::new(Transport::Socket(stream));
                peer.ask(Request::Watch(b"/c", b"mine", None));
                peer.ask(Request::Read(b"/tool/xenstored"));
                sum += 1;
            }
            assert!(lost <= kept.deaths(), "{lost} lost");
            (format!("visitors beside {lost} lost"), sum)
        }));
        let mut random = 12345u64;
        let mut done = 0;
        let mut deadline = Instant::now() + PATIENCE;
        // It is quick, so that no event waits for an equal one to be left out.
        let listener = scope.spawn(move || {
            let mut seen: BTreeMap<String, u64> = BTreeMap::new();
            while !stop.load(Ordering::Relaxed) {
                watcher.pump(false);
                while let Some(event) = watcher.client.next_event() {
                    *seen.entry(event.path[..4].to_owned()).or_default() += 1;
                }
            }
            (watcher, seen)
        });
        while done < kills {
            if Instant::now() >= deadline {
                // Else the scope would wait for its threads for good.
                stop.store(true, Ordering::Relaxed);
                panic!("no daemon died within {PATIENCE:?} after death {done}");
            }
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            // Most of them while they serve, some while they take up the state.
            if random >> 60 != 0 {
                boss.ask(Request::Read(b"/tool/xenstored"));
            }
            std::thread::sleep(Duration::from_micros(random >> 33 & 0x7fff));
            kept.kill();
            let deaths = kept.deaths();
            if deaths > done {
                (done, deadline) = (deaths, Instant::now() + PATIENCE);
            }
            if work.iter().any(|thread| thread.is_finished()) {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let written: Vec<_> = work
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        let (mut watcher, mut seen) = listener.join().unwrap();
        let expected: u64 = written
            .iter()
            .filter(|(path, _)| path.starts_with("/c/"))
            .map(|(_, n)| n)
            .sum();
        let so_far: u64 = seen.values().sum();
        for (path, _) in watcher.events((expected - so_far) as usize) {
            *seen.entry(path[..4].to_owned()).or_default() += 1;
        }
        for (path, value) in &written {
            if path.starts_with("/c/") {
                assert_eq!(seen.get(path), Some(value), "events of {path}");
            }
        }
        written
    });
    let count = boss.ask(Request::Read(b"/count"));
    assert_eq!(
        count,
        counted.load(Ordering::Relaxed).to_string().into_bytes()
    );
    for (path, value) in &written {
        if path.starts_with("/c/") {
            let last = format!("{path}/{}", value % 20_000);
            assert_eq!(
                boss.ask(Request::Read(last.as_bytes())),
                value.to_string().into_bytes()
            );
        }
    }
    let check = boss.ask(Request::Control(vec![b"check"]));
    assert_eq!(check, b"OK\0");
    kept.check_log();
    println!("{} deaths: {written:?}", kept.deaths());
}
