//! The io_uring engine on real files: transfers on the spot and by the ring, and the event channel's part.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blkback::{
    Buffer, Cache, Done, Engine, FileStorage, Job, Listen, Memory, Piece, Storage, Uring, Woken,
    Work,
};
use xen_ring::SharedMemoryExt;

const BLOCK: usize = 4096;
const BLOCKS: usize = 256;
const LONG: Duration = Duration::from_secs(20);

/// An image in a folder, removed at the end.
struct Image(PathBuf);

impl Image {
    fn new(folder: &Path, name: &str) -> Image {
        let path = folder.join(format!("blkback-uring-{name}-{}", std::process::id()));
        let bytes: Vec<u8> = (0..BLOCKS).flat_map(|n| [n as u8; BLOCK]).collect();
        std::fs::write(&path, bytes).unwrap();
        Image(path)
    }

    fn engine(&self, read_only: bool, cache: Cache) -> Uring {
        let storage: Arc<dyn Storage> =
            Arc::new(FileStorage::open(&self.0, read_only, cache).unwrap());
        Uring::new(storage, 64, None).unwrap()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn job(token: u16, work: Work, block: usize, memory: &Memory) -> Job {
    Job {
        token,
        work,
        offset: (block * BLOCK) as u64,
        // In two parts, as segments are.
        data: vec![
            Piece::new(memory.clone(), 0, 1024),
            Piece::new(memory.clone(), 1024, BLOCK - 1024),
        ],
    }
}

/// Waits for the end of `count` jobs.
fn all_done(engine: &mut Uring, count: usize) -> Vec<Done> {
    let (never, _peer) = UnixStream::pair().unwrap();
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(std::iter::from_fn(|| engine.finished()));
        if all.len() < count {
            let listen = Listen::to(never.as_fd());
            engine.wait(listen, never.as_fd(), Some(LONG)).unwrap();
        }
    }
    all
}

/// The same for jobs that go well: their tokens, sorted.
fn ended(engine: &mut Uring, count: usize) -> Vec<u16> {
    let token = |done: Done| {
        done.result.unwrap();
        done.job.token
    };
    let mut tokens: Vec<u16> = all_done(engine, count).into_iter().map(token).collect();
    tokens.sort_unstable();
    tokens
}

#[test]
fn batches_of_every_size_in_memory_and_on_disk() {
    let disk = std::env::current_dir().unwrap();
    for (folder, name, cache) in [
        (Path::new("/dev/shm"), "memory", Cache::Page),
        (&disk, "disk", Cache::Page),
        (&disk, "direct", Cache::Direct),
    ] {
        let image = Image::new(folder, name);
        let mut engine = image.engine(false, cache);
        for count in [1usize, 2, 17, 64] {
            let memory: Vec<Memory> = (0..count)
                .map(|_| Arc::new(Buffer::new(BLOCK)) as Memory)
                .collect();
            let all: Vec<u16> = (0..count as u16).collect();
            for (n, memory) in memory.iter().enumerate() {
                engine.start(job(n as u16, Work::Read, 3 * n, memory));
            }
            engine.kick().unwrap();
            assert_eq!(ended(&mut engine, count), all, "{name}");
            for (n, memory) in memory.iter().enumerate() {
                let mut bytes = [0; BLOCK];
                memory.read_bytes(0, &mut bytes);
                assert_eq!(bytes, [(3 * n) as u8; BLOCK], "{name} {count} {n}");
                memory.write_bytes(0, &[!n as u8; BLOCK]);
                engine.start(job(n as u16, Work::Write, 3 * n, memory));
            }
            engine.kick().unwrap();
            assert_eq!(ended(&mut engine, count), all, "{name}");
            let mut bytes = std::fs::read(&image.0).unwrap();
            for n in 0..count {
                let block = 3 * n * BLOCK..(3 * n + 1) * BLOCK;
                assert!(
                    bytes[block.clone()].iter().all(|&b| b == !n as u8),
                    "{name}"
                );
                bytes[block].fill(3 * n as u8);
            }
            // What nobody wrote is as it was; then all is.
            let before: Vec<u8> = (0..BLOCKS).flat_map(|n| [n as u8; BLOCK]).collect();
            assert!(bytes == before, "{name}: something else was written");
            std::fs::write(&image.0, before).unwrap();
        }
    }
}

#[test]
fn a_batch_takes_few_system_calls() {
    let image = Image::new(Path::new("/dev/shm"), "calls");
    let mut engine = image.engine(false, Cache::Page);
    let memory: Memory = Arc::new(Buffer::new(BLOCK));
    for (work, count, most) in [
        (Work::Read, 1, 1),
        (Work::Write, 1, 1),
        // Here it is learned whether the kernel does reads of such a file on the spot.
        (Work::Read, 32, 1),
        // If not, it is set up now, otherwise for the first batch of writes.
        (Work::Read, 32, 2),
        (Work::Read, 32, 1),
        (Work::Write, 32, 2),
        (Work::Write, 32, 1),
    ] {
        let before = engine.calls();
        for n in 0..count {
            engine.start(job(n, work, usize::from(n), &memory));
        }
        engine.kick().unwrap();
        let calls = engine.calls() - before;
        assert_eq!(ended(&mut engine, count.into()).len(), usize::from(count));
        assert!(calls <= most, "{work:?} {count}: {calls}");
    }
}

#[test]
fn errors_reach_the_job_that_they_are_of() {
    let image = Image::new(Path::new("/dev/shm"), "errors");
    let mut engine = image.engine(true, Cache::Page);
    let memory: Memory = Arc::new(Buffer::new(BLOCK));
    for count in [1, 5] {
        for n in 0..count {
            engine.start(job(n, Work::Write, 0, &memory));
        }
        engine.kick().unwrap();
        for done in all_done(&mut engine, count.into()) {
            assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
    }
    // The file has become shorter: nothing is made up.
    File::options()
        .write(true)
        .open(&image.0)
        .unwrap()
        .set_len(6000)
        .unwrap();
    for count in [1, 2] {
        for n in 0..count {
            engine.start(job(n, Work::Read, 1, &memory));
        }
        engine.kick().unwrap();
        for done in all_done(&mut engine, count.into()) {
            let error = done.result.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
        }
    }
}

#[test]
fn the_event_channel_is_unmasked_and_read_by_the_wait() {
    let image = Image::new(Path::new("/dev/shm"), "events");
    let mut engine = image.engine(true, Cache::Page);
    assert!(engine.merges());
    // The peer plays the kernel: it takes names of ports to unmask and gives those that have fired.
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let (stop, mut stopper) = UnixStream::pair().unwrap();
    for stream in [&ours, &stop, &peer] {
        stream.set_nonblocking(true).unwrap();
    }
    let port = 77u32.to_ne_bytes();
    let listen = |masked| Listen {
        fd: ours.as_fd(),
        port: Some(port),
        masked,
    };
    let (nothing, taken) = (
        Woken::default(),
        Woken {
            event: true,
            taken: true,
        },
    );
    let short = Some(Duration::from_millis(5));
    for round in 0..200 {
        let masked = round > 0;
        if round % 3 == 0 {
            assert_eq!(
                engine.wait(listen(masked), stop.as_fd(), short).unwrap(),
                nothing
            );
        }
        peer.write_all(&port).unwrap();
        let before = engine.calls();
        let masked = masked && round % 3 != 0;
        assert_eq!(
            engine
                .wait(listen(masked), stop.as_fd(), Some(LONG))
                .unwrap(),
            taken
        );
        assert_eq!(engine.calls() - before, 1);
        let mut name = [0; 4];
        assert_eq!(peer.read(&mut name).ok(), (round > 0).then_some(4));
        assert!(round == 0 || name == port);
    }
    stopper.write_all(b"x").unwrap();
    assert_eq!(
        engine.wait(listen(true), stop.as_fd(), Some(LONG)).unwrap(),
        nothing
    );
    // Nobody listens any more: what comes now is for whoever has the descriptor next.
    drop(engine);
    peer.write_all(&port).unwrap();
    let mut name = [0; 8];
    assert_eq!((&ours).read(&mut name).unwrap(), 4);
    // A channel that cannot be unmasked is an error, not a silence.
    let mut engine = image.engine(true, Cache::Page);
    drop((peer, stopper));
    assert!(engine.wait(listen(true), stop.as_fd(), short).is_err());
}
