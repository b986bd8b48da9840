//! The load of `cargo xtask bench blk-native`: a guest in this process, whose pages and rings are real memory, keeps
//! requests in flight on a real file; blkback serves it in a thread with io_uring. Prints requests a second.
//!
//! `native FILE read|write SIZE DEPTH SECONDS`
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blkback::{
    Allowance, Buffer, Cache, Connect, DataMove, FileStorage, Limits, Link, MAX_INDIRECT, Progress,
    Protocol, RingInfo, Storage, Uring, Woken,
};
use rustix::event::{PollFd, PollFlags, poll};
use xen_backend::DeviceId;
use xen_fake::World;
use xen_hal::{EventChannels, Lease, Result};
use xen_ring::{FrontRing, SharedMemoryExt};
use xen_sys::io::blkif;
use xen_sys::{DomId, PAGE_SIZE, Plain, Port};

/// One end of an event channel: a stream that a port's name goes over.
struct Bell(UnixStream);

/// What all ports are called.
const PORT: [u8; 4] = [1, 0, 0, 0];

impl EventChannels for Bell {
    fn alloc_unbound(&self, _: DomId) -> Result<Port> {
        Ok(Port(1))
    }
    fn bind_interdomain(&self, _: DomId, _: Port) -> Result<Port> {
        Ok(Port(1))
    }
    fn close(&self, _: Port) -> Result<()> {
        Ok(())
    }
    fn notify(&self, _: Port) -> Result<()> {
        // A full stream has an event in it already.
        let _ = rustix::io::write(&self.0, &PORT);
        Ok(())
    }
    fn next_pending(&self) -> Result<Option<Port>> {
        let mut names = [0; 64];
        let read = rustix::io::read(&self.0, &mut names);
        Ok(read.is_ok_and(|len| len > 0).then_some(Port(1)))
    }
    fn unmask(&self, _: Port) -> Result<()> {
        Ok(())
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [file, op, size, depth, seconds] = words.as_slice() else {
        eprintln!("native FILE read|write SIZE DEPTH SECONDS");
        std::process::exit(2);
    };
    let load = Load {
        write: op == "write",
        size: size.parse().expect("a size"),
        depth: depth.parse().expect("a depth"),
        time: Duration::from_secs_f64(seconds.parse().expect("seconds")),
    };
    println!("{:.0}", load.run(Path::new(file)));
}

struct Load {
    write: bool,
    size: usize,
    depth: usize,
    time: Duration,
}

impl Load {
    /// Requests a second.
    fn run(&self, file: &Path) -> f64 {
        let world = World::new();
        let guest = world.create_domain();
        let grants = guest.grants();
        let storage: Arc<dyn Storage> =
            Arc::new(FileStorage::open(file, !self.write, Cache::Page).expect("open the file"));
        let (front_bell, back_bell) = UnixStream::pair().expect("a pair of sockets");
        let (stop, stopper) = UnixStream::pair().expect("a pair of sockets");
        for end in [&front_bell, &back_bell] {
            end.set_nonblocking(true).expect("not blocking");
        }
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
                port: Port(1),
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
            scope.spawn(|| serve(&connect, storage, foreign, Bell(back_bell), &stop));
            let rate = self.keep_going(&grants, front, &Bell(front_bell), places);
            drop(stopper);
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
        let (mut dice, mut done) = (0x2545_f491_4f6c_dd1d_u64, 0u64);
        let mut idle: Vec<usize> = (0..self.depth).collect();
        // The first tenth has pages mapped.
        let (begin, mut counted) = (Instant::now(), None);
        loop {
            for id in idle.drain(..) {
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
                let mut request = requests[id];
                let sector = dice % places * (self.size as u64 / 512);
                // Where both kinds of request have it.
                request.as_bytes_mut()[16..24].copy_from_slice(&sector.to_le_bytes());
                assert!(ring.push(request), "a slot for each");
            }
            if ring.publish() {
                bell.notify(Port(1)).expect("an event");
            }
            loop {
                while let Some(response) = ring.pop().expect("a sane back end") {
                    assert_eq!(response[10..12], [0, 0], "a request failed");
                    idle.push(response[0].into());
                }
                if !idle.is_empty() {
                    break;
                }
                if !ring.wait_for_more() {
                    let mut fds = [PollFd::new(bell, PollFlags::IN)];
                    poll(&mut fds, None).expect("poll");
                    bell.next_pending().expect("an event");
                }
            }
            done += idle.len() as u64;
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
    stop: &UnixStream,
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
    loop {
        match served.work(woken).expect("work") {
            Progress::More => woken = Woken::default(),
            Progress::Idle => {
                woken = served.wait(stop.as_fd()).expect("wait");
                // The guest has enough when its end of `stop` is closed.
                let mut over = [PollFd::new(stop, PollFlags::IN)];
                if !woken.event && poll(&mut over, Some(&Default::default())) == Ok(1) {
                    return;
                }
            }
        }
    }
}
