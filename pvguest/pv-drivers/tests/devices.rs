//! Whole devices: the handshake through a store, use, the back end's end, and what breaks them.

use pv_drivers::blk::{self, BlkError, Disk, Options, Protocol};
use pv_drivers::net::{self, Interface};
use pv_drivers::store::{StoreClient, Wire};
use pv_drivers::{control, xenbus};
use xen_backend::testing::MemoryStore;
use xen_fake::{Call, Domain, Events, Grants, World};
use xen_hal::{AccessMode, Error, EventChannels, ForeignGrants, Store, StoreExt, XenbusState};
use xen_ring::{BackRing, ByteRing, STORE, SharedMemory};
use xen_sys::io::blkif::{Request, Response};
use xen_sys::{DomId, Errno, GrantRef, Plain, Port};

const BACK: &str = "/local/domain/0/backend/vbd/1/51712";
const FRONT: &str = "device/vbd/51712";
const VIF_BACK: &str = "/local/domain/0/backend/vif/1/0";
const VIF_FRONT: &str = "device/vif/0";

struct Setup {
    world: World,
    guest: Domain,
    store: MemoryStore,
}

impl Setup {
    fn new() -> Setup {
        let world = World::new();
        let guest = world.create_domain();
        let store = MemoryStore::new();
        store.fill(
            FRONT,
            &[("backend", BACK), ("backend-id", "0"), ("state", "1")],
        );
        store.fill(BACK, &[("state", "1")]);
        let mac = ("mac", "00:16:3e:00:00:01");
        store.fill(
            VIF_FRONT,
            &[
                ("backend", VIF_BACK),
                ("backend-id", "0"),
                ("state", "1"),
                mac,
            ],
        );
        store.fill(VIF_BACK, &[("state", "2"), ("feature-rx-copy", "1")]);
        Setup {
            world,
            guest,
            store,
        }
    }

    fn disk(&self) -> Disk<Grants, Events, MemoryStore> {
        Disk::open(
            self.guest.grants(),
            self.guest.events(),
            self.store.clone(),
            "51712",
        )
        .unwrap()
    }

    /// What a decent back end publishes, and what `nodes` say instead.
    fn connect(&self, nodes: &[(&str, &str)]) {
        let decent = [
            ("sectors", "1000"),
            ("sector-size", "512"),
            ("info", "0"),
            ("feature-flush-cache", "1"),
        ];
        self.store.fill(BACK, &decent);
        self.store.fill(BACK, nodes);
        self.store.fill(BACK, &[("state", "4")]);
    }

    fn number(&self, path: &str) -> u32 {
        self.store.text(path).parse().unwrap()
    }

    fn end(&self) {
        self.world.assert_nothing_left();
    }
}

#[test]
fn a_disk_connects_works_and_closes() {
    let setup = Setup::new();
    let mut disk = setup.disk();
    assert_eq!(disk.phase(), &blk::Phase::Waiting);
    assert_eq!(disk.read(0, 512).err(), Some(BlkError::NotConnected));
    setup.store.fill(BACK, &[("state", "2")]);
    disk.backend_changed().unwrap();
    assert_eq!(disk.phase(), &blk::Phase::Published);
    assert_eq!(setup.store.text(&format!("{FRONT}/state")), "3");
    assert_eq!(setup.store.text(&format!("{FRONT}/protocol")), "x86_64-abi");
    setup.connect(&[("info", "4")]);
    disk.backend_changed().unwrap();
    assert_eq!(disk.phase(), &blk::Phase::Connected);
    assert_eq!(setup.store.text(&format!("{FRONT}/state")), "4");
    let info = disk.info();
    assert_eq!(
        (
            info.sectors_512,
            info.sector_size,
            info.read_only,
            info.flush
        ),
        (1000, 512, true, true)
    );

    // One request, with events both ways.
    let gref = GrantRef(setup.number(&format!("{FRONT}/ring-ref")));
    let port = Port(setup.number(&format!("{FRONT}/event-channel")));
    let dom0 = setup.world.dom0();
    let page = dom0
        .foreign()
        .map(setup.guest.id(), &[gref], AccessMode::ReadWrite)
        .unwrap();
    let mut back: BackRing<_, Request, Response> = BackRing::attach(page).unwrap();
    let events = dom0.events();
    let bound = events.bind_interdomain(setup.guest.id(), port).unwrap();
    while events.next_pending().unwrap().is_some() {}
    events.unmask(bound).unwrap();
    let ticket = disk.flush().unwrap();
    disk.poll();
    assert_eq!(events.next_pending(), Ok(Some(bound)));
    let request = back.pop().unwrap().unwrap();
    let answer = Response {
        id: request.id,
        operation: request.operation,
        ..Response::ZERO
    };
    back.push(answer);
    assert!(back.publish(), "the front end asks for an event");
    disk.poll();
    assert_eq!(disk.take(ticket, &mut []), Some(Ok(())));

    // The back end ends it.
    drop((back, events));
    let ticket = disk.flush().unwrap();
    setup.store.fill(BACK, &[("state", "5")]);
    disk.backend_changed().unwrap();
    assert_eq!(disk.phase(), &blk::Phase::Closed);
    assert_eq!(setup.store.text(&format!("{FRONT}/state")), "6");
    assert_eq!(
        disk.take(ticket, &mut []),
        Some(Err(BlkError::NotConnected))
    );
    setup.end();
}

/// The toolstack takes a disk away and gives it back; the back end's size changes; the owner's word ends it.
#[test]
fn a_disk_that_is_there_again_is_connected_again() {
    let setup = Setup::new();
    setup.store.fill(BACK, &[("state", "2")]);
    let mut disk = setup.disk();
    setup.connect(&[]);
    disk.backend_changed().unwrap();
    let state = |disk: &mut Disk<_, _, _>, state: &str| {
        setup.store.fill(BACK, &[("state", state)]);
        disk.backend_changed().unwrap();
        disk.phase().clone()
    };
    setup.store.fill(BACK, &[("sectors", "2000")]);
    assert_eq!(state(&mut disk, "4"), blk::Phase::Connected);
    assert_eq!(disk.info().sectors_512, 2000);
    assert!(disk.read(1999, 512).is_ok());
    for _ in 0..3 {
        assert_eq!(state(&mut disk, "5"), blk::Phase::Closed);
        assert_eq!(setup.store.text(&format!("{FRONT}/state")), "6");
        assert_eq!(state(&mut disk, "6"), blk::Phase::Closed);
        assert_eq!(state(&mut disk, "1"), blk::Phase::Closed);
        assert_eq!(state(&mut disk, "2"), blk::Phase::Published);
        assert_eq!(state(&mut disk, "4"), blk::Phase::Connected);
        assert!(disk.read(0, 512).is_ok());
    }
    disk.close().unwrap();
    assert_eq!(state(&mut disk, "6"), blk::Phase::Closed);
    assert_eq!(
        state(&mut disk, "2"),
        blk::Phase::Closed,
        "it was closed for good"
    );
    setup.end();
}

/// A back end that is still connected is not taken for one that waits.
#[test]
fn a_disk_is_opened_again_in_another_way() {
    let setup = Setup::new();
    let offered = [
        ("multi-queue-max-queues", "4"),
        ("max-ring-page-order", "1"),
        ("state", "2"),
    ];
    setup.store.fill(BACK, &offered);
    let mut disk = setup.disk();
    setup.connect(&[]);
    disk.backend_changed().unwrap();
    let many = Options {
        protocol: Protocol::X86_32,
        queues: 3,
        ring_order: 1,
        persistent: false,
        ..Options::default()
    };
    let front = |node: &str| setup.store.read_optional(None, &format!("{FRONT}/{node}"));
    for (options, queues) in [(many, 3), (Options::default(), 1)] {
        disk.reopen(options).unwrap();
        assert_eq!(disk.phase(), &blk::Phase::Reopening);
        assert_eq!(setup.store.text(&format!("{FRONT}/state")), "6");
        setup.store.fill(BACK, &[("state", "6")]);
        disk.backend_changed().unwrap();
        assert_eq!(setup.store.text(&format!("{FRONT}/state")), "1");
        setup.store.fill(BACK, &[("state", "2")]);
        disk.backend_changed().unwrap();
        assert_eq!(setup.store.text(&format!("{FRONT}/state")), "3");
        let protocol = setup.store.text(&format!("{FRONT}/protocol"));
        assert_eq!(protocol, options.protocol.name());
        let several = queues > 1;
        for node in ["multi-queue-num-queues", "ring-page-order"] {
            assert_eq!(front(node).unwrap().is_some(), several, "{node}");
        }
        if several {
            for node in [
                "queue-0/ring-ref0",
                "queue-2/ring-ref1",
                "queue-2/event-channel",
            ] {
                assert!(front(node).unwrap().is_some(), "{node}");
            }
        }
        setup.connect(&[]);
        disk.backend_changed().unwrap();
        assert_eq!(
            (disk.phase(), disk.queues()),
            (&blk::Phase::Connected, queues)
        );
    }
    disk.close().unwrap();
    setup.end();
}

#[test]
fn nonsense_of_the_back_end_breaks_the_disk() {
    for (name, value) in [
        ("sectors", "many"),
        ("sectors", "-1"),
        ("sectors", "99999999999999999999999999"),
        ("sector-size", "0"),
        ("sector-size", "513"),
        ("sector-size", "8192"),
        ("info", "0x4"),
        ("feature-flush-cache", "yes"),
    ] {
        let setup = Setup::new();
        setup.store.fill(BACK, &[("state", "2")]);
        let mut disk = setup.disk();
        setup.connect(&[(name, value)]);
        disk.backend_changed().unwrap();
        assert!(
            matches!(disk.phase(), blk::Phase::Broken(_)),
            "{name} {value}: {:?}",
            disk.phase()
        );
        assert_eq!(setup.store.text(&format!("{FRONT}/state")), "5");
        assert!(!setup.store.text(&format!("error/{FRONT}/error")).is_empty());
        assert_eq!(disk.read(0, 512).err(), Some(BlkError::Broken));
        setup.end();
    }
}

#[test]
fn any_size_is_taken_and_requests_beyond_it_refused() {
    let setup = Setup::new();
    setup.store.fill(BACK, &[("state", "2")]);
    let mut disk = setup.disk();
    setup.connect(&[("sectors", "18446744073709551615")]);
    disk.backend_changed().unwrap();
    assert_eq!(disk.read(u64::MAX, 512).err(), Some(BlkError::OutOfRange));
    assert!(disk.read(u64::MAX - 1, 512).is_ok());
    drop(disk);
    setup.end();
}

/// A store that takes no writes for a while: what was tried is taken back before it is tried again.
#[test]
fn publishing_again_leaves_nothing_of_the_first_time() {
    let setup = Setup::new();
    let mut disk = setup.disk();
    setup.store.fill(VIF_BACK, &[("state", "1")]);
    let mut interface = Interface::open(
        setup.guest.grants(),
        setup.guest.events(),
        setup.store.clone(),
        "0",
    )
    .unwrap();
    setup.store.fill(BACK, &[("state", "2")]);
    setup.store.fill(VIF_BACK, &[("state", "2")]);
    setup.store.set_full(true);
    for _ in 0..3 {
        assert!(disk.backend_changed().is_err());
        assert!(interface.backend_changed().is_err());
    }
    setup.store.set_full(false);
    disk.backend_changed().unwrap();
    interface.backend_changed().unwrap();
    assert_eq!(disk.phase(), &blk::Phase::Published);
    assert_eq!(interface.phase(), &net::Phase::Published);
    disk.close().unwrap();
    interface.close().unwrap();
    setup.end();
    assert_eq!(setup.store.watches(), 2);
    drop((disk, interface));
    assert_eq!(setup.store.watches(), 0);
}

/// Whatever fails while a disk is opened, nothing is left behind.
#[test]
fn opening_fails_without_a_trace() {
    for (call, nth) in [
        (Call::AllocPage, 1),
        (Call::Grant, 1),
        (Call::AllocUnbound, 1),
    ] {
        let setup = Setup::new();
        setup.store.fill(BACK, &[("state", "2")]);
        setup.world.faults().fail_nth(call, nth);
        let disk = Disk::open(
            setup.guest.grants(),
            setup.guest.events(),
            setup.store.clone(),
            "51712",
        );
        assert!(disk.is_err(), "{call:?}");
        setup.end();
    }
    for nth in [1, 2, 3, 60, 130] {
        for call in [Call::AllocPage, Call::Grant] {
            let setup = Setup::new();
            setup.world.faults().fail_nth(call, nth);
            let vif = Interface::open(
                setup.guest.grants(),
                setup.guest.events(),
                setup.store.clone(),
                "0",
            );
            assert!(vif.is_err(), "{call:?} {nth}");
            setup.end();
        }
    }
}

#[test]
fn a_broken_ring_breaks_the_disk_and_tells() {
    let setup = Setup::new();
    setup.store.fill(BACK, &[("state", "2")]);
    let mut disk = setup.disk();
    setup.connect(&[]);
    disk.backend_changed().unwrap();
    let ticket = disk.read(0, 512).unwrap();
    disk.poll();
    let gref = GrantRef(setup.number(&format!("{FRONT}/ring-ref")));
    let page = setup
        .world
        .dom0()
        .foreign()
        .map(setup.guest.id(), &[gref], AccessMode::ReadWrite);
    let mut back: BackRing<_, Request, Response> = BackRing::attach(page.unwrap()).unwrap();
    back.pop().unwrap().unwrap();
    back.push(Response {
        id: 17,
        ..Response::ZERO
    });
    let _ = back.publish();
    disk.poll();
    assert_eq!(disk.take(ticket, &mut []), Some(Err(BlkError::Broken)));
    assert_eq!(disk.port(), None);
    assert_eq!(setup.store.text(&format!("{FRONT}/state")), "5");
    drop(back);
    setup.guest.grants();
    drop(disk);
    // The ring's page was mapped when the lease ended; the next page taken frees it.
    drop(xen_hal::GrantTable::alloc_page(&setup.guest.grants()).unwrap());
    setup.end();
}

#[test]
fn an_interface_connects_and_closes() {
    let setup = Setup::new();
    let mut vif = Interface::open(
        setup.guest.grants(),
        setup.guest.events(),
        setup.store.clone(),
        "0",
    )
    .unwrap();
    assert_eq!(vif.phase(), &net::Phase::Published);
    assert_eq!(setup.store.text(&format!("{VIF_FRONT}/state")), "4");
    assert_eq!(
        setup.store.text(&format!("{VIF_FRONT}/request-rx-copy")),
        "1"
    );
    assert!(!vif.send(&[0; 60]));
    setup.store.fill(VIF_BACK, &[("state", "4")]);
    vif.backend_changed().unwrap();
    assert_eq!(vif.phase(), &net::Phase::Connected);
    assert!(vif.send(&[0; 60]));
    vif.poll();
    assert_eq!(vif.receive(), None);
    setup.store.fill(VIF_BACK, &[("state", "6")]);
    vif.backend_changed().unwrap();
    assert_eq!(vif.phase(), &net::Phase::Closed);
    assert!(!vif.send(&[0; 60]));
    // It is there again.
    setup.store.fill(VIF_BACK, &[("state", "2")]);
    vif.backend_changed().unwrap();
    assert_eq!(vif.phase(), &net::Phase::Published);
    setup.store.fill(VIF_BACK, &[("state", "4")]);
    vif.backend_changed().unwrap();
    assert!(vif.send(&[0; 60]));
    vif.close().unwrap();
    setup.store.fill(VIF_BACK, &[("state", "2")]);
    vif.backend_changed().unwrap();
    assert_eq!(vif.phase(), &net::Phase::Closed, "it was closed for good");
    setup.end();
}

#[test]
fn interfaces_that_cannot_be_used() {
    for (path, name, value) in [
        (VIF_FRONT, "mac", "x"),
        (VIF_FRONT, "backend-id", "70000"),
        (VIF_FRONT, "backend-id", ""),
    ] {
        let setup = Setup::new();
        setup.store.fill(path, &[(name, value)]);
        let vif = Interface::open(
            setup.guest.grants(),
            setup.guest.events(),
            setup.store.clone(),
            "0",
        );
        assert!(vif.is_err(), "{name} {value:?}");
        setup.end();
    }
    let setup = Setup::new();
    setup.store.fill(VIF_BACK, &[("feature-rx-copy", "0")]);
    let vif = Interface::open(
        setup.guest.grants(),
        setup.guest.events(),
        setup.store.clone(),
        "0",
    )
    .unwrap();
    assert!(matches!(vif.phase(), net::Phase::Broken(_)));
    drop(vif);
    setup.end();
}

#[test]
fn devices_are_listed_in_order() {
    let store = MemoryStore::new();
    assert_eq!(xenbus::list(&store, "vbd"), Ok(vec![]));
    for id in ["51728", "768", "51712", "x"] {
        store.fill(&format!("device/vbd/{id}"), &[("state", "1")]);
    }
    assert_eq!(
        xenbus::list(&store, "vbd").unwrap(),
        ["x", "768", "51712", "51728"]
    );
}

#[test]
fn shutdown_requests() {
    use control::{SHUTDOWN_NODE, ShutdownRequest, take_shutdown};
    let store = MemoryStore::new();
    assert_eq!(take_shutdown(&store), Ok(None));
    for (word, expected, left) in [
        ("poweroff", Some(ShutdownRequest::Poweroff), ""),
        ("halt", Some(ShutdownRequest::Poweroff), ""),
        ("reboot", Some(ShutdownRequest::Reboot), ""),
        ("suspend", None, "suspend"),
        ("", None, ""),
    ] {
        store.write(None, SHUTDOWN_NODE, word.as_bytes()).unwrap();
        assert_eq!(take_shutdown(&store), Ok(expected), "{word}");
        assert_eq!(store.text(SHUTDOWN_NODE), left);
    }
}

/// A store daemon that does `answer` to the ring's page whenever it is waited for, and then no more.
struct Daemon<M, F>(std::cell::RefCell<(ByteRing<M>, F, usize)>);

impl<M: SharedMemory, F: FnMut(&mut ByteRing<M>)> Wire for Daemon<M, F> {
    fn notify(&self) {}

    fn wait(&self) -> bool {
        let (ring, answer, waits) = &mut *self.0.borrow_mut();
        answer(ring);
        *waits += 1;
        *waits < 10
    }
}

fn ask(answer: impl FnMut(&mut ByteRing<xen_fake::Mapping>)) -> Result<Vec<u8>, Errno> {
    let world = World::new();
    let guest = world.create_domain();
    let gref = GrantRef(xen_sys::grant_table::GNTTAB_RESERVED_XENSTORE);
    let page = || {
        world
            .dom0()
            .foreign()
            .map(guest.id(), &[gref], AccessMode::ReadWrite)
            .unwrap()
    };
    let daemon = Daemon(std::cell::RefCell::new((
        ByteRing::daemon(page(), STORE),
        answer,
        0,
    )));
    let client = StoreClient::new(page(), daemon);
    let result = client.read(None, "name").map_err(|error| error.errno);
    // Whatever came: the next request is an error or an answer, not a hang.
    let _ = client.read(None, "name");
    result
}

/// A message's header: kind, request, transaction, length.
fn message(kind: u32, request: u32, body: &[u8]) -> Vec<u8> {
    let header = [kind, request, 0, body.len() as u32];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend_from_slice(body);
    bytes
}

#[test]
fn a_store_daemon_right_and_wrong() {
    let send = |bytes: Vec<u8>| {
        let mut left = bytes;
        ask(move |ring| {
            // A byte at a time is legal, too.
            let len = left.len().min(5);
            let sent = ring.write(&left[..len]).unwrap();
            left.drain(..sent);
        })
    };
    assert_eq!(send(message(2, 1, b"value")), Ok(b"value".to_vec()));
    assert_eq!(send(message(16, 1, b"ENOENT\0")), Err(Errno::ENOENT));
    assert_eq!(send(vec![]), Err(Errno::ETIMEDOUT));
    assert_eq!(send(message(2, 7, b"")), Err(Errno::EIO));
    assert_eq!(send(message(11, 1, b"")), Err(Errno::EIO));
    let mut long = message(2, 1, b"");
    long[12..16].copy_from_slice(&5000u32.to_le_bytes());
    assert_eq!(send(long), Err(Errno::EIO));
    // A producer that is more than the ring ahead.
    let jumped = ask(|ring| {
        use xen_ring::SharedMemoryExt;
        let order = std::sync::atomic::Ordering::SeqCst;
        ring.memory().store_u32(STORE.to_guest.prod, 5000, order);
    });
    assert_eq!(jumped, Err(Errno::EIO));
}

#[test]
fn errors_of_the_store_are_not_the_peers() {
    let setup = Setup::new();
    let missing = Disk::open(
        setup.guest.grants(),
        setup.guest.events(),
        setup.store.clone(),
        "1",
    );
    assert!(matches!(missing, Err(Error::Store(_))));
    assert_eq!(XenbusState::parse(b"9"), XenbusState::Unknown);
    assert_eq!(setup.guest.id(), DomId(1));
    setup.end();
}
