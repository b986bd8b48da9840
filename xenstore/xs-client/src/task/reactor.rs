//! Readiness for any executor: one thread that waits for descriptors and wakes tasks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

/// What an [`AsyncConnection`](super::AsyncConnection) moves bytes with: a descriptor that does not block,
/// and a runtime that wakes a task when it is ready. Only one task of each kind is registered at a time;
/// a later registration may replace an earlier one.
///
/// Over a runtime with an `AsyncFd`: wait for it to be readable, try [`rustix::io::read`], and begin anew
/// if that would have blocked.
pub trait Transport {
    /// Reads what is there; 0 bytes mean the end.
    fn poll_read(&self, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>>;
    /// Writes as much as there is room for.
    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;
    /// Whether a write must be one whole message, as for the kernel's device.
    fn whole_messages(&self) -> bool {
        false
    }
}

/// The usual transport, which needs no runtime: a thread of this process, started at the first use, waits
/// for all descriptors of this kind.
#[derive(Debug)]
pub struct Polled {
    fd: Arc<OwnedFd>,
    whole_messages: bool,
    reactor: &'static Reactor,
}

impl Polled {
    /// Takes a descriptor that does not block.
    pub fn new(fd: OwnedFd) -> io::Result<Polled> {
        Ok(Polled {
            whole_messages: !crate::open::is_socket(fd.as_fd()),
            fd: Arc::new(fd),
            reactor: Reactor::get()?,
        })
    }

    fn poll(
        &self,
        cx: &Context<'_>,
        flags: PollFlags,
        mut once: impl FnMut() -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match once() {
                Ok(len) => return Poll::Ready(Ok(len)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.reactor.wake_when(&self.fd, flags, cx.waker());
                    return Poll::Pending;
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl Transport for Polled {
    fn poll_read(&self, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll(cx, PollFlags::IN, || {
            rustix::io::read(&self.fd, &mut *bytes)
        })
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(cx, PollFlags::OUT, || rustix::io::write(&self.fd, bytes))
    }

    fn whole_messages(&self) -> bool {
        self.whole_messages
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.reactor.forget(&self.fd);
    }
}

#[derive(Debug)]
struct Reactor {
    /// Each descriptor and direction at most once.
    waiting: Mutex<Vec<Waiting>>,
    /// Interrupts the thread when there is something new to wait for.
    bell: OwnedFd,
}

#[derive(Clone, Debug)]
struct Waiting {
    fd: Arc<OwnedFd>,
    flags: PollFlags,
    waker: Waker,
}

impl Reactor {
    fn get() -> io::Result<&'static Reactor> {
        static REACTOR: OnceLock<Reactor> = OnceLock::new();
        static STARTING: Mutex<()> = Mutex::new(());
        let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reactor) = REACTOR.get() {
            return Ok(reactor);
        }
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let reactor = REACTOR.get_or_init(|| Reactor {
            waiting: Mutex::default(),
            bell,
        });
        let builder = thread::Builder::new().name("xs-client".into());
        builder.spawn(|| reactor.run())?;
        Ok(reactor)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Vec<Waiting>) -> T) -> T {
        work(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wake_when(&self, fd: &Arc<OwnedFd>, flags: PollFlags, waker: &Waker) {
        self.with(|waiting| {
            waiting.retain(|one| !(Arc::ptr_eq(&one.fd, fd) && one.flags == flags));
            waiting.push(Waiting {
                fd: Arc::clone(fd),
                flags,
                waker: waker.clone(),
            });
        });
        self.ring();
    }

    fn forget(&self, fd: &Arc<OwnedFd>) {
        self.with(|waiting| waiting.retain(|one| !Arc::ptr_eq(&one.fd, fd)));
        // So that the thread lets go of the descriptor.
        self.ring();
    }

    fn ring(&self) {
        // It fails only when the bell has rung 2^64 times without being heard.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    fn run(&self) {
        loop {
            let waiting = self.with(|waiting| waiting.clone());
            let mut fds = vec![PollFd::new(&self.bell, PollFlags::IN)];
            fds.extend(waiting.iter().map(|one| PollFd::new(&one.fd, one.flags)));
            // If poll fails, all are woken: who tries his descriptor finds out what is wrong.
            let failed = poll(&mut fds, None).is_err_and(|error| error != Errno::INTR);
            let ready = |index: usize| failed || !fds[index + 1].revents().is_empty();
            let ready: Vec<_> = (0..waiting.len()).filter(|index| ready(*index)).collect();
            // Empties the bell; there is nothing to read if it has not rung.
            let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
            let mut woken = Vec::new();
            self.with(|now| {
                for one in ready.iter().map(|index| &waiting[*index]) {
                    let same = |other: &mut Waiting| {
                        Arc::ptr_eq(&other.fd, &one.fd) && other.flags == one.flags
                    };
                    woken.extend(now.extract_if(.., same).map(|one| one.waker));
                }
            });
            drop(waiting);
            for waker in woken {
                waker.wake();
            }
        }
    }
}
