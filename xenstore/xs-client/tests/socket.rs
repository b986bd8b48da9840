//! The blocking client against a scripted daemon on a socket: bounds, events, lost connections.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use xen_hal::{Store, StoreExt, StoreOp};
use xen_sys::Errno;
use xs_client::Connection;
use xs_wire::{Header, Op};

fn daemon(
    name: &str,
    script: impl FnOnce(UnixStream) + Send + 'static,
) -> (PathBuf, JoinHandle<()>) {
    let path = std::env::temp_dir().join(format!("xs-client-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let thread = thread::spawn(move || script(listener.accept().unwrap().0));
    (path, thread)
}

fn take(stream: &mut UnixStream) -> (Header, Vec<u8>) {
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    let header = Header::decode(&head);
    let mut body = vec![0; header.len as usize];
    stream.read_exact(&mut body).unwrap();
    (header, body)
}

fn send(stream: &mut UnixStream, op: Op, req_id: u32, body: &[u8]) {
    let header = Header {
        op: op.code(),
        req_id,
        tx_id: 0,
        len: body.len() as u32,
    };
    stream.write_all(&header.encode()).unwrap();
    stream.write_all(body).unwrap();
}

#[test]
fn requests_events_and_a_lost_daemon() {
    let (path, thread) = daemon("events", |mut stream| {
        let (header, body) = take(&mut stream);
        assert_eq!((header.op, &body[..]), (Op::Watch.code(), &b"/a\0t\0"[..]));
        send(&mut stream, Op::Watch, header.req_id, b"OK\0");
        let (header, body) = take(&mut stream);
        assert_eq!(body, b"/a\0");
        send(&mut stream, Op::WatchEvent, 0, b"/a\0t\0");
        send(&mut stream, Op::Error, header.req_id, b"ENOENT\0");
        let (header, _) = take(&mut stream);
        send(&mut stream, Op::Read, header.req_id, b"12");
        thread::sleep(Duration::from_millis(50));
        send(&mut stream, Op::WatchEvent, 0, b"/a/b\0t\0");
    });
    let store = Connection::open(&path).unwrap();
    store.watch("/a", "t").unwrap();
    assert_eq!(store.read_optional(None, "/a").unwrap(), None);
    assert!(store.has_event());
    assert_eq!(store.read_parsed::<u32>(None, "/a").unwrap(), 12);
    assert_eq!(store.next_event().unwrap().unwrap().path, "/a");
    let event = store.wait_event(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(event.unwrap().path, "/a/b");
    thread.join().unwrap();
    let error = store.read(None, "/a").unwrap_err();
    assert!(
        [Errno::ENOTCONN, Errno::EPIPE].contains(&error.errno),
        "{error}"
    );
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_silent_daemon_does_not_hang_the_client() {
    let (path, thread) = daemon("silent", |mut stream| {
        let (first, _) = take(&mut stream);
        let (second, _) = take(&mut stream);
        send(&mut stream, Op::Read, first.req_id, b"late");
        send(&mut stream, Op::Read, second.req_id, b"right");
    });
    let store = Connection::open(&path).unwrap();
    store.set_timeout(Duration::from_millis(30));
    let start = Instant::now();
    assert_eq!(store.read(None, "/a").unwrap_err().errno, Errno::ETIMEDOUT);
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert_eq!(store.wait_event(Some(Duration::from_millis(1))), Ok(None));
    store.set_timeout(Duration::from_secs(10));
    assert_eq!(store.read(None, "/b").unwrap(), b"right");
    thread.join().unwrap();
    std::fs::remove_file(path).unwrap();
}

#[test]
fn no_daemon() {
    let path = std::env::temp_dir().join("xs-client-no-such-socket");
    let error = Connection::open(&path).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("xs-client-no-such-socket"), "{text}");
    assert!(text.contains("xlrs host start"), "{text}");
    assert_eq!(error.errno(), Errno::ENOENT);
}

#[test]
fn a_batch_is_sent_before_the_first_reply() {
    const COUNT: usize = 300;
    let (path, thread) = daemon("batch", |mut stream| {
        let mut seen = 0;
        while seen < COUNT {
            // All of a round is there before anything is answered.
            let round = (COUNT - seen).min(128);
            let requests: Vec<_> = (0..round).map(|_| take(&mut stream)).collect();
            for (header, body) in requests {
                match body.starts_with(b"/bad\0") {
                    true => send(&mut stream, Op::Error, header.req_id, b"EACCES\0"),
                    false => send(&mut stream, Op::Write, header.req_id, b"OK\0"),
                }
                seen += 1;
            }
        }
    });
    let store = Connection::open(&path).unwrap();
    store.set_timeout(Duration::from_secs(5));
    let mut ops = vec![StoreOp::Write("/good", b"1"); COUNT];
    ops[7] = StoreOp::Write("/bad", b"1");
    let results = store.batch(None, &ops);
    assert_eq!(results.len(), COUNT);
    for (index, result) in results.into_iter().enumerate() {
        match index {
            7 => assert_eq!(result.unwrap_err().errno, Errno::EACCES),
            _ => drop(result.unwrap()),
        }
    }
    thread.join().unwrap();
    std::fs::remove_file(path).unwrap();
}
