//! The daemon itself, on a socket without Xen: what test-xenstore asks, slow and broken clients, starting and ending.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use xen_hal::{Permission, Store, StoreExt};
use xen_sys::{DomId, Errno};
use xs_client::Connection;
use xs_wire::{Header, Op};

const PROGRAM: &str = env!("CARGO_BIN_EXE_xenstored");

/// A daemon in a folder of its own; both go when it is dropped.
struct Daemon {
    folder: PathBuf,
    child: Child,
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("xenstored-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .arg("--no-xen")
        .arg("--socket")
        .arg(folder.join("socket"));
    command
}

impl Daemon {
    fn start(name: &str) -> Daemon {
        let folder = folder(name);
        let child = command(&folder).arg("--no-fork").spawn().unwrap();
        let daemon = Daemon { folder, child };
        daemon.wait_until_up();
        daemon
    }

    fn wait_until_up(&self) {
        let start = Instant::now();
        while UnixStream::connect(self.socket()).is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "it does not come up"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    fn connect(&self) -> Connection {
        let connection = Connection::open(&self.socket()).unwrap();
        connection.set_timeout(Duration::from_secs(10));
        connection
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The twelve cases of Xen's test-xenstore, each some times over.
#[test]
fn what_test_xenstore_asks() {
    let daemon = Daemon::start("cases");
    let (store, other) = (daemon.connect(), daemon.connect());
    let root = "/local/domain/0/xenstore-test";
    let at = |name: &str| format!("{root}/{name}");
    for round in 0..20 {
        for len in [1, 2000] {
            let value = vec![b'x'; len];
            store.write(None, &at("write"), &value).unwrap();
            assert_eq!(store.read(None, &at("write")).unwrap(), value);
        }
        for n in 0..100 {
            store.write(None, &at(&format!("dir/{n}")), b"").unwrap();
        }
        assert_eq!(store.list(None, &at("dir")).unwrap().len(), 100);
        store.rm(None, &at("dir/5")).unwrap();
        assert_eq!(
            store.read(None, &at("dir/5")).unwrap_err().errno,
            Errno::ENOENT
        );
        store.rm(None, &at("dir")).unwrap();
        assert_eq!(
            store.list(None, &at("dir")).unwrap_err().errno,
            Errno::ENOENT
        );
        for commit in [true, false] {
            let tx = store.start().unwrap();
            store.end(tx, commit).unwrap();
            store.write(None, &at("ta"), b"0").unwrap();
            let tx = store.start().unwrap();
            let old = store.read(Some(tx), &at("ta")).unwrap();
            assert_eq!(old, b"0");
            store.write(Some(tx), &at("ta"), b"1").unwrap();
            store.end(tx, commit).unwrap();
            let expected: &[u8] = if commit { b"1" } else { b"0" };
            assert_eq!(store.read(None, &at("ta")).unwrap(), expected);
        }
        let tx = store.start().unwrap();
        store.read(Some(tx), &at("ta")).unwrap();
        other
            .write(None, &at("ta"), format!("other {round}").as_bytes())
            .unwrap();
        store.write(Some(tx), &at("ta"), b"late").unwrap();
        assert_eq!(store.end(tx, true).unwrap_err().errno, Errno::EAGAIN);
    }
    store.rm(None, root).unwrap();
}

#[test]
fn watches_permissions_and_long_listings() {
    let daemon = Daemon::start("watches");
    let (store, other) = (daemon.connect(), daemon.connect());
    store.watch("/a", "t").unwrap();
    other.write(None, "/a/b", b"").unwrap();
    for path in ["/a", "/a/b"] {
        let event = store
            .wait_event(Some(Duration::from_secs(10)))
            .unwrap()
            .unwrap();
        assert_eq!((&*event.path, &*event.token), (path, "t"));
    }
    store.unwatch("/a", "t").unwrap();
    let list = [Permission::owner(DomId(3)), Permission::owner(DomId(4))];
    store.set_permissions(None, "/a", &list).unwrap();
    assert_eq!(other.permissions(None, "/a").unwrap(), list);
    let mut names: Vec<String> = (0..2000).map(|n| format!("a-long-name-{n}")).collect();
    store
        .transaction(|store, tx| {
            names
                .iter()
                .try_for_each(|name| store.mkdir(Some(tx), &format!("/big/{name}")))
        })
        .unwrap();
    names.sort();
    assert_eq!(other.list(None, "/big").unwrap(), names);
    assert_eq!(store.control(&["check"]).unwrap(), "OK");
    let report = store.control(&["memreport"]).unwrap();
    assert!(report.contains("nodes 2006\n"), "{report}");
    assert_eq!(store.domain_path(DomId(5)).unwrap(), "/local/domain/5");
    assert!(store.is_introduced(DomId(0)).unwrap());
    let error = store.introduce(DomId(5), 1, xen_sys::Port(1)).unwrap_err();
    assert_eq!(error.errno, Errno::EINVAL, "there is no Xen");
}

/// In oxenstored, a reader that does not drain hangs the connection that writes.
#[test]
fn a_sleeping_reader_holds_nobody_up() {
    let daemon = Daemon::start("sleeper");
    let (sleeper, writer) = (daemon.connect(), daemon.connect());
    sleeper.watch("/", "t").unwrap();
    for n in 0..20_000 {
        writer
            .write(None, &format!("/x/{}", n % 5000), b"value")
            .unwrap();
    }
    let mut seen = 0;
    while sleeper
        .wait_event(Some(Duration::from_millis(300)))
        .unwrap()
        .is_some()
    {
        seen += 1;
    }
    assert!(seen >= 5000, "{seen}");
    assert_eq!(sleeper.read(None, "/x/1").unwrap(), b"value");
}

/// A client that sends requests without reading is not listened to any more, and memory stays bounded.
#[test]
fn a_client_that_never_reads() {
    let daemon = Daemon::start("flood");
    let store = daemon.connect();
    store.write(None, "/big", &[b'v'; 4000]).unwrap();
    let mut flood = UnixStream::connect(daemon.socket()).unwrap();
    flood
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let header = Header {
        op: Op::Read.code(),
        req_id: 1,
        tx_id: 0,
        len: 5,
    };
    let request = [&header.encode()[..], b"/big\0"].concat().repeat(1000);
    let mut sent = 0;
    while flood.write_all(&request).is_ok() {
        sent += 1000;
        assert!(sent < 1_000_000, "it takes requests without end");
    }
    assert_eq!(store.read(None, "/big").unwrap().len(), 4000);
    let rss = std::fs::read_to_string(format!("/proc/{}/statm", daemon.child.id())).unwrap();
    let pages: usize = rss.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(pages < 8192, "{pages} pages of memory");
}

#[test]
fn broken_clients() {
    let daemon = Daemon::start("broken");
    let store = daemon.connect();
    let header = |len| {
        Header {
            op: 2,
            req_id: 0,
            tx_id: 0,
            len,
        }
        .encode()
    };
    for bytes in [&header(4097)[..], &header(u32::MAX), &header(100), b"\x02"] {
        let mut client = UnixStream::connect(daemon.socket()).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        client.write_all(bytes).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0; 16]).unwrap(), 0, "{bytes:?}");
    }
    // Half a request, a pause, the other half.
    let mut client = UnixStream::connect(daemon.socket()).unwrap();
    let request = [&header(6)[..], b"/tool\0"].concat();
    for half in request.chunks(11) {
        client.write_all(half).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        store.read(None, "/tool").unwrap();
    }
    let mut reply = [0; 16];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(
        Header::decode(&reply),
        Header {
            op: 2,
            req_id: 0,
            tx_id: 0,
            len: 0
        }
    );
}

/// Everything that was sent before the client closed its side is carried out and answered.
#[test]
fn pipelined_then_closed() {
    let daemon = Daemon::start("pipeline");
    let mut client = UnixStream::connect(daemon.socket()).unwrap();
    let mut bytes = Vec::new();
    for n in 0..500u32 {
        let body = format!("/p/{n}\0value");
        let header = Header {
            op: Op::Write.code(),
            req_id: n,
            tx_id: 0,
            len: body.len() as u32,
        };
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(body.as_bytes());
    }
    client.write_all(&bytes).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut replies = Vec::new();
    client.read_to_end(&mut replies).unwrap();
    assert_eq!(replies.len(), 500 * (16 + 3));
    let store = daemon.connect();
    assert_eq!(store.list(None, "/p").unwrap().len(), 500);
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn background_pid_file_and_end() {
    let folder = folder("background");
    let (socket, pid_file) = (folder.join("socket"), folder.join("pid"));
    let manager_path = folder.join("notify");
    let manager = UnixDatagram::bind(&manager_path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let output = run(command(&folder)
        .args(["--output-pid", "--pid-file"])
        .arg(&pid_file)
        .env("NOTIFY_SOCKET", &manager_path));
    assert!(output.status.success(), "{output:?}");
    // It serves by the time the command has returned.
    let store = Connection::open(&socket).unwrap();
    assert_eq!(store.read(None, "/tool/xenstored").unwrap(), b"");
    let meta = std::fs::metadata(&socket).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let pid: i32 = pid.trim().parse().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        pid.to_string()
    );
    let mut message = [0; 256];
    let mut next = || {
        let len = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..len]).into_owned()
    };
    assert_eq!(next(), "FDSTORE=1\nFDPOLL=0\nFDNAME=socket\n");
    let message = next();
    assert_eq!(message, format!("MAINPID={pid}\nREADY=1\n"));
    // A second one refuses, and does no harm to the first.
    for (pid_path, why) in [
        (&pid_file, "is locked"),
        (&folder.join("pid2"), "another store daemon serves"),
    ] {
        let output = run(command(&folder).arg("--pid-file").arg(pid_path));
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(store.read(None, "/tool").unwrap(), b"");
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let start = Instant::now();
    while socket.exists() || pid_file.exists() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "it leaves files behind"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_killed_daemon_s_files_are_in_nobody_s_way() {
    let folder = folder("killed");
    let pid_file = folder.join("pid");
    let mut child = command(&folder)
        .arg("-N")
        .arg("-F")
        .arg(&pid_file)
        .spawn()
        .unwrap();
    let start = Instant::now();
    while Connection::open(&folder.join("socket")).is_err() {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(folder.join("socket").exists() && pid_file.exists());
    let mut child = command(&folder)
        .args(["-N", "-F"])
        .arg(&pid_file)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while Connection::open(&folder.join("socket")).is_err() {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_cannot_work_says_why() {
    let folder = folder("wrong");
    std::fs::write(folder.join("socket"), "a file").unwrap();
    let rows: [(&[&str], &str); 3] = [
        (&["--no-fork"], "is no socket"),
        (
            &["--pid-file", "/nonexistent/pid"],
            "cannot open /nonexistent/pid",
        ),
        (
            &["--log-file", "/nonexistent/log"],
            "cannot open /nonexistent/log",
        ),
    ];
    for (args, why) in rows {
        let output = run(command(&folder).args(args));
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(why), "{said}");
    }
    if !Path::new("/dev/xen/evtchn").exists() {
        let mut child = Command::new(PROGRAM)
            .arg("-N")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert!(
            line.contains("does not run on Xen") && line.contains("--no-xen"),
            "{line}"
        );
    }
    std::fs::remove_dir_all(folder).unwrap();
}
