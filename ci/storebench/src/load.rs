//! Many clients at once in one thread: each sends its next request when its last is answered.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use xs_wire::{Header, Op};

use crate::daemon::Daemon;
use crate::error::{Context, Result, fail};
use crate::plain::{encode, refused};

/// A daemon that says nothing for so long is taken for hung.
const STALL_LIMIT: Duration = Duration::from_secs(60);
const READ_SIZE: usize = 64 << 10;

/// What the clients do.
pub trait Script {
    /// A client's first requests.
    fn begin(&mut self, client: usize, out: &mut Out<'_>) -> Result<()>;
    /// A message has come for a client; its next requests.
    fn message(
        &mut self,
        client: usize,
        header: &Header,
        body: &[u8],
        out: &mut Out<'_>,
    ) -> Result<()>;
    /// Operations that are complete.
    fn count(&self) -> u64;
    /// Whether nothing more is to be done.
    fn is_done(&self) -> bool {
        false
    }
}

/// Takes requests.
pub struct Out<'a>(&'a mut Vec<u8>);

impl Out<'_> {
    /// Sends a request.
    pub fn request(&mut self, op: Op, tx: u32, parts: &[&[u8]]) {
        encode(self.0, op, tx, parts);
    }
}

/// What a load has done in its time.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Operations a second.
    pub rate: f64,
    /// The daemon's processor time for one, in microseconds.
    pub cpu_us: f64,
}

/// Some connections to a daemon.
pub struct Load {
    epoll: OwnedFd,
    clients: Vec<Client>,
    buffer: Vec<u8>,
    out: Vec<u8>,
}

struct Client {
    stream: UnixStream,
    /// Part of a message.
    input: Vec<u8>,
}

impl Load {
    /// Connects so many clients.
    pub fn connect(daemon: &Daemon, clients: usize) -> Result<Load> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context(|| "making an epoll".into())?;
        let mut load = Load {
            epoll,
            clients: Vec::new(),
            buffer: vec![0; READ_SIZE],
            out: Vec::new(),
        };
        for _ in 0..clients {
            load.add(&daemon.socket())?;
        }
        Ok(load)
    }

    fn add(&mut self, socket: &Path) -> Result<()> {
        let number = self.clients.len() as u64;
        let stream = UnixStream::connect(socket)
            .context(|| format!("connecting client {number} to {}", socket.display()))?;
        stream
            .set_nonblocking(true)
            .context(|| "setting a socket".into())?;
        let data = EventData::new_u64(number);
        epoll::add(&self.epoll, &stream, data, EventFlags::IN)
            .context(|| "adding to an epoll".into())?;
        self.clients.push(Client {
            stream,
            input: Vec::new(),
        });
        Ok(())
    }

    /// Lets a script begin.
    pub fn begin(&mut self, script: &mut impl Script) -> Result<()> {
        for number in 0..self.clients.len() {
            script.begin(number, &mut Out(&mut self.out))?;
            self.send(number)?;
        }
        Ok(())
    }

    /// Goes on with a script until it is done or the time is over.
    pub fn go_on(&mut self, script: &mut impl Script, limit: Duration) -> Result<()> {
        let start = Instant::now();
        let mut last_word = start;
        let mut events = Vec::with_capacity(self.clients.len().clamp(1, 64));
        while !script.is_done() {
            let now = Instant::now();
            if now - start >= limit {
                return Ok(());
            }
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: 20_000_000,
            };
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&wait),
            ) {
                Ok(0) if last_word.elapsed() > STALL_LIMIT => {
                    return fail(format!("no answer for {STALL_LIMIT:?}"));
                }
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => last_word = now,
                Err(error) => return Err(error).context(|| "waiting for answers".into()),
            }
            for event in &events {
                let data = event.data;
                self.receive(data.u64() as usize, script)?;
            }
        }
        Ok(())
    }

    /// Runs a script from its beginning until it is done.
    pub fn finish(&mut self, script: &mut impl Script, limit: Duration) -> Result<()> {
        self.begin(script)?;
        self.go_on(script, limit)?;
        if !script.is_done() {
            return fail(format!("not done after {limit:?}"));
        }
        Ok(())
    }

    /// Runs a script that has no end for a fifth of the time, and then measures it.
    pub fn measure(
        &mut self,
        daemon: &Daemon,
        script: &mut impl Script,
        time: Duration,
    ) -> Result<Measured> {
        self.begin(script)?;
        self.go_on(script, time / 5)?;
        let (count, cpu, start) = (script.count(), daemon.cpu_time()?, Instant::now());
        self.go_on(script, time)?;
        let wall = start.elapsed().as_secs_f64();
        let cpu = (daemon.cpu_time()? - cpu).as_secs_f64();
        let count = (script.count() - count) as f64;
        if count == 0.0 {
            return fail("nothing was done in the time");
        }
        Ok(Measured {
            rate: count / wall,
            cpu_us: cpu * 1e6 / count,
        })
    }

    fn receive(&mut self, number: usize, script: &mut impl Script) -> Result<()> {
        let client = &mut self.clients[number];
        let len = match client.stream.read(&mut self.buffer) {
            Ok(0) => return fail("the daemon has closed a connection"),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context(|| "receiving".into()),
        };
        let whole = client.input.is_empty();
        if !whole {
            client.input.extend_from_slice(&self.buffer[..len]);
        }
        let bytes = if whole {
            &self.buffer[..len]
        } else {
            &client.input[..]
        };
        let mut used = 0;
        let mut out = Out(&mut self.out);
        while let Some(frame) =
            xs_wire::peek(&bytes[used..]).context(|| "reading an answer".into())?
        {
            script.message(number, &frame.header, frame.body, &mut out)?;
            used += frame.size();
        }
        if whole {
            client.input.extend_from_slice(&self.buffer[used..len]);
        } else {
            client.input.drain(..used);
        }
        self.send(number)
    }

    /// Sends what has been collected for a client.
    fn send(&mut self, number: usize) -> Result<()> {
        let stream = &mut self.clients[number].stream;
        let mut rest = &self.out[..];
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(len) => rest = &rest[len..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    wait_for_room(stream).context(|| "waiting for room".into())?;
                }
                Err(error) => return Err(error).context(|| "sending".into()),
            }
        }
        self.out.clear();
        Ok(())
    }
}

fn wait_for_room(stream: &UnixStream) -> io::Result<()> {
    let mut fds = [PollFd::new(stream, PollFlags::OUT)];
    let limit = Timespec {
        tv_sec: STALL_LIMIT.as_secs() as i64,
        tv_nsec: 0,
    };
    match poll(&mut fds, Some(&limit))? {
        0 => Err(ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// Many requests of which each must succeed, some at a time, by all clients together: for filling a store.
pub struct Bulk<I> {
    requests: I,
    window: usize,
    open: usize,
    done: u64,
    exhausted: bool,
}

impl<I: Iterator<Item = (Op, Vec<u8>)>> Bulk<I> {
    /// These requests, of which each client has `window` open.
    pub fn new(requests: I, window: usize) -> Self {
        Bulk {
            requests,
            window,
            open: 0,
            done: 0,
            exhausted: false,
        }
    }

    fn next(&mut self, out: &mut Out<'_>) {
        match self.requests.next() {
            Some((op, body)) => {
                out.request(op, 0, &[&body]);
                self.open += 1;
            }
            None => self.exhausted = true,
        }
    }
}

impl<I: Iterator<Item = (Op, Vec<u8>)>> Script for Bulk<I> {
    fn begin(&mut self, _: usize, out: &mut Out<'_>) -> Result<()> {
        for _ in 0..self.window {
            self.next(out);
        }
        Ok(())
    }

    fn message(&mut self, _: usize, header: &Header, body: &[u8], out: &mut Out<'_>) -> Result<()> {
        match Op::from_code(header.op) {
            Some(Op::WatchEvent) => return Ok(()),
            Some(Op::Error) => return fail(refused(Op::Error, &[], body)),
            _ => {}
        }
        self.open -= 1;
        self.done += 1;
        self.next(out);
        Ok(())
    }

    fn count(&self) -> u64 {
        self.done
    }

    fn is_done(&self) -> bool {
        self.exhausted && self.open == 0
    }
}
