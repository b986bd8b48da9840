//! The handshake with a driver that does nothing, or hangs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use xen_hal::{Error, Result, Store};
use xen_sys::DomId;

use crate::testing::MemoryStore;
use crate::{Bus, Change, DeviceId, Driver, Node, Site};

#[derive(Clone, Default)]
struct Probe {
    hangs: Rc<Cell<bool>>,
    /// The toolstack removes the device while it is being opened.
    vanishes: Rc<Cell<bool>>,
    /// What follows from the next change.
    change: Rc<RefCell<Change>>,
    /// Connections fail.
    fails: Rc<Cell<bool>>,
    calls: Rc<RefCell<Vec<String>>>,
}

impl Probe {
    fn note(&self, what: &str, id: DeviceId) {
        self.calls.borrow_mut().push(format!("{what} {id}"));
    }

    fn take(&self) -> Vec<String> {
        self.calls.take()
    }
}

struct Connection(DeviceId, Probe);

impl Drop for Connection {
    fn drop(&mut self) {
        self.1.note("drop", self.0);
    }
}

impl Driver for Probe {
    const CLASS: &'static str = "vbd";
    const ALSO: &'static [&'static str] = &["vbd3"];
    type Device = ();
    type Connection = Connection;

    fn open(&mut self, site: &Site<'_>) -> Result<((), Vec<Node>)> {
        self.note("open", site.id);
        if self.vanishes.get() {
            site.store.rm(None, site.back)?;
        }
        Ok(((), vec![("feature", "1".into())]))
    }

    fn connect(&mut self, site: &Site<'_>, (): &mut ()) -> Result<Option<(Connection, Vec<Node>)>> {
        self.note("connect", site.id);
        Ok(Some((
            Connection(site.id, self.clone()),
            vec![("sectors", "9".into())],
        )))
    }

    fn changed(&mut self, _: &Site<'_>, (): &mut ()) -> Result<Change> {
        Ok(self.change.take())
    }

    fn failure(&self, _: &Connection) -> Option<Error> {
        self.fails.get().then_some(Error::NoGrants)
    }

    fn stop(&self, connection: &Connection) -> bool {
        connection.0.dom != DomId(1) || !self.hangs.get()
    }

    fn pause(&self, connection: &Connection) -> bool {
        self.note("pause", connection.0);
        self.stop(connection)
    }

    fn farewell(&self) -> Vec<Node> {
        vec![("bye", "1".into())]
    }

    fn close(&mut self, id: DeviceId, (): ()) {
        self.note("close", id);
    }
}

const BACK: &str = "/local/domain/0/backend/vbd";

fn declare(store: &MemoryStore, dom: u16) {
    let front = format!("/local/domain/{dom}/device/vbd/7");
    store.fill(&front, &[("state", "1")]);
    store.fill(
        &format!("{BACK}/{dom}/7"),
        &[("frontend", &front), ("online", "1"), ("state", "1")],
    );
}

fn front(store: &MemoryStore, dom: u16, state: &str) {
    store.fill(
        &format!("/local/domain/{dom}/device/vbd/7"),
        &[("state", state)],
    );
}

fn state(store: &MemoryStore, dom: u16) -> String {
    store.text(&format!("{BACK}/{dom}/7/state"))
}

fn settle(bus: &mut Bus<Probe>, store: &MemoryStore) {
    while bus.step(store).unwrap() {}
}

#[test]
fn a_device_that_hangs_holds_up_no_other() {
    let (store, probe) = (MemoryStore::new(), Probe::default());
    let mut bus = Bus::new(probe.clone(), DomId::DOM0, |_| {});
    bus.start(&store).unwrap();
    for dom in [1, 2] {
        declare(&store, dom);
        settle(&mut bus, &store);
        assert_eq!(state(&store, dom), "2");
        front(&store, dom, "3");
        settle(&mut bus, &store);
        assert_eq!(state(&store, dom), "4");
    }
    assert_eq!(
        probe.take(),
        ["open 1/7", "connect 1/7", "open 2/7", "connect 2/7"]
    );

    probe.hangs.set(true);
    for dom in [1, 2] {
        front(&store, dom, "6");
    }
    settle(&mut bus, &store);
    assert_eq!(probe.take(), ["drop 2/7", "close 2/7"]);
    assert_eq!(
        (state(&store, 1), state(&store, 2)),
        ("4".into(), "6".into())
    );
    // Even when its directory goes, it is not forgotten before its connection has ended.
    store.rm(None, &format!("{BACK}/1")).unwrap();
    settle(&mut bus, &store);
    bus.check(&store).unwrap();
    assert_eq!(bus.counts(), (2, 1));
    probe.hangs.set(false);
    bus.check(&store).unwrap();
    assert_eq!(probe.take(), ["drop 1/7", "close 1/7"]);
    assert_eq!(bus.counts(), (1, 0));
    assert_eq!(store.text(&format!("{BACK}/1/7/state")), "");
}

#[test]
fn states_are_followed() {
    // (front end's state, backend's state afterwards), in a row.
    let rows: [&[(&str, &str)]; 5] = [
        &[
            ("1", "2"),
            ("3", "4"),
            ("4", "4"),
            ("5", "5"),
            ("6", "6"),
            ("1", "2"),
            ("4", "4"),
        ],
        // A front end may jump, and may start over without closing.
        &[("4", "4"), ("1", "2"), ("3", "4")],
        &[("3", "4"), ("6", "6"), ("1", "2")],
        // Nonsense counts as no front end.
        &[("1", "2"), ("nonsense", "6")],
        &[("2", "1"), ("7", "1"), ("1", "2")],
    ];
    for row in rows {
        let (store, probe) = (MemoryStore::new(), Probe::default());
        let mut bus = Bus::new(probe, DomId::DOM0, |_| {});
        bus.start(&store).unwrap();
        store.fill(&format!("{BACK}/1/7"), &[("state", "1")]);
        declare(&store, 1);
        for (theirs, ours) in row {
            front(&store, 1, theirs);
            settle(&mut bus, &store);
            assert_eq!(state(&store, 1), *ours, "{row:?} at {theirs}");
        }
        // The toolstack takes the device away.
        let (front_dir, back) = ("/local/domain/1/device/vbd/7", format!("{BACK}/1/7"));
        store.fill(&back, &[("online", "0"), ("state", "5")]);
        store.rm(None, front_dir).unwrap();
        settle(&mut bus, &store);
        assert_eq!(
            (state(&store, 1), store.text(&format!("{back}/bye"))),
            ("6".into(), "1".into())
        );
    }
}

/// Before the daemon starts and afterwards; one is no part of the other, although its name begins so.
#[test]
fn devices_elsewhere_are_served_there() {
    let (store, probe) = (MemoryStore::new(), Probe::default());
    let mut bus = Bus::new(probe.clone(), DomId::DOM0, |_| {});
    let also = "/local/domain/0/backend/vbd3";
    let declare_there = |dom: u16| {
        let front = format!("/local/domain/{dom}/device/vbd/7");
        store.fill(&front, &[("state", "3")]);
        let nodes = [("frontend", &*front), ("online", "1"), ("state", "1")];
        store.fill(&format!("{also}/{dom}/7"), &nodes);
    };
    declare_there(2);
    bus.start(&store).unwrap();
    settle(&mut bus, &store);
    declare_there(3);
    declare(&store, 1);
    front(&store, 1, "3");
    settle(&mut bus, &store);
    assert_eq!(bus.counts(), (3, 3));
    for path in [
        format!("{BACK}/1"),
        format!("{also}/2"),
        format!("{also}/3"),
    ] {
        assert_eq!(store.text(&format!("{path}/7/state")), "4", "{path}");
        assert_eq!(store.text(&format!("{path}/7/sectors")), "9", "{path}");
    }
    assert_eq!(store.list(None, BACK).unwrap(), ["1"]);
    // A guest of that number comes again, declared in the usual place.
    store.rm(None, &format!("{also}/2/7")).unwrap();
    settle(&mut bus, &store);
    assert_eq!(bus.counts(), (2, 2));
    declare(&store, 2);
    front(&store, 2, "3");
    settle(&mut bus, &store);
    assert_eq!(state(&store, 2), "4");
}

/// The front end is not told; whatever else happens waits until the connection has come to rest.
#[test]
fn a_connection_is_followed_by_another() {
    // (who acts while it comes to rest, what the driver does then, the backend's state in the end)
    type Act = fn(&MemoryStore, &Probe);
    let rows: [(Act, &[&str], &str); 4] = [
        (|_, _| {}, &["drop 1/7", "connect 1/7"], "4"),
        (
            |store, _| front(store, 1, "6"),
            &["drop 1/7", "close 1/7"],
            "6",
        ),
        (|_, probe| probe.fails.set(true), &["drop 1/7"], "5"),
        (
            |store, _| store.rm(None, &format!("{BACK}/1")).unwrap(),
            &["drop 1/7", "close 1/7"],
            "",
        ),
    ];
    for (act, calls, ends) in rows {
        let (store, probe) = (MemoryStore::new(), Probe::default());
        let mut bus = Bus::new(probe.clone(), DomId::DOM0, |_| {});
        bus.start(&store).unwrap();
        declare(&store, 1);
        front(&store, 1, "3");
        settle(&mut bus, &store);
        front(&store, 1, "4");
        settle(&mut bus, &store);
        probe.take();
        probe.hangs.set(true);
        *probe.change.borrow_mut() = Change {
            nodes: vec![("said", "so".into())],
            reconnect: true,
            ..Change::default()
        };
        store.fill(&format!("{BACK}/1/7"), &[("next-params", "x")]);
        settle(&mut bus, &store);
        assert_eq!(store.text(&format!("{BACK}/1/7/said")), "so");
        assert_eq!(probe.take()[0], "pause 1/7");
        act(&store, &probe);
        settle(&mut bus, &store);
        bus.check(&store).unwrap();
        probe.hangs.set(false);
        bus.check(&store).unwrap();
        settle(&mut bus, &store);
        let done: Vec<String> = probe.take();
        let done: Vec<&str> = (done.iter().map(String::as_str))
            .filter(|call| *call != "pause 1/7")
            .collect();
        assert_eq!(done, calls);
        assert_eq!(state(&store, 1), ends);
    }
}

/// The others are somebody else's.
#[test]
fn one_directory_alone() {
    let (store, probe) = (MemoryStore::new(), Probe::default());
    let mut bus = Bus::new(probe, DomId::DOM0, |_| {}).only("vbd3");
    let there = "/local/domain/0/backend/vbd3/2/7";
    store.fill("/f", &[("state", "3")]);
    store.fill(
        there,
        &[("frontend", "/f"), ("online", "1"), ("state", "1")],
    );
    declare(&store, 1);
    front(&store, 1, "3");
    bus.start(&store).unwrap();
    settle(&mut bus, &store);
    front(&store, 1, "3");
    settle(&mut bus, &store);
    assert_eq!(store.text(&format!("{there}/state")), "4");
    assert_eq!((state(&store, 1), bus.counts()), ("1".into(), (1, 1)));
}

#[test]
fn a_directory_that_goes_meanwhile_is_not_brought_back() {
    let (store, probe) = (MemoryStore::new(), Probe::default());
    let mut bus = Bus::new(probe.clone(), DomId::DOM0, |_| {});
    bus.start(&store).unwrap();
    probe.vanishes.set(true);
    declare(&store, 1);
    settle(&mut bus, &store);
    assert_eq!(probe.take(), ["open 1/7", "close 1/7"]);
    assert_eq!(store.list(None, &format!("{BACK}/1")).unwrap(), [""; 0]);
}

#[test]
fn guests_that_write_without_end_do_not_fill_the_clients_queue() {
    let (store, probe) = (MemoryStore::new(), Probe::default());
    let mut bus = Bus::new(probe, DomId::DOM0, |_| {});
    bus.start(&store).unwrap();
    for dom in 1..=200 {
        declare(&store, dom);
    }
    // So many that looking at all devices once brings more than the client holds.
    store.flood("1/7", 40, 500_000);
    for _ in 0..3 {
        bus.step(&store).unwrap();
    }
    assert_eq!(state(&store, 200), "2");
}

#[test]
fn a_directory_that_is_made_anew_gets_a_device_of_its_own() {
    let (store, probe) = (MemoryStore::new(), Probe::default());
    let mut bus = Bus::new(probe.clone(), DomId::DOM0, |_| {});
    bus.start(&store).unwrap();
    declare(&store, 1);
    front(&store, 1, "3");
    settle(&mut bus, &store);
    assert_eq!(probe.take(), ["open 1/7", "connect 1/7"]);
    // Both are done before the bus looks: the toolstack may have put another disk there.
    store.rm(None, &format!("{BACK}/1/7")).unwrap();
    declare(&store, 1);
    settle(&mut bus, &store);
    assert_eq!(probe.take(), ["drop 1/7", "close 1/7", "open 1/7"]);
    assert_eq!(
        (state(&store, 1), store.text(&format!("{BACK}/1/7/feature"))),
        ("2".into(), "1".into())
    );
}
