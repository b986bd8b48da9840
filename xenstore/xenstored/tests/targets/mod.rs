//! What is fuzzed: a daemon is given bytes, over a socket or a ring, and must neither end nor lose count of anything, and
//! must serve others afterwards. Used by `tests/fuzz.rs` and, through cargo-fuzz, by `xenstore/fuzz`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use xen_fake::World;
use xen_hal::EventChannels;
use xen_ring::{ByteRing, STORE};
use xenstored::core::limits::Limits;
use xenstored::core::{ConnId, DomainReport, DomainState, Identity};
use xenstored::daemon::Daemon;
use xenstored::daemon::world::{DomainList, HalWorld, NoWorld, StoreWorld};
use xs_wire::{Client, Permission, Request};

struct Domains(World);

impl DomainList for Domains {
    fn list(&mut self) -> xen_hal::Result<Vec<DomainReport>> {
        let report = |dom| DomainReport {
            dom,
            identity: Identity::UNKNOWN,
            state: DomainState::Running,
        };
        Ok(self.0.domains().into_iter().map(report).collect())
    }
}

struct Socket {
    id: ConnId,
    stream: UnixStream,
}

impl Socket {
    fn new<W: StoreWorld>(daemon: &mut Daemon<W>) -> Socket {
        let (stream, theirs) = UnixStream::pair().expect("a socket pair");
        for end in [&stream, &theirs] {
            end.set_nonblocking(true).expect("non-blocking");
        }
        let id = daemon.add_socket(theirs.into());
        Socket { id, stream }
    }

    /// Moves bytes both ways; returns what came.
    fn turn<W: StoreWorld>(&mut self, daemon: &mut Daemon<W>, bytes: &[u8]) -> (usize, Vec<u8>) {
        let sent = self.stream.write(bytes).unwrap_or(0);
        daemon.socket_ready(self.id, true, true);
        for _ in 0..4 {
            daemon.step().expect("the daemon goes on");
        }
        let mut came = vec![0; 64 << 10];
        let len = self.stream.read(&mut came).unwrap_or(0);
        came.truncate(len);
        (sent, came)
    }

    fn ask<W: StoreWorld>(&mut self, daemon: &mut Daemon<W>, request: Request<'_>) -> Vec<u8> {
        let mut client = Client::new();
        let id = client.request(None, &request).expect("a request");
        for _ in 0..50 {
            let output = client.output().to_vec();
            let (sent, came) = self.turn(daemon, &output);
            client.sent(sent);
            client.feed(&came).expect("messages");
            if let Some(reply) = client.take_reply(id) {
                return reply.unwrap_or_else(|errno| panic!("{request:?}: {errno}"));
            }
        }
        panic!("no answer to {request:?}");
    }

    fn check<W: StoreWorld>(&mut self, daemon: &mut Daemon<W>) {
        let check = Request::Control(vec![b"check"]);
        assert_eq!(self.ask(daemon, check), b"OK\0");
    }
}

/// The bytes come from a client of dom0's.
pub fn socket(bytes: &[u8]) {
    let mut daemon = Daemon::new(NoWorld, Limits::default());
    let mut other = Socket::new(&mut daemon);
    let mut client = Socket::new(&mut daemon);
    let mut left = bytes;
    for _ in 0..200 {
        // Pieces of changing size: messages come in parts.
        let most = left.len().min(1 + left.len() % 700);
        let (sent, _) = client.turn(&mut daemon, &left[..most]);
        left = &left[sent..];
    }
    drop(client);
    other.check(&mut daemon);
}

/// The bytes come from a guest; the first says what it may do and how it takes its replies.
pub fn ring(bytes: &[u8]) {
    let (&how, mut left) = bytes.split_first().unwrap_or((&0, &[]));
    let world = World::new();
    let dom0 = world.dom0();
    let events = dom0.events();
    let virq = events.bind_dom_exc().expect("the fake's virq");
    let domains = Domains(world.clone());
    let hal = HalWorld::new(events, dom0.foreign(), domains, None, Some(virq), |_| None);
    let mut daemon = Daemon::new(hal, Limits::default());
    let mut other = Socket::new(&mut daemon);
    let domain = world.create_domain();
    let (dom, port) = (domain.id(), domain.store_port());
    let events = domain.events();
    events.adopt(port).expect("its own port");
    let home = format!("/local/domain/{dom}");
    other.ask(&mut daemon, Request::Mkdir(home.as_bytes()));
    let own = vec![Permission::owner(dom)];
    other.ask(&mut daemon, Request::SetPerms(home.as_bytes(), own));
    other.ask(&mut daemon, Request::Introduce(dom, 0, port));
    let mut guest = ByteRing::guest(domain.store_page(), STORE);
    let mut taken = [0; 1024];
    for round in 0..200u32 {
        let sent = guest.write(left).expect("its own indices");
        left = &left[sent..];
        // Some guests take what comes, some only now and then, some never.
        if how & 3 == 0 || how & 3 == 1 && round % 7 == 0 {
            guest
                .read(&mut taken)
                .expect("the daemon keeps its indices in order");
        }
        events.notify(port).expect("its own port");
        daemon.step().expect("the daemon goes on");
        if how & 4 != 0 && round % 16 == 0 {
            let path = format!("{home}/{round}");
            other.ask(&mut daemon, Request::Write(path.as_bytes(), b"x"));
        }
    }
    other.check(&mut daemon);
    world.destroy_domain(dom);
    other.check(&mut daemon);
    let gone = other.ask(&mut daemon, Request::Directory(b"/local/domain"));
    assert!(gone.is_empty(), "its nodes are gone");
}
