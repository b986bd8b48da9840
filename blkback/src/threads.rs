//! An engine of threads, for kernels without io_uring and for formats: each thread carries a job out and
//! waits for its end.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::engine::{Done, Engine, Job, Listen, Woken, perform, wait_for};
use crate::storage::Storage;

/// Most threads of one engine. They are started when there is work for them.
const MAX_THREADS: usize = 4;

/// See the module.
pub struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    calls: u64,
}

struct Shared {
    storage: Arc<dyn Storage>,
    state: Mutex<State>,
    work: Condvar,
    bell: OwnedFd,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    done: VecDeque<Done>,
    idle: usize,
    /// The bell was rung and not heard.
    rung: bool,
    end: bool,
}

impl Threads {
    /// An engine on a storage.
    pub fn new(storage: Arc<dyn Storage>) -> io::Result<Threads> {
        Ok(Threads {
            shared: Arc::new(Shared {
                storage,
                state: Mutex::default(),
                work: Condvar::new(),
                bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            }),
            threads: Vec::new(),
            calls: 0,
        })
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                let result = perform(&*self.storage, &job);
                state = self.state();
                state.done.push_back(Done { job, result });
                if !std::mem::replace(&mut state.rung, true) {
                    // It can only fail with a counter at its limit, and then it is readable anyway.
                    let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
                }
            } else if state.end {
                return;
            } else {
                state.idle += 1;
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

impl Engine for Threads {
    fn start(&mut self, job: Job) {
        self.shared.state().jobs.push_back(job);
    }

    fn kick(&mut self) -> io::Result<()> {
        let state = self.shared.state();
        let (waiting, idle) = (state.jobs.len(), state.idle);
        drop(state);
        if waiting == 0 {
            return Ok(());
        }
        let room = MAX_THREADS - self.threads.len();
        for _ in 0..waiting.saturating_sub(idle).min(room) {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new()
                .name("disk".into())
                .spawn(move || shared.run());
            match thread {
                Ok(thread) => self.threads.push(thread),
                // One is enough to go on with.
                Err(_) if !self.threads.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        if idle > 0 {
            self.calls += 1;
            self.shared.work.notify_all();
        }
        Ok(())
    }

    fn finished(&mut self) -> Option<Done> {
        let done = self.shared.state().done.pop_front()?;
        // Its own, at least.
        self.calls += 1;
        Some(done)
    }

    fn wait(
        &mut self,
        event: Listen<'_>,
        stop: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> io::Result<Woken> {
        self.calls += 1;
        let [event, _, rung] = wait_for([event.fd, stop, self.shared.bell.as_fd()], timeout)?;
        if rung {
            self.calls += 1;
            let mut state = self.shared.state();
            let _ = rustix::io::read(&self.shared.bell, &mut [0u8; 8]);
            state.rung = false;
        }
        Ok(Woken {
            event,
            taken: false,
        })
    }

    fn calls(&self) -> u64 {
        self.calls
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            // Those that nobody has begun need not be: they are still on record.
            state.jobs.clear();
            state.end = true;
        }
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Work;
    use crate::storage::testing::Slow;

    #[test]
    fn jobs_run_side_by_side_and_all_end() {
        let mut engine = Threads::new(Arc::new(Slow::default())).unwrap();
        for token in 0..40 {
            engine.start(Job {
                token,
                work: Work::Flush,
                offset: 0,
                data: Vec::new(),
            });
        }
        engine.kick().unwrap();
        let never = eventfd(0, EventfdFlags::empty()).unwrap();
        let mut ended = Vec::new();
        while ended.len() < 40 {
            let woken = engine
                .wait(
                    Listen::to(never.as_fd()),
                    never.as_fd(),
                    Some(Duration::from_secs(20)),
                )
                .unwrap();
            assert!(!woken.event);
            while let Some(done) = engine.finished() {
                done.result.unwrap();
                ended.push(done.job.token);
            }
        }
        ended.sort_unstable();
        assert_eq!(ended, (0..40).collect::<Vec<u16>>());
        assert!(engine.threads.len() > 1);
    }

    #[test]
    fn an_engine_that_is_dropped_waits_for_what_runs() {
        let storage = Arc::new(Slow::default());
        let mut engine = Threads::new(storage.clone()).unwrap();
        engine.start(Job {
            token: 0,
            work: Work::Flush,
            offset: 0,
            data: Vec::new(),
        });
        engine.kick().unwrap();
        while storage.begun() == 0 {
            std::thread::yield_now();
        }
        drop(engine);
        assert_eq!(storage.ended(), storage.begun());
    }
}
