//! A queue's account of what it has taken and not answered, in memory that outlives the process.
//!
//! A response overwrites the ring slot of a request that may still be running, so what runs is recorded here.
//! The order of the stores is what makes it right whenever the process is killed:
//! 1. a request's record is written, then the count of requests taken goes up, then it is begun;
//! 2. when it has ended, its record says which response it becomes, then the response is put into the ring;
//! 3. the ring's own producer index publishes it: from then on the record means nothing;
//! 4. the record is cleared.
//!
//! So who comes next runs again what has no outcome, answers what has one that was not published, and never
//! runs a write again that the guest knows to be done.

use std::sync::atomic::Ordering;

use xen_backend::account::{COUNTERS, Count, MAGIC};
use xen_ring::SharedMemoryExt;

use crate::memory::Memory;
use crate::request::blkif_request;
use crate::ring::SlotBytes;

/// What a journal was written for: another connection's means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The guest.
    pub dom: u16,
    /// The device.
    pub index: u32,
    /// The queue.
    pub queue: u32,
    /// The ring's first page.
    pub gref: u32,
    /// The guest's event channel.
    pub port: u32,
    /// Slots in the ring.
    pub capacity: u32,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// It was begun.
    Running,
    /// It has ended, and this is to be the answer.
    Ended {
        /// `BLKIF_RSP_*`.
        status: i16,
    },
}

/// The account of one queue.
pub struct Journal {
    memory: Memory,
    capacity: u32,
}

/// Offsets of the head.
const OWNER: usize = 8;
const TAKEN: usize = 32;
/// Records: state, the index of the request or of its response, the slot's bytes.
const RECORDS: usize = 256;
const RECORD: usize = 128;
const BYTES: usize = 8;

const FREE: u32 = 0;
const RUNNING: u32 = 1;
const ENDED: u32 = 2;

const _: () =
    assert!(BYTES + blkif_request::MAX <= RECORD && COUNTERS + 8 * Count::ALL.len() <= RECORDS);

impl Journal {
    /// Bytes of the journal of a ring with so many slots.
    pub fn size(capacity: u32) -> usize {
        RECORDS + capacity as usize * RECORD
    }

    /// Begins an account in `memory` of [`size`](Self::size) bytes: nothing is running, and requests up to
    /// `taken` were seen to.
    pub fn create(memory: Memory, owner: Owner, taken: u32) -> Journal {
        let journal = Journal {
            memory,
            capacity: owner.capacity,
        };
        // Not believed before it is whole.
        journal.memory.write::<u64>(0, 0);
        for at in (8..journal.memory.len()).step_by(8) {
            journal.memory.write::<u64>(at, 0);
        }
        for (n, word) in words(owner).into_iter().enumerate() {
            journal.memory.write::<u32>(OWNER + 4 * n, word);
        }
        journal.set_taken(taken);
        journal.set(Count::Slots, owner.capacity.into());
        journal.memory.write::<u64>(0, MAGIC);
        journal
    }

    /// The account that another process left in `memory`, if it is one of this very connection.
    pub fn resume(memory: Memory, owner: Owner) -> Option<Journal> {
        if memory.len() < Journal::size(owner.capacity) || memory.read::<u64>(0) != MAGIC {
            return None;
        }
        let same = |(n, word)| memory.read::<u32>(OWNER + 4 * n) == word;
        words(owner)
            .into_iter()
            .enumerate()
            .all(same)
            .then(|| Journal {
                capacity: owner.capacity,
                memory,
            })
    }

    /// Nobody is to go on with it.
    pub fn forget(&self) {
        self.memory.write::<u64>(0, 0);
    }

    /// How many requests were taken from the ring, as a ring index.
    pub fn taken(&self) -> u32 {
        self.memory.load_u32(TAKEN, Ordering::Acquire)
    }

    /// Notes that all requests before `index` were taken and recorded.
    pub fn set_taken(&self, index: u32) {
        self.memory.store_u32(TAKEN, index, Ordering::Release);
    }

    /// Records a request that is about to begin: the one with this ring index.
    pub fn begin(&self, place: u16, bytes: &SlotBytes, index: u32) {
        let at = self.record(place);
        self.memory.write_bytes(at + BYTES, bytes);
        self.memory.store_u32(at + 4, index, Ordering::Release);
        self.memory.store_u32(at, RUNNING, Ordering::Release);
    }

    /// Records how a request has ended and which response it is about to become.
    pub fn end(&self, place: u16, status: i16, response: u32) {
        let at = self.record(place);
        self.memory.store_u32(at + 4, response, Ordering::Release);
        let status = u32::from(status as u16) << 16;
        self.memory.store_u32(at, ENDED | status, Ordering::Release);
    }

    /// Clears a record whose response is published.
    pub fn clear(&self, place: u16) {
        self.memory
            .store_u32(self.record(place), FREE, Ordering::Release);
    }

    /// What was left unanswered, when the ring's producer of responses stood at `published`. Records that
    /// mean nothing any more are cleared.
    pub fn unanswered(&self, published: u32) -> Vec<(u16, Record, SlotBytes)> {
        let (mut left, taken) = (Vec::new(), self.taken());
        for place in 0..self.capacity as u16 {
            let at = self.record(place);
            let state = self.memory.load_u32(at, Ordering::Acquire);
            let index = self.memory.load_u32(at + 4, Ordering::Acquire);
            let record = match state & 0xffff {
                // One that was not counted as taken is still in the ring.
                RUNNING if taken.wrapping_sub(index).wrapping_sub(1) < self.capacity => {
                    Record::Running
                }
                // A response that is more than a ring ahead is one long past.
                ENDED if index.wrapping_sub(published) < self.capacity => Record::Ended {
                    status: (state >> 16) as u16 as i16,
                },
                FREE => continue,
                _ => {
                    self.clear(place);
                    continue;
                }
            };
            let mut bytes = [0; blkif_request::MAX];
            self.memory.read_bytes(at + BYTES, &mut bytes);
            left.push((place, record, bytes));
        }
        left
    }

    /// Adds to a count.
    pub fn add(&self, count: Count, more: u64) {
        self.set(count, self.count(count).wrapping_add(more));
    }

    /// Sets a count.
    pub fn set(&self, count: Count, value: u64) {
        self.memory
            .write::<u64>(COUNTERS + 8 * count as usize, value);
    }

    /// A count.
    pub fn count(&self, count: Count) -> u64 {
        self.memory.read(COUNTERS + 8 * count as usize)
    }

    fn record(&self, place: u16) -> usize {
        assert!(u32::from(place) < self.capacity);
        RECORDS + usize::from(place) * RECORD
    }
}

fn words(owner: Owner) -> [u32; 6] {
    let Owner {
        dom,
        index,
        queue,
        gref,
        port,
        capacity,
    } = owner;
    [dom.into(), index, queue, gref, port, capacity]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Buffer;
    use std::sync::Arc;

    const OWNER_1: Owner = Owner {
        dom: 3,
        index: 51712,
        queue: 0,
        gref: 8,
        port: 9,
        capacity: 4,
    };

    fn memory() -> Memory {
        Arc::new(Buffer::new(Journal::size(4)))
    }

    #[test]
    fn only_the_same_connection_goes_on() {
        let memory = memory();
        assert!(Journal::resume(memory.clone(), OWNER_1).is_none());
        let journal = Journal::create(memory.clone(), OWNER_1, 17);
        journal.set_taken(20);
        let again = Journal::resume(memory.clone(), OWNER_1).expect("the same");
        assert_eq!(again.taken(), 20);
        for other in [
            Owner { dom: 4, ..OWNER_1 },
            Owner { gref: 1, ..OWNER_1 },
            Owner { port: 1, ..OWNER_1 },
            Owner {
                capacity: 2,
                ..OWNER_1
            },
        ] {
            assert!(Journal::resume(memory.clone(), other).is_none());
        }
        let small: Memory = Arc::new(Buffer::new(1));
        let big = Owner {
            capacity: 512,
            ..OWNER_1
        };
        Journal::create(
            small.clone(),
            Owner {
                capacity: 8,
                ..OWNER_1
            },
            0,
        );
        assert!(Journal::resume(small, big).is_none());
    }

    #[test]
    fn what_is_unanswered() {
        let journal = Journal::create(memory(), OWNER_1, 0);
        let bytes = |n| [n; 112];
        for place in 0..4 {
            journal.begin(place, &bytes(place as u8), u32::from(place));
        }
        // Not counted as taken: it will be taken from the ring again.
        assert_eq!(journal.unanswered(0), []);
        for place in 0..4 {
            journal.begin(place, &bytes(place as u8), u32::from(place));
        }
        journal.set_taken(4);
        let base = u32::MAX;
        journal.end(0, -1, base);
        journal.end(1, 0, base.wrapping_add(1));
        journal.end(2, -2, base.wrapping_sub(1));
        // Response `base` was published, the next one was not.
        let left = journal.unanswered(0);
        assert_eq!(
            left,
            [
                (1, Record::Ended { status: 0 }, bytes(1)),
                (3, Record::Running, bytes(3)),
            ]
        );
        journal.clear(1);
        journal.clear(3);
        assert_eq!(journal.unanswered(0), []);
        let fresh = Journal::create(journal.memory.clone(), OWNER_1, 0);
        fresh.begin(2, &bytes(9), 5);
        fresh.end(2, -2, 5);
        let expected = (2, Record::Ended { status: -2 }, bytes(9));
        assert_eq!(fresh.unanswered(5), [expected]);
    }

    #[test]
    fn counts() {
        let journal = Journal::create(memory(), OWNER_1, 0);
        journal.add(Count::Replayed, 2);
        journal.add(Count::Replayed, 3);
        journal.set(Count::Done, 7);
        let counts = [Count::Done, Count::Errors, Count::Replayed];
        assert_eq!(counts.map(|count| journal.count(count)), [7, 0, 5]);
    }
}
