//! xs-client's blocking side on the daemon itself: threads on one connection, watches as iterators,
//! transactions that conflict, a daemon that ends and comes back.

mod program;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xen_hal::{Store, StoreLink};
use xen_sys::Errno;
use xs_client::{Reconnecting, Retry, TransactionError, transaction};
use xs_wire::{Request, StoreError};

use program::{Daemon, LONG, spawn};

#[test]
fn threads_share_a_connection() {
    let daemon = Daemon::start("threads");
    let store = daemon.connect();
    store.write(None, "/a", b"0").unwrap();
    let seen = AtomicU32::new(0);
    std::thread::scope(|scope| {
        // Each waits for its own events, which any of the others may receive.
        for n in 0..4 {
            let (store, seen) = (&store, &seen);
            scope.spawn(move || {
                let path = format!("/watched/{n}");
                let mut watch = store.subscribe(&path).unwrap();
                seen.fetch_add(1, Ordering::SeqCst);
                while store.read(None, &path).unwrap_or_default() != b"99" {
                    let event = watch.next().unwrap().unwrap();
                    assert_eq!(event.path, path);
                }
            });
        }
        for n in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for value in 0..100 {
                    let path = format!("/watched/{n}");
                    store
                        .write(None, &path, value.to_string().as_bytes())
                        .unwrap();
                    assert_eq!(store.read(None, "/a").unwrap(), b"0");
                }
            });
        }
    });
    assert_eq!(seen.into_inner(), 4);
    assert_eq!(store.watches(), [], "dropped watches are removed");
    assert_eq!(store.take_event(), Ok(None));
}

#[test]
fn many_requests_in_flight() {
    let daemon = Daemon::start("flight");
    let store = daemon.connect();
    let paths: Vec<_> = (0..120).map(|n| format!("/n/{n}")).collect();
    let write =
        |path: &String| store.submit(None, &Request::Write(path.as_bytes(), path.as_bytes()));
    let writes: Vec<_> = paths.iter().map(|path| write(path).unwrap()).collect();
    for write in writes.into_iter().rev() {
        write.wait().unwrap();
    }
    let read = |path: &String| store.submit(None, &Request::Read(path.as_bytes())).unwrap();
    drop(paths.iter().map(read).collect::<Vec<_>>());
    let reads: Vec<_> = paths.iter().map(read).collect();
    for (read, path) in reads.into_iter().zip(&paths) {
        assert_eq!(read.wait().unwrap(), path.as_bytes());
    }
}

#[test]
fn a_watch_is_an_iterator() {
    let daemon = Daemon::start("iterator");
    let (store, other) = (daemon.connect(), daemon.connect());
    let mut watch = store.subscribe("/w").unwrap();
    store.watch("/w", "mine").unwrap();
    other.write(None, "/w/a", b"1").unwrap();
    let mut events = watch.by_ref().map(|event| event.unwrap().path);
    assert_eq!(events.next().as_deref(), Some("/w"));
    assert_eq!(events.next().as_deref(), Some("/w/a"));
    assert_eq!(watch.next_timeout(Duration::from_millis(20)), Ok(None));
    let mine = || store.wait_event(Some(LONG)).unwrap().unwrap();
    assert_eq!((mine().path.as_str(), mine().path.as_str()), ("/w", "/w/a"));
    drop(daemon);
    assert_eq!(watch.next().unwrap().unwrap_err().errno, Errno::ENOTCONN);
    assert!(watch.next().is_none() && store.is_lost());
}

#[test]
fn transactions_are_tried_again_and_given_up() {
    let daemon = Daemon::start("transactions");
    let (store, other) = (daemon.connect(), daemon.connect());
    store.write(None, "/n", b"0").unwrap();
    let mut tries = 0;
    let value = transaction(&store, &Retry::default(), |tx| {
        tries += 1;
        let value = tx.read("/n")?;
        if tries < 3 {
            other.write(None, "/n", tries.to_string().as_bytes())?;
        }
        tx.write("/sum", &value)?;
        Ok::<_, StoreError>(value)
    });
    assert_eq!((value, tries), (Ok(b"2".to_vec()), 3));
    let retry = Retry {
        tries: 4,
        ..Retry::default()
    };
    let mut tries = 0;
    let given_up = transaction(&store, &retry, |tx| {
        tries += 1;
        tx.read("/n")?;
        tx.write("/sum", b"x")?;
        other.write(None, "/n", format!("again {tries}").as_bytes())
    });
    let told = given_up.as_ref().unwrap_err().to_string();
    assert!(matches!(
        given_up,
        Err(TransactionError::Conflicts { tries: 4, .. })
    ));
    assert!(told.contains("each of 4 tries"), "{told}");
    assert_eq!(store.read(None, "/sum").unwrap(), b"2");
    let aborted = transaction(&store, &retry, |tx| {
        tx.write("/sum", b"x").unwrap();
        Err::<(), _>("no")
    });
    assert_eq!(aborted, Err(TransactionError::Body("no")));
    assert_eq!(store.read(None, "/sum").unwrap(), b"2");
}

#[test]
fn a_daemon_that_comes_back() {
    let mut daemon = Daemon::start("back");
    let store = Reconnecting::open(daemon.socket(), LONG).unwrap();
    store.watch("/w", "t").unwrap();
    assert_eq!(store.wait_event(Some(LONG)).unwrap().unwrap().path, "/w");
    store.write(None, "/n", b"1").unwrap();
    let tx = store.start().unwrap();
    daemon.kill();
    let folder = daemon.folder.clone();
    let restarted = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        spawn(&folder)
    });
    let answer = store.read(None, "/n");
    daemon.child = restarted.join().unwrap();
    // Its tree is empty again: the answer is of the new daemon.
    assert_eq!(answer.unwrap_err().errno, Errno::ENOENT);
    assert_eq!(store.renewals(), 1);
    let stale = store.write(Some(tx), "/n", b"x").unwrap_err();
    assert_eq!(stale.errno, Errno::EAGAIN);
    // The surplus event, and a watch that works; the descriptor is the same.
    assert_eq!(store.wait_event(Some(LONG)).unwrap().unwrap().path, "/w");
    assert!(!store.has_event());
    daemon.connect().write(None, "/w/x", b"").unwrap();
    let limit = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(&store, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ready, 1);
    assert_eq!(store.wait_event(Some(LONG)).unwrap().unwrap().path, "/w/x");

    // Within a transaction: the closure is run again.
    let mut tries = 0;
    transaction(&store, &Retry::default(), |tx| {
        tries += 1;
        if tries == 1 {
            daemon.kill();
            daemon.child = spawn(&daemon.folder);
        }
        tx.write("/n", b"2")
    })
    .unwrap();
    assert_eq!((tries, store.renewals()), (2, 2));
    assert_eq!(store.read(None, "/n").unwrap(), b"2");

    // One that does not come back.
    let impatient = Reconnecting::open(daemon.socket(), Duration::from_millis(50)).unwrap();
    daemon.kill();
    let begun = Instant::now();
    let gone = impatient.read(None, "/n").unwrap_err();
    assert_eq!(gone.errno, Errno::ENOTCONN);
    assert!(begun.elapsed() < LONG / 2);
}
