//! What a hostile guest can make the back end keep: a bound on its memory, whatever the guest does.

mod common;

use blkback::DataMove;
use common::{Front, Guest, Host, indirect, page, request, segment, write_segments};
use xen_fake::Counting;
use xen_hal::EventChannels;
use xen_sys::io::blkif::{OP_DISCARD, OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE, OP_WRITE_BARRIER};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What one device may take, with 8 queues and the most that each can be asked for at a time.
const LIMIT: i64 = 64 << 20;
const QUEUES: usize = 8;

/// Fills every ring with the largest requests and all kinds of nonsense, again and again.
fn attack(host: &mut Host, guest: &Guest, fronts: &mut [Front], rounds: u64) {
    // 256 segments: each request moves a megabyte.
    let data = page(guest, 1);
    let table = page(guest, 0);
    write_segments(&table, &vec![segment(data.gref(), 0, 7); 256]);
    for round in 0..rounds {
        for front in fronts.iter_mut() {
            for n in 0..32 {
                let id = round * 32 + n;
                let request = match n {
                    // More at a time than there are buffers for.
                    0..=3 => indirect(OP_WRITE, id, 0, 256, &[table.gref()]),
                    4 => indirect(OP_READ, id, 0, 256, &[table.gref()]),
                    5 | 20 => request(OP_WRITE_BARRIER, id, 0, &[(data.gref(), 0, 7)]),
                    6..12 => request(OP_DISCARD, id, u64::MAX, &[]),
                    12..20 => request(OP_WRITE, id, 0, &[(data.gref(), 0, 7); 11]),
                    _ => request(OP_FLUSH_DISKCACHE, id, 0, &[]),
                };
                front.send(guest, request);
            }
            // A storm, of which only the first event counts.
            for _ in 0..100 {
                guest.events.notify(front.port).unwrap();
            }
        }
        host.settle();
        for front in fronts.iter_mut() {
            assert_eq!(std::iter::from_fn(|| front.receive()).count(), 32);
        }
    }
}

/// The back end's work is done by the test's own thread, which is the one that is counted.
#[test]
fn memory_is_bounded_and_does_not_grow() {
    for data_move in [DataMove::Copy, DataMove::Persistent] {
        let mut host = Host::new(data_move);
        let guest = Guest::new(&host, "/disk", "w");
        let before = Counting::held();
        let mut fronts = guest.connect_queues(&mut host, QUEUES);
        Counting::forget_most();
        attack(&mut host, &guest, &mut fronts, 1);
        let (most, rest) = (Counting::most(), Counting::held());
        println!(
            "{data_move:?}: at most {} KiB above {} KiB, {} KiB afterwards",
            (most - before) >> 10,
            before >> 10,
            (rest - before) >> 10
        );
        assert!(
            most - before < LIMIT,
            "{data_move:?}: {} bytes",
            most - before
        );
        // The longer attack takes no more: nothing is kept from round to round. The log of the test is.
        attack(&mut host, &guest, &mut fronts, 4);
        let later = Counting::most();
        assert!(
            later < most + (256 << 10),
            "{data_move:?}: {} bytes after one round, {} after five",
            most - before,
            later - before
        );
        let after = Counting::held();
        assert!(
            after < rest + (256 << 10),
            "{data_move:?}: {rest} then {after}"
        );
        drop(fronts);
    }
}
