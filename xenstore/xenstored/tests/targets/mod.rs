//! What is fuzzed: a daemon is given bytes, over a socket or a ring, and must neither end nor lose count of anything, and
//! must serve others afterwards; or it is given what it is to go on from. Used by `tests/fuzz.rs` and by `xenstore/fuzz`.

pub mod seeds;

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use xen_fake::World;
use xen_hal::EventChannels;
use xen_ring::{ByteRing, STORE};
use xen_sys::{DomId, Errno, Port};
use xenstored::core::limits::Limits;
use xenstored::core::state::State;
use xenstored::core::{Buffered, ConnId, Core, DomainReport, DomainState, Event, Host, Identity};
use xenstored::daemon::world::{DomainList, HalWorld, NoWorld, StoreWorld};
use xenstored::daemon::{Daemon, live};
use xs_wire::{Client, Header, Op, Permission, Request};

/// What takes any bytes.
pub type Target = fn(&[u8]);

/// All targets, by name.
pub const ALL: [(&str, Target); 4] = [
    ("socket", socket),
    ("ring", ring),
    ("update", update),
    ("state", state),
];

/// The target of this name.
pub fn find(name: &str) -> Option<Target> {
    let found = ALL.iter().find(|(known, _)| *known == name)?;
    Some(found.1)
}

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

/// The bytes are the stream of a live update.
pub fn update(bytes: &[u8]) {
    let good = live::check(bytes, Limits::default()).is_ok();
    let others = RefCell::new(Vec::new());
    let inherit = |_| {
        let (theirs, other) = UnixStream::pair().map_err(|error| error.to_string())?;
        others.borrow_mut().push(other);
        Ok(theirs.into())
    };
    let resumed = live::resume(bytes, Limits::default(), inherit, |_, _| Ok(NoWorld));
    assert_eq!(resumed.is_ok(), good, "what is checked can be gone on from");
    if let Ok(inheritance) = resumed {
        let mut daemon = inheritance.daemon;
        daemon.step().expect("the daemon goes on");
        // Not what its nodes are counted as: a stream may tell of more than any guest could have made.
        let mut client = Socket::new(&mut daemon);
        client.ask(&mut daemon, Request::Control(vec![b"memreport"]));
    }
}

/// Hears of nothing that comes out of a store. Domains 1 to 3 live.
pub struct Mute;

impl Host for Mute {
    fn domain_identity(&mut self, dom: DomId) -> Option<Identity> {
        (1..4).contains(&dom.0).then_some(Identity::UNKNOWN)
    }

    fn domain_states(&mut self) -> Option<Vec<DomainReport>> {
        let report = |dom| DomainReport {
            dom: DomId(dom),
            identity: Identity::UNKNOWN,
            state: DomainState::Running,
        };
        Some((1..4).map(report).collect())
    }

    fn connect(&mut self, dom: DomId, _: u64, _: Port, _: u32) -> Result<ConnId, Errno> {
        Ok(ConnId(u64::from(dom.0) + 1))
    }

    fn rebind(&mut self, _: ConnId, _: DomId, _: Port) -> Result<(), Errno> {
        Ok(())
    }

    fn disconnect(&mut self, _: ConnId) {}

    fn reply(&mut self, _: ConnId, _: Op, _: &Header, _: &[u8]) {}

    fn event(&mut self, _: ConnId, _: Event, _: usize) {}

    fn waiting_bytes(&mut self, _: ConnId) -> usize {
        0
    }

    fn buffered(&self, _: ConnId) -> Buffered {
        Buffered::default()
    }

    fn log(&mut self, _: &str) {}
}

/// A store with a client of dom0's and three guests: connections 1 to 4.
fn core() -> Core {
    let mut core = Core::new(Limits::default());
    core.attach_dom0(ConnId(1));
    for dom in (1..4).map(DomId) {
        ask(&mut core, Request::Introduce(dom, 0, Port(1)));
    }
    core
}

fn ask(core: &mut Core, request: Request<'_>) {
    let mut body = Vec::new();
    request.encode(&mut body).expect("a request");
    let header = Header {
        op: request.op().code(),
        req_id: 0,
        tx_id: 0,
        len: body.len() as u32,
    };
    core.request(&mut Mute, ConnId(1), &header, &body);
}

/// The bytes are a store, of this or another daemon, that is to be gone on from.
pub fn state(bytes: &[u8]) {
    let Ok(state) = State::decode(bytes) else {
        return;
    };
    let mut core = Core::import(state);
    // Whatever it was told, it can tell it in turn.
    let told = core.export();
    let again = State::decode(&told.encode()).expect("its own words");
    assert_eq!(again, told);
    core.attach_dom0(ConnId(u64::MAX));
    core.domains_changed(&mut Mute);
    for seed in 0..4 {
        let (mut left, mut conn) = (&seeds::input("socket", seed)[1..], 0);
        while let Some((header, rest)) = left.split_first_chunk() {
            let header = Header::decode(header);
            let Some((body, rest)) = rest.split_at_checked(header.len as usize) else {
                break;
            };
            conn = (conn + 1) % 5;
            core.request(&mut Mute, ConnId(conn), &header, body);
            left = rest;
        }
    }
}
