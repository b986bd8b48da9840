//! What the tasks of a connection share: the client, and who waits for it.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use xen_sys::Errno;
use xs_wire::{Client, ProtocolError, Request, RequestId, TxId, WatchEvent};

use super::reactor::Transport;
use crate::connection::errno_of;

/// Most reads of one poll; then the task lets others go on.
const READS: usize = 64;

#[derive(Debug)]
pub(super) struct Shared<T> {
    io: T,
    state: Mutex<State>,
    signal: Arc<Signal>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    client: Client,
    lost: Option<Errno>,
    /// What dropped watches and transactions still have to say, when there is room for a request.
    parting: VecDeque<Parting>,
}

/// The last request of something that was dropped.
#[derive(Debug)]
pub(super) enum Parting {
    Unwatch(String, String),
    Abort(TxId),
}

/// The waker that the transport knows. Bytes are read and written by tasks only after it has been woken,
/// and it wakes all that wait: so nobody sleeps while another has taken what he waits for.
#[derive(Debug, Default)]
struct Signal(Mutex<Waiters>);

#[derive(Debug, Default)]
struct Waiters {
    /// The transport will wake us: no need to try before.
    reads: bool,
    writes: bool,
    tasks: Vec<(u64, Waker)>,
}

impl Signal {
    fn with<R>(&self, work: impl FnOnce(&mut Waiters) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wake_tasks(&self) {
        for (_, waker) in self.with(|waiters| std::mem::take(&mut waiters.tasks)) {
            waker.wake();
        }
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.with(|waiters| (waiters.reads, waiters.writes) = (false, false));
        self.wake_tasks();
    }
}

impl<T: Transport> Shared<T> {
    pub fn new(io: T) -> Shared<T> {
        Shared {
            io,
            state: Mutex::default(),
            signal: Arc::default(),
            next: AtomicU64::new(0),
        }
    }

    pub fn is_lost(&self) -> bool {
        self.state().lost.is_some()
    }

    /// A number that nothing else of this connection has.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a request, once there is room for it, and waits for the reply.
    pub async fn exchange(
        &self,
        tx: Option<TxId>,
        request: &Request<'_>,
    ) -> Result<Vec<u8>, Errno> {
        let key = self.number();
        let id = self.until(key, |state| match state.client.request(tx, request) {
            Err(Errno::EBUSY) => None,
            queued => Some(queued),
        });
        let waiting = Pending {
            shared: self,
            id: id.await??,
        };
        self.until(key, |state| state.client.take_reply(waiting.id))
            .await?
    }

    /// Moves bytes until there is what `ready` looks for.
    fn until<R>(
        &self,
        key: u64,
        mut ready: impl FnMut(&mut State) -> Option<R>,
    ) -> impl Future<Output = Result<R, Errno>> {
        let registered = Registered { shared: self, key };
        poll_fn(move |cx| self.poll_until(cx, registered.key, &mut ready))
    }

    fn poll_until<R>(
        &self,
        cx: &mut Context<'_>,
        key: u64,
        ready: &mut impl FnMut(&mut State) -> Option<R>,
    ) -> Poll<Result<R, Errno>> {
        // Before looking, so that what comes from now on wakes us.
        self.signal.with(|waiters| {
            waiters.tasks.retain(|(other, _)| *other != key);
            waiters.tasks.push((key, cx.waker().clone()));
        });
        let mut state = self.state();
        self.pump(&mut state);
        let found = ready(&mut state);
        if found.is_some() {
            // A request that was just made goes out; a reply that was just taken made room for another.
            self.pump(&mut state);
        }
        let lost = state.lost;
        drop(state);
        match (found, lost) {
            (Some(found), _) => Poll::Ready(Ok(found)),
            (None, Some(errno)) => Poll::Ready(Err(errno)),
            (None, None) => Poll::Pending,
        }
    }

    /// Waits for an event of the watch with this token, as a stream does.
    pub fn poll_event(
        &self,
        cx: &mut Context<'_>,
        key: u64,
        token: &str,
    ) -> Poll<Result<WatchEvent, Errno>> {
        self.poll_until(cx, key, &mut |state| state.client.next_event_for(token))
    }

    /// A task does not wait any more.
    pub fn leave(&self, key: u64) {
        self.signal
            .with(|waiters| waiters.tasks.retain(|(other, _)| *other != key));
    }

    /// Says the last of something that is dropped.
    pub fn part(&self, last: Parting) {
        let mut state = self.state();
        state.parting.push_back(last);
        self.pump(&mut state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves no half-done state behind: bytes were either fed or not.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends and takes as much as goes without waiting. When the connection ends, all tasks are told.
    fn pump(&self, state: &mut State) {
        if state.lost.is_some() {
            return;
        }
        let room_before = state.client.pending();
        let moved = self.try_pump(state);
        if let Err(error) = &moved {
            state.lost = Some(errno_of(error));
        }
        if moved.is_err() || matches!(moved, Ok(true)) || state.client.pending() < room_before {
            self.signal.wake_tasks();
        }
    }

    /// Whether something has come.
    fn try_pump(&self, state: &mut State) -> io::Result<bool> {
        let waker = Waker::from(Arc::clone(&self.signal));
        let mut cx = Context::from_waker(&waker);
        let client = &mut state.client;
        let mut came = false;
        let mut bytes = [0; 8192];
        for _ in 0..READS {
            if self
                .signal
                .with(|waiters| std::mem::replace(&mut waiters.reads, true))
            {
                break;
            }
            let Poll::Ready(len) = self.io.poll_read(&mut cx, &mut bytes) else {
                break;
            };
            self.signal.with(|waiters| waiters.reads = false);
            let len = len?;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let fed: Result<(), ProtocolError> = client.feed(&bytes[..len]);
            fed.map_err(io::Error::other)?;
            came = true;
        }
        while let Some(last) = state.parting.pop_front() {
            let queued = match &last {
                Parting::Unwatch(path, token) => {
                    client.request(None, &Request::Unwatch(path.as_bytes(), token.as_bytes()))
                }
                Parting::Abort(tx) => client.request(Some(*tx), &Request::TransactionEnd(false)),
            };
            match queued {
                Ok(id) => client.forget(id),
                Err(Errno::EBUSY) => {
                    state.parting.push_front(last);
                    break;
                }
                // It was possible to ask for the watch with these words.
                Err(_) => {}
            }
        }
        loop {
            let output = match self.io.whole_messages() {
                true => client.output_message(),
                false => client.output(),
            };
            if output.is_empty() {
                break;
            }
            if self
                .signal
                .with(|waiters| std::mem::replace(&mut waiters.writes, true))
            {
                break;
            }
            let Poll::Ready(len) = self.io.poll_write(&mut cx, output) else {
                break;
            };
            self.signal.with(|waiters| waiters.writes = false);
            client.sent(len?);
        }
        Ok(came)
    }
}

/// A request on its way; dropped, its reply is not waited for.
struct Pending<'a, T: Transport> {
    shared: &'a Shared<T>,
    id: RequestId,
}

impl<T: Transport> Drop for Pending<'_, T> {
    fn drop(&mut self) {
        self.shared.state().client.forget(self.id);
    }
}

/// A task among those to be woken.
struct Registered<'a, T: Transport> {
    shared: &'a Shared<T>,
    key: u64,
}

impl<T: Transport> Drop for Registered<'_, T> {
    fn drop(&mut self) {
        self.shared.leave(self.key);
    }
}
