//! The block scenarios on the fake: the real front end, back end and store daemon in one process, stepped
//! in the order of a seed, with calls that fail and backends that die.

use std::cell::RefCell;

use blkback::DataMove;
use pv_drivers::blk::{Options, Protocol};
use scenarios::fake::{FakeDisk, Machine, MemoryImage};
use scenarios::{Outcome, Stop, block};
use xen_fake::{Call, Schedule};

const IMAGE: &str = "/disk.img";
const IMAGE_MIB: usize = 2;

/// Runs `body` with a connected disk on a fresh host and demands that nothing is left behind afterwards.
fn with_disk(
    data_move: DataMove,
    seed: u64,
    kill_one_in: usize,
    body: impl FnOnce(&mut FakeDisk<'_>, &mut MemoryImage) -> Outcome,
) -> Outcome<usize> {
    let machine = Machine::new(data_move).expect("an empty host");
    let mut image = machine.make_image(IMAGE, IMAGE_MIB << 20);
    let machine = RefCell::new(machine);
    let guest = machine.borrow().create_guest("block").expect("a guest");
    machine
        .borrow()
        .add_disk(&guest, IMAGE, "w")
        .expect("a disk");
    let schedule = Schedule::new(seed);
    let mut disk = FakeDisk::open_killing(&machine, &guest, schedule, kill_one_in)?;
    body(&mut disk, &mut image)?;
    let kills = disk.kills();
    disk.close()?;
    let machine = machine.into_inner();
    machine.destroy_guest(guest).expect("destroy the guest");
    machine.finish();
    Ok(kills)
}

#[test]
fn what_is_written_stands_in_the_image() {
    for data_move in [DataMove::Copy, DataMove::Persistent] {
        for seed in 0..12 {
            let outcome = with_disk(data_move, seed, 0, |disk, image| {
                block::round_trip(disk, image, seed, 1)
            });
            assert_eq!(outcome, Ok(0), "seed {seed}, {data_move:?}");
        }
    }
}

/// What a front end may choose, alone and together; and back to the usual.
#[test]
fn a_disk_is_used_in_every_way() {
    let usual = Options::default();
    let rows = [
        Options {
            protocol: Protocol::X86_32,
            ..usual
        },
        Options {
            protocol: Protocol::X86_32,
            indirect: 0,
            ..usual
        },
        Options { queues: 8, ..usual },
        Options {
            ring_order: 4,
            indirect: 0,
            ..usual
        },
        Options {
            indirect: 256,
            persistent: false,
            ..usual
        },
        Options {
            protocol: Protocol::X86_32,
            queues: 3,
            ring_order: 2,
            indirect: 100,
            persistent: false,
        },
        // No more than is offered.
        Options {
            queues: 100,
            ring_order: 9,
            indirect: 1000,
            ..usual
        },
        usual,
    ];
    for data_move in [DataMove::Copy, DataMove::Persistent] {
        let outcome = with_disk(data_move, 5, 0, |disk, image| {
            for (seed, options) in (6..).zip(rows) {
                disk.reopen(options)?;
                let queues = disk.driver().queues();
                let expected = options.queues.min(8) as usize;
                assert_eq!(queues, expected, "{options:?}");
                let pieces = options.indirect.clamp(11, 256);
                assert_eq!(disk.driver().max_bytes(), usize::from(pieces) * 4096);
                image.with(|bytes| bytes.fill(0));
                block::round_trip(disk, image, seed, 1)?;
            }
            Ok(())
        });
        assert_eq!(outcome, Ok(0), "{data_move:?}");
    }
}

#[test]
fn nothing_beyond_the_end() {
    let outcome = with_disk(DataMove::Copy, 1, 0, |disk, image| {
        block::out_of_range(disk, image)
    });
    assert_eq!(outcome, Ok(0));
}

#[test]
fn a_backend_that_dies_loses_nothing() {
    let mut kills = 0;
    for seed in 0..24 {
        let data_move = if seed % 2 == 0 {
            DataMove::Copy
        } else {
            DataMove::Persistent
        };
        let outcome = with_disk(data_move, seed, 3, |disk, image| {
            block::round_trip(disk, image, seed, 1)
        });
        match outcome {
            Ok(count) => kills += count,
            Err(stop) => panic!("seed {seed}, {data_move:?}: {stop}"),
        }
    }
    assert!(kills > 50, "only {kills} backends died");
}

/// Every call that either side makes, failed one by one: no panic, no hang, no corruption, and all that
/// was granted, mapped or bound comes back.
#[test]
fn any_call_may_fail() {
    let calls = [
        Call::AllocPage,
        Call::Grant,
        Call::EndGrant,
        Call::AllocUnbound,
        Call::BindInterdomain,
        Call::Map,
        Call::Copy,
        Call::Other("image read"),
        Call::Other("image write"),
        Call::Other("image flush"),
    ];
    for data_move in [DataMove::Copy, DataMove::Persistent] {
        for call in calls {
            let mut failures = 0;
            for nth in 1.. {
                assert!(nth < 500, "{call:?} does not end");
                if !fail_nth(data_move, call, nth) {
                    break;
                }
                failures += 1;
            }
            let used = match (call, data_move) {
                (Call::Copy, DataMove::Persistent) => false,
                // The image's flush is asked for once, the rest more often.
                _ => true,
            };
            assert_eq!(
                failures > 0,
                used,
                "{call:?} with {data_move:?}: {failures} failures"
            );
        }
    }
}

/// One small run in which the nth call fails; false if there was no nth call.
fn fail_nth(data_move: DataMove, call: Call, nth: u64) -> bool {
    let machine = Machine::new(data_move).expect("an empty host");
    let image = machine.make_image(IMAGE, 256 << 10);
    let machine = RefCell::new(machine);
    let guest = machine.borrow().create_guest("faulty").expect("a guest");
    machine
        .borrow()
        .add_disk(&guest, IMAGE, "w")
        .expect("a disk");
    let faults = machine.borrow().world.faults();
    faults.fail_nth(call, nth);
    let data = [0x5a; 20 * 4096];
    let mut written = false;
    match FakeDisk::open(&machine, &guest, Schedule::new(nth)) {
        // An error that is told is all that is asked for; a panic would end the test.
        Err(Stop::Failed(_)) => {}
        Err(stop) => panic!("{stop}"),
        Ok(mut disk) => {
            let mut back = [0; 20 * 4096];
            written = disk.write(8, &data).is_ok() && disk.flush().is_ok();
            if written && disk.read(8, &mut back).is_ok() {
                assert!(
                    back == data,
                    "{call:?} {nth}: read something else than was written"
                );
            }
            disk.close().expect("the host comes to rest");
        }
    }
    if written {
        image.with(|bytes| {
            assert!(
                bytes[4096..][..data.len()] == data,
                "{call:?} {nth}: not in the image"
            )
        });
    }
    let reached = !faults.clear();
    // A page whose grant did not end the first time is given back by the next use of the table.
    drop(xen_hal::GrantTable::alloc_page(&guest.domain.grants()));
    let machine = machine.into_inner();
    let dom = guest.domain.id();
    let left = machine.world.leftovers();
    let guests: Vec<_> = left
        .iter()
        .filter(|what| what.starts_with(&format!("domain {dom} ")))
        .collect();
    assert!(guests.is_empty(), "{call:?} {nth}: {guests:?}");
    machine.destroy_guest(guest).expect("destroy the guest");
    machine.finish();
    reached
}
