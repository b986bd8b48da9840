//! xs-client's futures and streams on the daemon itself, run by an executor that knows nothing of them.

mod program;

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use xen_hal::Store;
use xen_sys::Errno;
use xs_client::{AsyncConnection, TransactionError};
use xs_wire::{MAX_PENDING, StoreError};

use program::{Daemon, LONG};

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task: its future, and where it goes when it is woken.
struct Task(Mutex<Option<Work>>, Sender<Arc<Task>>);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        // The executor has ended if nobody takes it.
        let _ = self.1.send(Arc::clone(&self));
    }
}

/// Runs all of them on this thread, each only when it was woken.
fn run_all(work: Vec<Work>) {
    let (sender, woken): (_, Receiver<Arc<Task>>) = channel();
    let mut left = work.len();
    for work in work {
        Arc::new(Task(Mutex::new(Some(work)), sender.clone())).wake();
    }
    let begun = Instant::now();
    while left > 0 {
        let rest = LONG.saturating_sub(begun.elapsed());
        let task = woken.recv_timeout(rest).expect("a task is never woken");
        let mut work = task.0.lock().unwrap();
        let waker = Waker::from(Arc::clone(&task));
        if let Some(future) = work.as_mut()
            && future
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_ready()
        {
            *work = None;
            left -= 1;
        }
    }
}

fn run(work: impl Future<Output = ()> + Send + 'static) {
    run_all(vec![Box::pin(work)]);
}

fn connect(daemon: &Daemon) -> AsyncConnection {
    AsyncConnection::open(&daemon.socket()).unwrap()
}

#[test]
fn more_tasks_than_requests_in_flight() {
    let daemon = Daemon::start("async-many");
    let store = connect(&daemon);
    let done = Arc::new(AtomicU32::new(0));
    let task = |n: usize| -> Work {
        let (store, done) = (store.clone(), Arc::clone(&done));
        Box::pin(async move {
            let path = format!("/dir/a-name-that-takes-some-room-{n}");
            store.write(None, &path, path.as_bytes()).await.unwrap();
            assert_eq!(store.read(None, &path).await.unwrap(), path.as_bytes());
            done.fetch_add(1, Ordering::SeqCst);
        })
    };
    run_all((0..4 * MAX_PENDING).map(task).collect());
    assert_eq!(done.load(Ordering::SeqCst) as usize, 4 * MAX_PENDING);
    run(async move {
        // Its names do not fit one message.
        assert_eq!(
            store.list(None, "/dir").await.unwrap().len(),
            4 * MAX_PENDING
        );
        let absent = store.read(None, "/absent").await.unwrap_err();
        assert_eq!((absent.op, absent.errno), ("READ", Errno::ENOENT));
        assert_eq!(store.read_optional(None, "/absent").await, Ok(None));
        let rights = store.permissions(None, "/dir").await.unwrap();
        store.set_permissions(None, "/dir", &rights).await.unwrap();
        store.rm(None, "/dir").await.unwrap();
    });
}

#[test]
fn transactions_of_many_tasks() {
    let daemon = Daemon::start("async-transactions");
    let store = connect(&daemon);
    daemon.connect().write(None, "/n", b"0").unwrap();
    let task = |_| -> Work {
        let store = store.clone();
        Box::pin(async move {
            for _ in 0..20 {
                let count = store.transaction(1000, async |tx| {
                    let text = String::from_utf8(tx.read("/n").await?).unwrap();
                    let next = text.parse::<u32>().unwrap() + 1;
                    tx.write("/n", next.to_string().as_bytes()).await
                });
                count.await.unwrap();
            }
        })
    };
    run_all((0..16).map(task).collect());
    assert_eq!(daemon.connect().read(None, "/n").unwrap(), b"320");
    let other = daemon.connect();
    run(async move {
        let given_up = store.transaction(3, async move |tx| {
            tx.read("/n").await?;
            other.write(None, "/n", tx.id().0.to_string().as_bytes())?;
            tx.write("/m", b"").await
        });
        let given_up = given_up.await;
        assert!(matches!(
            given_up,
            Err(TransactionError::Conflicts { tries: 3, .. })
        ));
        let tx = store.start().await.unwrap();
        tx.write("/dropped", b"").await.unwrap();
        let id = tx.id();
        drop(tx);
        // It is ended in the daemon, not only forgotten here.
        let stale = store.read(Some(id), "/n").await.unwrap_err();
        assert_eq!(stale.errno, Errno::ENOENT);
        assert_eq!(store.read_optional(None, "/dropped").await, Ok(None));
    });
}

#[test]
fn streams_and_dropped_futures() {
    let daemon = Daemon::start("async-streams");
    let (store, other) = (connect(&daemon), daemon.connect());
    run(async move {
        let mut one = store.subscribe("/w").await.unwrap();
        let mut two = store.subscribe("/w/b").await.unwrap();
        other.write(None, "/w/a", b"").unwrap();
        other.write(None, "/w/b", b"").unwrap();
        for path in ["/w", "/w/a", "/w/b"] {
            assert_eq!(one.next_event().await.unwrap().unwrap().path, path);
        }
        assert_eq!(two.next_event().await.unwrap().unwrap().path, "/w/b");
        drop(one);
        // Asked for and not waited for: the reply to it goes, the next is right.
        let mut were_pending = 0;
        for _ in 0..100 {
            let mut dropped = pin!(store.read(None, "/w"));
            let polled = std::future::poll_fn(|cx| Poll::Ready(dropped.as_mut().poll(cx))).await;
            // A quick daemon has answered some.
            were_pending += usize::from(polled.is_pending());
        }
        assert!(were_pending > 0);
        store.write(None, "/w/b", b"2").await.unwrap();
        assert_eq!(store.read(None, "/w/b").await.unwrap(), b"2");
        assert_eq!(two.next_event().await.unwrap().unwrap().path, "/w/b");
    });
}

#[test]
fn a_daemon_that_ends_wakes_all() {
    let mut daemon = Daemon::start("async-end");
    let store = connect(&daemon);
    let told = Arc::new(AtomicU32::new(0));
    let watcher = |n: usize| -> Work {
        let (store, told) = (store.clone(), Arc::clone(&told));
        Box::pin(async move {
            let mut watch = store.subscribe(&format!("/w/{n}")).await.unwrap();
            watch.next_event().await.unwrap().unwrap();
            told.fetch_add(1, Ordering::SeqCst);
            let lost = watch.next_event().await.unwrap().unwrap_err();
            assert_eq!(lost.errno, Errno::ENOTCONN);
            assert_eq!(watch.next_event().await, None::<Result<_, StoreError>>);
        })
    };
    let work: Vec<_> = (0..8).map(watcher).collect();
    let killer = std::thread::spawn({
        let told = Arc::clone(&told);
        move || {
            while told.load(Ordering::SeqCst) < 8 {
                std::thread::yield_now();
            }
            daemon.kill();
        }
    });
    run_all(work);
    killer.join().unwrap();
    run(async move {
        assert!(store.is_lost());
        let error = store.read(None, "/").await.unwrap_err();
        assert_eq!(error.errno, Errno::ENOTCONN);
    });
}
