//! The load of `cargo xtask bench blk-native`: a guest in this process, whose pages and rings are real memory, keeps
//! requests in flight on a real file; blkback serves it in a thread with io_uring. Prints requests a second.
//!
//! With `direct` the file goes by the page cache. With `sleep` the guest waits for each event asleep; else it looks
//! at its ring again and again, as one with a processor of its own may.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blkback::{
    Allowance, Buffer, Cache, Connect, DataMove, FileStorage, Limits, Link, MAX_INDIRECT, Progress,
    Protocol, RingInfo, Storage, Uring, Woken,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use xen_backend::DeviceId;
use xen_fake::World;
use xen_hal::{EventChannels, Lease, Result};
use xen_ring::{FrontRing, SharedMemoryExt};
use xen_sys::io::blkif;
use xen_sys::{DomId, PAGE_SIZE, Plain, Port};

/// One end of an event channel: an eventfd is a hypercall to the peer, another a pending bit.
struct Bell {
    own: OwnedFd,
    peer: OwnedFd,
}

/// What both ends call theirs.
const PORT: Port = Port(1);

impl Bell {
    fn pair() -> std::io::Result<[Bell; 2]> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let (a, b) = (eventfd(0, flags)?, eventfd(0, flags)?);
        let front = Bell {
            own: a.try_clone()?,
            peer: b.try_clone()?,
        };
        Ok([front, Bell { own: b, peer: a }])
    }
}

impl EventChannels for Bell {
    fn alloc_unbound(&self, _: DomId) -> Result<Port> {
        Ok(PORT)
    }
    fn bind_interdomain(&self, _: DomId, _: Port) -> Result<Port> {
        Ok(PORT)
    }
    fn close(&self, _: Port) -> Result<()> {
        Ok(())
    }
    fn notify(&self, _: Port) -> Result<()> {
        // It can only fail with a counter at its limit, and then it is readable anyway.
        let _ = rustix::io::write(&self.peer, &1u64.to_ne_bytes());
        Ok(())
    }
    fn next_pending(&self) -> Result<Option<Port>> {
        let read = rustix::io::read(&self.own, &mut [0u8; 8]);
        Ok(read.is_ok().then_some(PORT))
    }
    fn unmask(&self, _: Port) -> Result<()> {
        Ok(())
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.own.as_fd()
    }
}

const USAGE: &str = "native FILE read|write SIZE DEPTH SECONDS [direct] [sleep]";

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [file, op, size, depth, seconds, how @ ..] = words.as_slice() else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    let has = |word: &str| how.iter().any(|w| w == word);
    let load = Load {
        write: op == "write",
        size: size.parse().expect("a size"),
        depth: depth.parse().expect("a depth"),
        time: Duration::from_secs_f64(seconds.parse().expect("seconds")),
        cache: match has("direct") {
            true => Cache::Direct,
            false => Cache::Page,
        },
        sleeps: has("sleep"),
    };
    println!("{:.0}", load.run(Path::new(file)));
}

struct Load {
    write: bool,
    size: usize,
    depth: usize,
    time: Duration,
    cache: Cache,
    sleeps: bool,
}

impl Load {
    /// Requests a second.
    fn run(&self, file: &Path) -> f64 {
        let world = World::new();
        let guest = world.create_domain();
        let grants = guest.grants();
        let storage: Arc<dyn Storage> =
            Arc::new(FileStorage::open(file, !self.write, self.cache).expect("open the file"));
        let [front_bell, back_bell] = Bell::pair().expect("events");
        let stop = Stop {
            requested: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::CLOEXEC).expect("an event"),
        };
        let ring = Lease::fresh(&grants, DomId::DOM0).expect("a page");
        let connect = Connect {
            id: DeviceId {
                dom: guest.id(),
                index: 51712,
            },
            protocol: Protocol::Native,
            persistent: true,
            rings: vec![RingInfo {
                grefs: vec![ring.gref()],
                port: PORT,
            }],
            limits: Limits {
                sectors_512: storage.sectors_512(),
                sector_size: 512,
                read_only: false,
                discard: false,
                indirect: MAX_INDIRECT,
            },
            allowance: Allowance::default(),
            resume: false,
        };
        let front = FrontRing::<_, blkif::Request, [u8; 16]>::new(ring).expect("a ring");
        let places = storage.sectors_512() / (self.size as u64 / 512);
        let foreign = world.dom0().foreign();
        std::thread::scope(|scope| {
            scope.spawn(|| serve(&connect, storage, foreign, back_bell, &stop));
            let rate = self.keep_going(&grants, front, &front_bell, places);
            stop.requested.store(true, Ordering::Release);
            rustix::io::write(&stop.bell, &1u64.to_ne_bytes()).expect("an event");
            rate
        })
    }

    /// The guest: requests of its own pages, which it grants once.
    fn keep_going(
        &self,
        grants: &xen_fake::Grants,
        mut ring: FrontRing<Lease<xen_fake::Grants>, blkif::Request, [u8; 16]>,
        bell: &Bell,
        places: u64,
    ) -> f64 {
        let pages = self.size.div_ceil(PAGE_SIZE);
        let fresh = || Lease::fresh(grants, DomId::DOM0).expect("a page");
        let slots: Vec<(Vec<_>, _)> = (0..self.depth)
            .map(|_| ((0..pages).map(|_| fresh()).collect(), fresh()))
            .collect();
        let requests: Vec<blkif::Request> = slots
            .iter()
            .enumerate()
            .map(|(id, (pages, table))| self.request(id as u64, pages, table))
            .collect();
        let mut sectors = self.sectors(places).into_iter().cycle();
        let mut done = 0u64;
        let mut idle: Vec<usize> = (0..self.depth).collect();
        // The first tenth has pages mapped.
        let (begin, mut counted, mut rounds) = (Instant::now(), None, 0u32);
        loop {
            for id in idle.drain(..) {
                let mut request = requests[id];
                let sector = sectors.next().expect("no end");
                // Where both kinds of request have it.
                request.as_bytes_mut()[16..24].copy_from_slice(&sector.to_le_bytes());
                assert!(ring.push(request), "a slot for each");
            }
            if ring.publish() {
                bell.notify(PORT).expect("an event");
            }
            loop {
                while let Some(response) = ring.pop().expect("a sane back end") {
                    assert_eq!(response[10..12], [0, 0], "a request failed");
                    idle.push(response[0].into());
                }
                if !idle.is_empty() {
                    break;
                }
                if !self.sleeps {
                    std::hint::spin_loop();
                } else if !ring.wait_for_more() {
                    let mut fds = [PollFd::new(bell, PollFlags::IN)];
                    poll(&mut fds, None).expect("poll");
                    bell.next_pending().expect("an event");
                }
            }
            done += idle.len() as u64;
            // The clock is not free.
            rounds = rounds.wrapping_add(1);
            if !rounds.is_multiple_of(16) {
                continue;
            }
            let now = begin.elapsed();
            match counted {
                None if now > self.time / 10 => counted = Some((now, done)),
                Some((then, before)) if now > self.time => {
                    return (done - before) as f64 / (now - then).as_secs_f64();
                }
                _ => {}
            }
        }
    }

    /// Where to, diced before the clock runs.
    fn sectors(&self, places: u64) -> Vec<u64> {
        let mut dice = 0x2545_f491_4f6c_dd1d_u64;
        let roll = |_| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            dice % places * (self.size as u64 / 512)
        };
        (0..1 << 16).map(roll).collect()
    }

    fn request<G: xen_hal::GrantTable>(
        &self,
        id: u64,
        pages: &[Lease<G>],
        table: &Lease<G>,
    ) -> blkif::Request {
        let operation = if self.write {
            blkif::OP_WRITE
        } else {
            blkif::OP_READ
        };
        let sectors = (self.size.min(PAGE_SIZE) / 512 - 1) as u8;
        let segment = |page: &Lease<G>| blkif::Segment {
            gref: page.gref(),
            first_sect: 0,
            last_sect: sectors,
            ..blkif::Segment::ZERO
        };
        let mut request = blkif::Request {
            operation,
            nr_segments: pages.len() as u8,
            id,
            ..blkif::Request::ZERO
        };
        if pages.len() <= request.seg.len() {
            for (to, page) in request.seg.iter_mut().zip(pages) {
                *to = segment(page);
            }
            return request;
        }
        for (n, page) in pages.iter().enumerate() {
            table.write(8 * n, segment(page));
        }
        let mut indirect = blkif::RequestIndirect {
            operation: blkif::OP_INDIRECT,
            indirect_op: operation,
            nr_segments: pages.len() as u16,
            id,
            ..blkif::RequestIndirect::ZERO
        };
        indirect.indirect_grefs[0] = table.gref();
        let bytes = indirect.as_bytes();
        request = blkif::Request::ZERO;
        request.as_bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        request
    }
}

/// The back end, as the daemon's worker has it.
fn serve(
    connect: &Connect,
    storage: Arc<dyn Storage>,
    foreign: xen_fake::Foreign,
    bell: Bell,
    stop: &Stop,
) {
    let link = Link::new(connect, 0, foreign, bell).expect("map the ring");
    let engine = Uring::new(storage.clone(), link.capacity(), None).expect("io_uring");
    let journal = Arc::new(Buffer::new(link.journal_size()));
    let log = Arc::new(|line: &str| eprintln!("{line}"));
    let mut served = link
        .serve(
            journal,
            Box::new(engine),
            DataMove::Persistent,
            storage,
            log,
        )
        .expect("serve");
    let mut woken = Woken {
        event: true,
        taken: false,
    };
    while !stop.requested.load(Ordering::Acquire) {
        match served.work(woken).expect("work") {
            Progress::More => woken = Woken::default(),
            Progress::Idle => woken = served.wait(stop.bell.as_fd()).expect("wait"),
        }
    }
}

/// How the back end learns that the guest has enough.
struct Stop {
    requested: AtomicBool,
    bell: OwnedFd,
}
