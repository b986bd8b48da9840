//! Guests on the fake world: rings, hostile and slow ones, death, and what is left of it.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use xen_fake::{Domain, Events, Foreign, Page, World};
use xen_hal::{EventChannels, Result};
use xen_ring::{ByteRing, STORE, SharedMemoryExt};
use xen_sys::{DomId, Errno, Port};
use xenstored::core::limits::Limits;
use xenstored::core::{ConnId, DomainReport, DomainState, Identity};
use xenstored::daemon::Daemon;
use xenstored::daemon::world::{DomainList, HalWorld};
use xs_wire::{Client, Header, Op, Permission, Request};

/// Offsets in the ring's page (io/xs_wire.h).
const FEATURES: usize = 2064;
const CONNECTION: usize = 2068;
const ERROR: usize = 2072;

struct Domains(World);

impl DomainList for Domains {
    fn list(&mut self) -> Result<Vec<DomainReport>> {
        let all = self.0.domains().into_iter();
        Ok(all
            .map(|dom| DomainReport {
                dom,
                identity: Identity::UNKNOWN,
                state: match self.0.shutdown_reason(dom) {
                    Some(_) => DomainState::Shutdown,
                    None => DomainState::Running,
                },
            })
            .collect())
    }
}

struct Host {
    world: World,
    daemon: Daemon<HalWorld<Events, Foreign, Domains>>,
}

/// A client of either kind; `pump` moves its bytes.
trait Pump {
    fn client(&mut self) -> &mut Client;
    fn pump(&mut self, host: &mut Host);

    fn ask(&mut self, host: &mut Host, request: Request<'_>) -> Result<Vec<u8>, Errno> {
        let id = self.client().request(None, &request)?;
        for _ in 0..200 {
            self.pump(host);
            if let Some(reply) = self.client().take_reply(id) {
                return reply;
            }
        }
        Err(Errno::ETIMEDOUT)
    }

    fn events(&mut self, host: &mut Host) -> usize {
        let mut count = 0;
        for _ in 0..50 {
            self.pump(host);
            while self.client().next_event().is_some() {
                count += 1;
            }
        }
        count
    }
}

/// dom0's client.
struct Socket {
    id: ConnId,
    stream: UnixStream,
    client: Client,
}

/// A guest's driver.
struct Guest {
    domain: Domain,
    ring: ByteRing<Page>,
    events: Events,
    client: Client,
}

impl Host {
    fn new() -> Host {
        Host::with(Limits::default())
    }

    fn with(limits: Limits) -> Host {
        let world = World::new();
        let dom0 = world.dom0();
        let events = dom0.events();
        let virq = events.bind_dom_exc().unwrap();
        let domains = Domains(world.clone());
        let hal = HalWorld::new(events, dom0.foreign(), domains, None, Some(virq), |_| None);
        let daemon = Daemon::new(hal, limits);
        Host { world, daemon }
    }

    fn socket(&mut self) -> Socket {
        let (stream, theirs) = UnixStream::pair().unwrap();
        for end in [&stream, &theirs] {
            end.set_nonblocking(true).unwrap();
        }
        Socket {
            id: self.daemon.add_socket(theirs.into()),
            stream,
            client: Client::new(),
        }
    }

    /// A guest with a home of its own.
    fn guest(&mut self, dom0: &mut Socket) -> Guest {
        let domain = self.world.create_domain();
        let dom = domain.id();
        let home = format!("/local/domain/{dom}");
        dom0.ask(self, Request::Mkdir(home.as_bytes())).unwrap();
        let own = vec![Permission::owner(dom)];
        dom0.ask(self, Request::SetPerms(home.as_bytes(), own))
            .unwrap();
        let port = domain.store_port();
        let events = domain.events();
        events.adopt(port).unwrap();
        let guest = Guest {
            ring: ByteRing::guest(domain.store_page(), STORE),
            events,
            client: Client::new(),
            domain,
        };
        dom0.ask(self, Request::Introduce(dom, 0, port)).unwrap();
        guest
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            if !self.daemon.step().unwrap() {
                return;
            }
        }
        panic!("the daemon does not come to rest");
    }
}

impl Pump for Socket {
    fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    fn pump(&mut self, host: &mut Host) {
        match self.stream.write(self.client.output()) {
            Ok(len) => self.client.sent(len),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        host.daemon.socket_ready(self.id, true, true);
        host.daemon.step().unwrap();
        let mut bytes = [0; 8192];
        while let Ok(len @ 1..) = self.stream.read(&mut bytes) {
            self.client.feed(&bytes[..len]).unwrap();
        }
    }
}

impl Guest {
    fn notify(&self) {
        self.events.notify(self.domain.store_port()).unwrap();
    }

    fn error(&self) -> u32 {
        self.ring.memory().load_u32(ERROR, Ordering::Acquire)
    }
}

impl Pump for Guest {
    fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    fn pump(&mut self, host: &mut Host) {
        let sent = self.ring.write(self.client.output()).unwrap();
        self.client.sent(sent);
        let mut bytes = [0; 1024];
        let received = self.ring.read(&mut bytes).unwrap();
        self.client.feed(&bytes[..received]).unwrap();
        if sent > 0 || received > 0 {
            self.notify();
        }
        host.daemon.step().unwrap();
        while let Ok(Some(port)) = self.events.next_pending() {
            self.events.unmask(port).unwrap();
        }
    }
}

#[test]
fn a_guest_s_requests_are_larger_than_its_ring() {
    let mut host = Host::new();
    let mut dom0 = host.socket();
    let mut guest = host.guest(&mut dom0);
    assert_eq!(
        guest.ring.memory().load_u32(FEATURES, Ordering::Relaxed),
        15
    );
    let value = vec![b'v'; 1900];
    guest.ask(&mut host, Request::Write(b"x", &value)).unwrap();
    assert_eq!(guest.ask(&mut host, Request::Read(b"x")).unwrap(), value);
    let path = format!("/local/domain/{}/x", guest.domain.id());
    let seen = dom0.ask(&mut host, Request::Read(path.as_bytes()));
    assert_eq!(seen.unwrap(), value);
    guest
        .ask(&mut host, Request::Watch(b"x", b"t", None))
        .unwrap();
    assert_eq!(guest.events(&mut host), 1);
    dom0.ask(&mut host, Request::Write(path.as_bytes(), b"new"))
        .unwrap();
    assert_eq!(guest.events(&mut host), 1);
}

/// Each hostile act ends that guest's connection with the right error, and nobody else's.
#[test]
fn hostile_rings() {
    let too_long = |len: u32| {
        Header {
            op: Op::Write.code(),
            req_id: 1,
            tx_id: 0,
            len,
        }
        .encode()
    };
    type Attack = Box<dyn Fn(&mut Guest)>;
    let store = |offset: usize, value: u32| -> Attack {
        Box::new(move |guest| {
            let memory = guest.ring.memory();
            memory.store_u32(offset, value, Ordering::Release);
        })
    };
    let send = |bytes: Vec<u8>| -> Attack {
        Box::new(move |guest| {
            guest.ring.write(&bytes).unwrap();
        })
    };
    for (attack, error) in [
        (store(STORE.from_guest.prod, 100_000), 2),
        (store(STORE.from_guest.prod, u32::MAX), 2),
        (store(STORE.from_guest.cons, 5000), 2),
        (store(STORE.to_guest.cons, 50_000), 2),
        (store(STORE.to_guest.prod, u32::MAX - 5), 2),
        (send(too_long(4097).to_vec()), 3),
        (send(too_long(1 << 31).to_vec()), 3), // XSA-420
        (send(too_long(u32::MAX).to_vec()), 3),
    ] {
        let mut host = Host::new();
        let mut dom0 = host.socket();
        let mut bad = host.guest(&mut dom0);
        let mut good = host.guest(&mut dom0);
        for request in [
            Request::Watch(b"@releaseDomain", b"t", None),
            Request::Write(b"/local/domain/1/x", b""),
        ] {
            dom0.ask(&mut host, request).unwrap();
        }
        // Something waits to be written to it, so that its indices are looked at.
        bad.ask(&mut host, Request::Watch(b"x", b"t", None))
            .unwrap();
        bad.events(&mut host);
        dom0.events(&mut host);
        attack(&mut bad);
        bad.notify();
        dom0.ask(&mut host, Request::Write(b"/local/domain/1/x", b""))
            .unwrap();
        host.settle();
        assert_eq!(bad.error(), error);
        bad.notify();
        host.settle();
        good.ask(&mut host, Request::Write(b"y", b"1")).unwrap();
        assert_eq!(good.error(), 0);
        // Its death is told all the same (XSA-325), and its nodes go.
        host.world.destroy_domain(bad.domain.id());
        assert_eq!(dom0.events(&mut host), 1);
        let gone = dom0.ask(&mut host, Request::Read(b"/local/domain/1/x"));
        assert_eq!(gone, Err(Errno::ENOENT));
        drop((bad, good, host.daemon, dom0));
        assert_eq!(host.world.mappings(), 0);
    }
}

/// A guest that takes nothing holds nobody up; what it does not take is bounded, and then it is cut off.
#[test]
fn a_guest_that_sleeps() {
    let limits = Limits {
        memory: 100_000,
        ..Limits::default()
    };
    let mut host = Host::with(limits);
    let mut dom0 = host.socket();
    let mut sleeper = host.guest(&mut dom0);
    let mut other = host.guest(&mut dom0);
    let dom = sleeper.domain.id();
    let home = format!("/local/domain/{dom}");
    sleeper
        .ask(&mut host, Request::Watch(home.as_bytes(), b"t", None))
        .unwrap();
    // The same few nodes over and over: nothing piles up.
    for n in 0..5000 {
        let path = format!("{home}/{}", n % 10);
        dom0.ask(&mut host, Request::Write(path.as_bytes(), b""))
            .unwrap();
    }
    assert_eq!(sleeper.error(), 0);
    assert!(sleeper.events(&mut host) >= 10);
    sleeper.ask(&mut host, Request::Read(b"1")).unwrap();
    // Ever new ones: it is cut off, the writer goes on.
    for n in 0..3000 {
        let path = format!("{home}/new/{n}");
        dom0.ask(&mut host, Request::Write(path.as_bytes(), b""))
            .unwrap();
    }
    assert_eq!(sleeper.error(), 1);
    other.ask(&mut host, Request::Write(b"y", b"1")).unwrap();
    let known = Request::IsDomainIntroduced(dom);
    assert_eq!(dom0.ask(&mut host, known).unwrap(), b"T\0");
}

/// A guest that sends without taking replies is not listened to until it does (XSA-326).
#[test]
fn unread_replies_are_bounded() {
    let mut host = Host::new();
    let mut dom0 = host.socket();
    let mut guest = host.guest(&mut dom0);
    guest
        .ask(&mut host, Request::Write(b"x", &[b'v'; 1900]))
        .unwrap();
    let mut taken = 0;
    for _ in 0..2000 {
        if guest.client.request(None, &Request::Read(b"x")).is_err() {
            break;
        }
    }
    let bytes = guest.client.output().to_vec();
    for _ in 0..20 {
        let rest = bytes[taken..].repeat(10);
        taken += guest.ring.write(&rest[..rest.len().min(1024)]).unwrap();
        taken %= bytes.len();
        guest.notify();
        host.settle();
    }
    assert_eq!(guest.ring.writable(), Ok(0), "its requests lie in its ring");
    let before = dom0.ask(&mut host, Request::Write(b"/y", b""));
    assert!(before.is_ok());
}

impl Guest {
    /// Asks for a fresh start and waits until it is granted (docs/misc/xenstore-ring.txt).
    fn reconnect(&mut self, host: &mut Host) {
        let memory = self.ring.memory();
        memory.store_u32(CONNECTION, 1, Ordering::Release);
        self.notify();
        host.settle();
        let memory = self.ring.memory();
        assert_eq!(memory.load_u32(CONNECTION, Ordering::Acquire), 0);
        assert_eq!(self.error(), 0);
        assert_eq!(
            (self.ring.readable(), self.ring.writable()),
            (Ok(0), Ok(1024))
        );
        self.client = Client::new();
    }
}

fn report(host: &mut Host, dom0: &mut Socket) -> String {
    let report = dom0.ask(host, Request::Control(vec![b"memreport"]));
    String::from_utf8(report.unwrap()).unwrap()
}

/// A guest begins afresh over and over, each time with watches, transactions, half a request and whatever its page holds:
/// nothing of it stays (XSA-330, XSA-512), and it goes on.
#[test]
fn reconnecting() {
    let mut host = Host::new();
    let mut dom0 = host.socket();
    let mut guest = host.guest(&mut dom0);
    guest.ask(&mut host, Request::Write(b"x", b"1")).unwrap();
    let before = report(&mut host, &mut dom0);
    for round in 0..200u32 {
        for n in 0..5 {
            let path = format!("w{n}");
            let watch = Request::Watch(path.as_bytes(), b"t", None);
            guest.ask(&mut host, watch).unwrap();
            guest.ask(&mut host, Request::TransactionStart).unwrap();
        }
        assert_ne!(report(&mut host, &mut dom0), before);
        match round % 4 {
            0 => drop(guest.ring.write(b"half a header")),
            1 => guest
                .ring
                .memory()
                .store_u32(STORE.from_guest.prod, 77_777, Ordering::Release),
            2 => {
                // Cut off first: even then.
                guest.ring.write(&[0xff; 16]).unwrap();
                guest.notify();
                host.settle();
                assert_eq!(guest.error(), 3);
            }
            _ => {}
        }
        guest.reconnect(&mut host);
        assert_eq!(report(&mut host, &mut dom0), before);
        assert_eq!(guest.ask(&mut host, Request::Read(b"x")).unwrap(), b"1");
        assert_eq!(guest.events(&mut host), 0);
    }
    // No watch of before is told, no transaction of before is known.
    dom0.ask(&mut host, Request::Write(b"/local/domain/1/w1", b""))
        .unwrap();
    assert_eq!(guest.events(&mut host), 0);
}

/// Reconnection is for those it was offered.
#[test]
fn reconnecting_without_the_feature() {
    let mut host = Host::new();
    let mut dom0 = host.socket();
    let first = host.guest(&mut dom0);
    drop(first);
    let domain = host.world.create_domain();
    let (dom, port) = (domain.id(), domain.store_port());
    dom0.ask(&mut host, Request::SetFeature(dom, 4)).unwrap();
    let events = domain.events();
    events.adopt(port).unwrap();
    let mut guest = Guest {
        ring: ByteRing::guest(domain.store_page(), STORE),
        events,
        client: Client::new(),
        domain,
    };
    dom0.ask(&mut host, Request::Introduce(dom, 0, port))
        .unwrap();
    let load = |guest: &Guest, at| guest.ring.memory().load_u32(at, Ordering::Acquire);
    assert_eq!(load(&guest, FEATURES), 4);
    let memory = guest.ring.memory();
    memory.store_u32(CONNECTION, 1, Ordering::Release);
    guest.ask(&mut host, Request::TransactionStart).unwrap();
    assert_eq!(load(&guest, CONNECTION), 1);
    guest.ring.write(&[0xff; 16]).unwrap();
    guest.notify();
    host.settle();
    assert_eq!(guest.error(), 0, "nor the error field");
    guest.ring.write(&[0; 16]).unwrap();
    guest.notify();
    host.settle();
    assert_eq!(guest.ring.writable(), Ok(1024 - 16), "but it is not served");
}

#[test]
fn domains_come_and_go() {
    let mut host = Host::new();
    let mut dom0 = host.socket();
    let watch = Request::Watch(b"@releaseDomain", b"t", None);
    dom0.ask(&mut host, watch).unwrap();
    dom0.events(&mut host);
    for _ in 0..50 {
        let mut guest = host.guest(&mut dom0);
        let dom = guest.domain.id();
        guest.ask(&mut host, Request::Write(b"a/b", b"c")).unwrap();
        host.world.shut_down(dom, xen_hal::ShutdownReason::Poweroff);
        assert_eq!(dom0.events(&mut host), 1);
        guest.ask(&mut host, Request::Read(b"a/b")).unwrap();
        host.world.destroy_domain(dom);
        assert_eq!(dom0.events(&mut host), 1);
        let known = Request::IsDomainIntroduced(dom);
        assert_eq!(dom0.ask(&mut host, known).unwrap(), b"F\0");
        drop(guest);
    }
    assert_eq!(host.daemon.connections(), 1);
    assert_eq!(
        host.daemon.core().tree().count(),
        5,
        "/ /tool/xenstored /local/domain"
    );
    assert_eq!(host.world.mappings(), 0);
    // No such domain; a domain whose ring cannot be mapped.
    let introduce = |dom| Request::Introduce(dom, 0, Port(1));
    assert_eq!(
        dom0.ask(&mut host, introduce(DomId(99))),
        Err(Errno::ENOENT)
    );
    let domain = host.world.create_domain();
    host.world.faults().fail_all(xen_fake::Call::Map);
    assert_eq!(
        dom0.ask(&mut host, introduce(domain.id())),
        Err(Errno::EINVAL)
    );
    host.world.faults().clear();
    assert_eq!(dom0.ask(&mut host, Request::Read(b"/tool")).unwrap(), b"");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever stands in a guest's page, and however often it fires: no panic, and others are served.
    #[test]
    fn any_page(words in proptest::collection::vec((0usize..519, prop_oneof![any::<u32>(), 0u32..30]), 0..40), rounds in 1usize..4) {
        let mut host = Host::new();
        let mut dom0 = host.socket();
        let guest = host.guest(&mut dom0);
        for _ in 0..rounds {
            for (word, value) in &words {
                guest.ring.memory().store_u32(word * 4, *value, Ordering::Release);
            }
            guest.notify();
            host.settle();
        }
        dom0.ask(&mut host, Request::Write(b"/still", b"here")).unwrap();
        let check = Request::Control(vec![b"check"]);
        prop_assert_eq!(dom0.ask(&mut host, check).unwrap(), b"OK\0");
    }
}
