//! A thread for one connection, so that a slow device holds up no other one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use xen_hal::{Error, Result};
use xen_sys::Errno;

/// Wakes the daemon's main loop from a worker.
#[derive(Clone, Debug)]
pub struct Wake(Arc<OwnedFd>);

impl Wake {
    /// A new one; the main loop waits for its descriptor to become readable.
    pub fn new() -> io::Result<Wake> {
        Ok(Wake(Arc::new(counter()?)))
    }

    /// Wakes the main loop.
    pub fn wake(&self) {
        raise(&self.0);
    }

    /// Forgets wake-ups that have come so far.
    pub fn clear(&self) {
        let _ = rustix::io::read(self.0.as_fd(), &mut [0u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How a worker learns that it is to end.
#[derive(Clone, Debug)]
pub struct Stop(Arc<(AtomicBool, OwnedFd)>);

/// Which of the descriptors waited for are ready.
pub type Ready = [bool; 2];

impl Stop {
    fn new() -> io::Result<Stop> {
        Ok(Stop(Arc::new((AtomicBool::new(false), counter()?))))
    }

    /// Whether the worker is to end after what it is doing.
    pub fn requested(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    fn request(&self) {
        self.0.0.store(true, Ordering::Release);
        raise(&self.0.1);
    }

    /// Waits until one of the descriptors can be read or the worker is to end.
    pub fn wait(&self, first: BorrowedFd<'_>, second: Option<BorrowedFd<'_>>) -> Result<Ready> {
        let mut fds = vec![
            PollFd::new(&self.0.1, PollFlags::IN),
            PollFd::from_borrowed_fd(first, PollFlags::IN),
        ];
        fds.extend(second.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(Error::System {
                    op: "poll",
                    object: "a device's descriptors".to_string(),
                    errno: Errno(error.raw_os_error()),
                });
            }
        }
        let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok([ready(1), ready(2)])
    }
}

impl AsFd for Stop {
    /// Readable when the worker is to end, for those who wait by other means than [`wait`](Stop::wait).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.1.as_fd()
    }
}

/// A running thread. Dropping it lets it finish what it is doing and waits for that (XSA-350: nothing of
/// a connection outlives it).
#[derive(Debug)]
pub struct Worker {
    stop: Stop,
    outcome: Arc<Outcome>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Outcome {
    failure: Mutex<Option<Error>>,
    ended: AtomicBool,
}

impl Worker {
    /// Runs `body` in a thread called `name`. The main loop is woken when it ends; if that was by an error
    /// or a panic, it finds it with [`failure`](Self::failure).
    pub fn spawn(
        name: String,
        wake: &Wake,
        body: impl FnOnce(&Stop) -> Result<()> + Send + 'static,
    ) -> Result<Worker> {
        let system = |op| {
            let object = name.clone();
            move |error: io::Error| Error::System {
                op,
                object,
                errno: Errno(error.raw_os_error().unwrap_or(Errno::EIO.0)),
            }
        };
        let stop = Stop::new().map_err(system("eventfd"))?;
        let outcome = Arc::new(Outcome::default());
        let (inner, report, wake) = (stop.clone(), outcome.clone(), wake.clone());
        let what = name.clone();
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                // All that `body` owns is gone when this returns.
                let result = catch_unwind(AssertUnwindSafe(|| body(&inner)));
                let error = match result {
                    Ok(result) => result.err(),
                    Err(_) => Some(Error::System {
                        op: "serve (a bug: the thread panicked)",
                        object: what,
                        errno: Errno::EIO,
                    }),
                };
                *lock(&report.failure) = error;
                report.ended.store(true, Ordering::Release);
                wake.wake();
            })
            .map_err(system("start the thread of"))?;
        Ok(Worker {
            stop,
            outcome,
            thread: Some(thread),
        })
    }

    /// Why the thread ended early, if it did.
    pub fn failure(&self) -> Option<Error> {
        lock(&self.outcome.failure).clone()
    }

    /// Asks the thread to end after what it is doing; true once it has ended. The main loop is woken then.
    pub fn stop(&self) -> bool {
        self.stop.request();
        self.outcome.ended.load(Ordering::Acquire)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            // Its panic was caught and reported.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn counter() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

fn raise(fd: &OwnedFd) {
    // The only failure is a counter at its limit, and then the descriptor is readable anyway.
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_ends_when_dropped() {
        let wake = Wake::new().unwrap();
        let idle = wake.clone();
        let worker = Worker::spawn("test".into(), &wake, move |stop| {
            while !stop.requested() {
                stop.wait(idle.as_fd(), None)?;
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(worker.failure(), None);
        assert!(!worker.outcome.ended.load(Ordering::Acquire));
        while !worker.stop() {
            std::thread::yield_now();
        }
        drop(worker);
    }

    #[test]
    fn a_failure_and_a_panic_wake_the_main_loop() {
        for panics in [false, true] {
            let wake = Wake::new().unwrap();
            let worker = Worker::spawn("test".into(), &wake, move |_| {
                assert!(!panics, "as the test wants");
                Err(Error::NoGrants)
            })
            .unwrap();
            poll(&mut [PollFd::new(&wake, PollFlags::IN)], None).unwrap();
            assert_eq!(worker.failure() == Some(Error::NoGrants), !panics);
            assert!(worker.failure().is_some());
        }
    }
}
