//! What a file holds is what the daemon is, after every step; what is damaged is refused.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use proptest::prelude::*;
use xs_wire::{Op, Permission, Request};

use super::file::{Content, Log, read};
use super::*;
use crate::core::limits::Limits;
use crate::daemon::Daemon;
use crate::daemon::world::NoWorld;
use crate::manager::Kept;

/// A file of its own, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let memory = PathBuf::from("/dev/shm");
        let top = match memory.is_dir() {
            true => memory,
            false => std::env::temp_dir(),
        };
        let place = Place(top.join(format!("journal-{}-{name}", std::process::id())));
        place.clear();
        place
    }

    fn clear(&self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_file(self.aside());
    }

    fn aside(&self) -> PathBuf {
        PathBuf::from(format!("{}.unused", self.0.display()))
    }

    fn content(&self) -> Content {
        read(&File::open(&self.0).unwrap(), true).unwrap().unwrap()
    }

    /// Opens it as the next daemon would: what was said, and whether something was taken up.
    fn open(&self) -> (String, bool) {
        let mut said = String::new();
        let (_, recovered) = Journal::open(&self.0, &mut |line| said += &line).unwrap();
        (said, recovered.is_some())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clear();
    }
}

struct Host {
    place: Place,
    daemon: Daemon<NoWorld>,
    clients: Vec<(ConnId, UnixStream)>,
}

impl Host {
    fn new(name: &str, clients: usize) -> Host {
        let place = Place::new(name);
        let (journal, recovered) = Journal::open(&place.0, &mut |line| panic!("{line}")).unwrap();
        assert!(recovered.is_none());
        let mut kept = Kept::default();
        let limits = Limits::default();
        let daemon = Daemon::keeping(NoWorld, limits, journal, None, None, &mut kept).unwrap();
        let mut host = Host {
            place,
            daemon,
            clients: Vec::new(),
        };
        for _ in 0..clients {
            let (ours, theirs) = UnixStream::pair().unwrap();
            for end in [&ours, &theirs] {
                end.set_nonblocking(true).unwrap();
            }
            host.clients
                .push((host.daemon.add_socket(theirs.into()), ours));
        }
        host
    }

    fn step(&mut self) {
        for (id, _) in &self.clients {
            self.daemon.socket_ready(*id, true, true);
        }
        self.daemon.step().unwrap();
    }

    /// What a daemon would find that is started now.
    fn check(&self) {
        let found = recover::recover(self.place.content()).unwrap();
        assert_eq!(found.strayed, 0);
        assert_eq!(found.core.export(), self.daemon.core().export());
        let known: Vec<ConnId> = found.conns.keys().copied().collect();
        let mut alive = self.daemon.sockets();
        alive.sort();
        assert_eq!(known, alive);
    }
}

const PATHS: [&[u8]; 6] = [b"/a", b"/a/b", b"/a/b/c", b"/d", b"/d/e", b"/f"];

/// A request of these choices, and the transaction that it is in.
fn request(bytes: [u8; 4], txs: &mut Vec<u32>) -> (Request<'static>, u32) {
    let path = PATHS[usize::from(bytes[1]) % PATHS.len()];
    let tx = txs.get(usize::from(bytes[2] % 8)).copied().unwrap_or(0);
    let value: &[u8] = [&b"x"[..], b"longer", b"", &[b'v'; 1500]][usize::from(bytes[3] % 4)];
    let list = ["n0", "b0", "r0"][usize::from(bytes[3] % 3)];
    let request = match bytes[0] % 13 {
        0..3 => Request::Write(path, value),
        3 => Request::Mkdir(path),
        4 => Request::Rm(path),
        5 => Request::SetPerms(path, vec![Permission::parse(list.as_bytes()).unwrap()]),
        6 => Request::Watch(path, value.get(..1).unwrap_or_default(), None),
        7 => Request::Unwatch(path, value.get(..1).unwrap_or_default()),
        8 => Request::Read(path),
        9 => Request::Directory(path),
        10 => return (Request::TransactionStart, 0),
        11 if tx != 0 => {
            txs.retain(|other| *other != tx);
            Request::TransactionEnd(bytes[3] > 60)
        }
        11 => Request::ResetWatches,
        _ => Request::SetQuota(None, b"nodes", bytes[3].into()),
    };
    (request, tx)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Clients at work, some of which end; after every step another daemon could go on.
    #[test]
    fn the_file_says_what_is(work in proptest::collection::vec((0usize..3, any::<[u8; 4]>(), 1usize..40), 1..60)) {
        let mut host = Host::new("what-is", 3);
        let mut txs = [(); 3].map(|()| Vec::new());
        for (client, bytes, piece) in work {
            let (request, tx) = request(bytes, &mut txs[client]);
            let mut body = Vec::new();
            request.encode(&mut body).unwrap();
            let header = Header { op: request.op().code(), req_id: 7, tx_id: tx, len: body.len() as u32 };
            let message = [&header.encode()[..], &body].concat();
            // In two pieces: the first is kept.
            let (first, second) = message.split_at(piece.min(message.len()));
            let mut stream = &host.clients[client].1;
            stream.write_all(first).unwrap();
            host.step();
            host.check();
            stream = &host.clients[client].1;
            stream.write_all(second).unwrap();
            host.step();
            host.check();
            let mut replies = vec![0; 1 << 16];
            for (client, (_, stream)) in host.clients.iter().enumerate() {
                let mut stream = stream;
                let len = stream.read(&mut replies).unwrap_or(0);
                let mut rest = &replies[..len];
                while let Some(frame) = xs_wire::peek(rest).unwrap() {
                    if frame.header.op == Op::TransactionStart.code() {
                        let text = str::from_utf8(frame.body).unwrap().trim_end_matches('\0');
                        txs[client].push(text.parse().unwrap());
                    }
                    rest = &rest[frame.size()..];
                }
            }
            if bytes[0] == 255 {
                let (ours, theirs) = UnixStream::pair().unwrap();
                for end in [&ours, &theirs] {
                    end.set_nonblocking(true).unwrap();
                }
                let id = host.daemon.add_socket(theirs.into());
                let (old, stream) = std::mem::replace(&mut host.clients[client], (id, ours));
                drop(stream);
                host.daemon.socket_ending(old);
                txs[client].clear();
                host.step();
                host.check();
            }
        }
        host.daemon.stop();
        host.check();
    }

    /// Bytes that somebody has changed: an answer of some kind, soon.
    #[test]
    fn damage_is_no_disaster(changes in proptest::collection::vec((any::<bool>(), any::<u16>(), any::<u8>()), 1..6), cut in any::<Option<u16>>()) {
        let mut host = Host::new("damage", 2);
        for n in 0..30u8 {
            for client in 0..2 {
                let (request, _) = request([n, n.wrapping_mul(7), 0, n], &mut Vec::new());
                let mut body = Vec::new();
                request.encode(&mut body).unwrap();
                let header = Header { op: request.op().code(), req_id: 1, tx_id: 0, len: body.len() as u32 };
                let mut stream = &host.clients[client].1;
                stream.write_all(&[&header.encode()[..], &body].concat()).unwrap();
            }
            host.step();
        }
        let mut content = host.place.content();
        for (log, at, byte) in changes {
            let log = &mut content.logs[if log { Log::Core } else { Log::Io } as usize];
            let at = usize::from(at) % log.len();
            log[at] ^= byte;
        }
        if let Some(cut) = cut {
            let log = &mut content.logs[Log::Io as usize];
            log.truncate(usize::from(cut) % log.len());
        }
        // Its daemon's numbers may be lower than those of the file; there is nothing else to look at.
        let _ = recover::recover(content);
    }
}

#[test]
fn what_is_of_no_use_is_set_aside() {
    let place = Place::new("of-no-use");
    let put = |at: u64, bytes: &[u8]| {
        File::options()
            .write(true)
            .open(&place.0)
            .unwrap()
            .write_all_at(bytes, at)
            .unwrap();
    };
    type Harm<'a> = &'a dyn Fn();
    let rows: [(Harm<'_>, &str); 7] = [
        (&|| {}, ""),
        (&|| put(0, b"another!"), "is no state"),
        (&|| put(0, &[0; 8]), "was not complete"),
        (
            &|| put(16, b"another boot"),
            "before this machine was started",
        ),
        (&|| put(72, &[200]), "ended while they took it up"),
        (&|| fs::write(&place.0, "short").unwrap(), "has 5 bytes"),
        (&|| put((64 << 10) + (1 << 30), &[7; 64]), "is damaged"),
    ];
    for (harm, why) in rows {
        place.clear();
        let (mut journal, _) = Journal::open(&place.0, &mut |line| panic!("{line}")).unwrap();
        journal.save(
            &Core::new(Limits::default()).export().encode(),
            0,
            std::iter::empty(),
        );
        journal.settled();
        let locked = Journal::open(&place.0, &mut |_| {})
            .unwrap_err()
            .to_string();
        assert!(locked.contains("is locked"), "{locked}");
        drop(journal);
        harm();
        let (said, recovered) = place.open();
        assert_eq!(recovered, why.is_empty(), "{why}: {said}");
        assert!(said.contains(why), "{why}: {said}");
        assert_eq!(place.aside().exists(), !why.is_empty());
    }
}

#[test]
fn logs_begin_anew_and_stay_short() {
    let mut host = Host::new("short", 1);
    let value = [b'v'; 2000];
    let mut replies = vec![0; 1 << 16];
    for n in 0..6000u32 {
        let path = format!("/n/{}", n % 50);
        let request = Request::Write(path.as_bytes(), &value);
        let mut body = Vec::new();
        request.encode(&mut body).unwrap();
        let header = Header {
            op: request.op().code(),
            req_id: n,
            tx_id: 0,
            len: body.len() as u32,
        };
        let mut stream = &host.clients[0].1;
        stream
            .write_all(&[&header.encode()[..], &body].concat())
            .unwrap();
        host.step();
        let mut stream = &host.clients[0].1;
        assert_eq!(stream.read(&mut replies).unwrap(), 19);
    }
    host.check();
    let content = host.place.content();
    assert!(content.logs[0].len() < 5 << 20 && content.logs[1].len() < 1 << 20);
    use std::os::unix::fs::MetadataExt;
    let kib = fs::metadata(&host.place.0).unwrap().blocks() / 2;
    assert!(kib < 8 << 10, "{kib} KiB of memory");
}
