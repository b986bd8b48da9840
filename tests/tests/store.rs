//! The store scenarios on the fake: the real core, the guest's real client, in one process.

use blkback::DataMove;
use scenarios::fake::{DaemonClient, Machine};
use scenarios::{Outcome, store};
use xen_fake::{Actor, Schedule, Step};
use xen_hal::{Permission, Store, StoreExt, TxId};
use xen_sys::{DomId, Errno};

fn machine() -> Machine {
    Machine::new(DataMove::Copy).expect("an empty host")
}

#[track_caller]
fn pass(outcome: Outcome) {
    if let Err(stop) = outcome {
        panic!("{stop}");
    }
}

#[test]
fn two_sockets() {
    let machine = machine();
    pass(store::tree(
        &machine.store,
        &machine.server.client(),
        "/xlrs-test",
    ));
}

#[test]
fn a_ring_and_a_socket() {
    let machine = machine();
    let guest = machine.create_guest("one").unwrap();
    let before = store::dump(&machine.store).unwrap();
    let root = format!("/local/domain/{}/data/xlrs-test", guest.domain.id());
    pass(store::tree(&guest.store, &machine.store, &root));
    // The path relative to the guest's home is the same place.
    guest.store.write(None, "data/relative", b"x").unwrap();
    guest.store.rm(None, "data/relative").unwrap();
    assert_eq!(store::dump(&machine.store).unwrap(), before);
}

#[test]
fn a_guests_rights() {
    let machine = machine();
    let guest = machine.create_guest("one").unwrap();
    pass(store::rights(
        &machine.store,
        &guest.store,
        guest.domain.id(),
    ));
}

#[test]
fn a_guests_death_leaves_nothing() {
    let machine = machine();
    let before = store::dump(&machine.store).unwrap();
    let guest = machine.create_guest("one").unwrap();
    let other = machine.create_guest("two").unwrap();
    // A node of its own elsewhere goes with it (XSA-419).
    machine.store.mkdir(None, "/shared").unwrap();
    let own = [Permission::owner(guest.domain.id())];
    machine
        .store
        .set_permissions(None, "/shared", &own)
        .unwrap();
    guest.store.watch("/shared", "t").unwrap();
    guest.store.start().unwrap();
    guest.store.write(None, "/shared/node", b"x").unwrap();
    let id = guest.domain.id();
    machine.store.watch("@releaseDomain", "gone").unwrap();
    machine.store.next_event().unwrap();
    machine.destroy_guest(guest).unwrap();
    let event = machine.store.next_event().unwrap();
    assert_eq!(
        event.map(|event| event.path).as_deref(),
        Some("@releaseDomain")
    );
    let home = machine.store.read(None, &format!("/local/domain/{id}"));
    assert_eq!(home.map_err(|error| error.errno), Err(Errno::ENOENT));
    machine.destroy_guest(other).unwrap();
    // Directories that the first guest's toolstack makes stay.
    let mut after = store::dump(&machine.store).unwrap();
    after.retain(|line| before.contains(line) || !line.contains("shared"));
    assert_eq!(after, before);
    machine.finish();
}

/// One client's increments of a counter, a request at a time.
struct Incrementer<S> {
    store: S,
    left: u32,
    open: Option<(TxId, Option<u64>)>,
    conflicts: u32,
}

const COUNTER: &str = "/counter";

impl<S: Store> Incrementer<S> {
    fn new(store: S, left: u32) -> Self {
        Incrementer {
            store,
            left,
            open: None,
            conflicts: 0,
        }
    }

    fn step(&mut self) -> Step {
        self.open = match self.open.take() {
            None => Some((self.store.start().unwrap(), None)),
            Some((tx, None)) => {
                let value: u64 = self.store.read_parsed(Some(tx), COUNTER).unwrap();
                let more = (value + 1).to_string();
                self.store
                    .write(Some(tx), COUNTER, more.as_bytes())
                    .unwrap();
                Some((tx, Some(value)))
            }
            Some((tx, Some(_))) => {
                match self.store.end(tx, true) {
                    Ok(()) => self.left -= 1,
                    Err(error) if error.errno == Errno::EAGAIN => self.conflicts += 1,
                    Err(error) => panic!("{error}"),
                }
                None
            }
        };
        if self.left == 0 {
            Step::Done
        } else {
            Step::Progress
        }
    }
}

#[test]
fn transactions_on_one_counter_lose_nothing() {
    let mut conflicts = 0;
    for seed in 0..60 {
        let machine = machine();
        machine.store.write(None, COUNTER, b"0").unwrap();
        let guests = [(); 3].map(|()| machine.create_guest("g").unwrap());
        let mut list = vec![Permission::owner(DomId::DOM0)];
        list.extend(
            guests
                .iter()
                .map(|guest| Permission::new(guest.domain.id(), xen_hal::Access::Both)),
        );
        machine.store.set_permissions(None, COUNTER, &list).unwrap();
        let mut guests = guests.map(|guest| Incrementer::new(guest.store, 5));
        let mut daemon: Incrementer<DaemonClient> = Incrementer::new(machine.server.client(), 5);
        let [a, b, c] = &mut guests;
        let mut actors = [
            Actor::new("a", || a.step()),
            Actor::new("b", || b.step()),
            Actor::new("c", || c.step()),
            Actor::new("dom0", || daemon.step()),
        ];
        Schedule::new(seed).run(&mut actors, 10_000).unwrap();
        drop(actors);
        let total: u64 = machine.store.read_parsed(None, COUNTER).unwrap();
        assert_eq!(total, 20, "seed {seed}");
        conflicts += guests.iter().map(|guest| guest.conflicts).sum::<u32>();
    }
    assert!(conflicts > 0, "no seed made a conflict");
}
