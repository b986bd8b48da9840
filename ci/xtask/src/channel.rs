//! The host's end of the channel to the agent in dom0: several commands at once over one socket.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lab_agent::STDIN_WINDOW;
use lab_agent::frame::{Decoder, MAX_PAYLOAD};
use lab_agent::message::{Command, Message};

use crate::error::{Context, Error, Result, fail};

/// What a running command tells.
#[derive(Debug)]
pub enum Event {
    /// Bytes of its stdout.
    Stdout(Vec<u8>),
    /// Bytes of its stderr.
    Stderr(Vec<u8>),
    /// It ended with this status.
    Exit(i32),
    /// It could not be started.
    Failed(String),
}

/// A connection to one agent.
#[derive(Clone)]
pub struct Channel(Arc<Shared>);

struct Shared {
    writer: Mutex<UnixStream>,
    commands: Mutex<HashMap<u32, Entry>>,
    next_id: AtomicU32,
    hello: Mutex<Option<u64>>,
    hello_arrived: Condvar,
}

struct Entry {
    events: Sender<Event>,
    credit: Arc<Credit>,
}

/// How many bytes of stdin may still be sent.
struct Credit {
    left: Mutex<usize>,
    more: Condvar,
}

/// A command that was asked for. Dropped: its events go nowhere.
pub struct Running {
    channel: Channel,
    id: u32,
    events: Receiver<Event>,
    credit: Arc<Credit>,
}

/// The writing end of a command's stdin.
pub struct Stdin {
    channel: Channel,
    id: u32,
    credit: Arc<Credit>,
}

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

impl Channel {
    /// Starts reading from the socket.
    pub fn new(stream: UnixStream) -> Result<Channel> {
        let reader = stream.try_clone().context(|| "cloning a socket".into())?;
        let shared = Arc::new(Shared {
            writer: Mutex::new(stream),
            commands: Mutex::default(),
            next_id: AtomicU32::new(1),
            hello: Mutex::new(None),
            hello_arrived: Condvar::new(),
        });
        let ours = shared.clone();
        std::thread::spawn(move || ours.read_from(reader));
        Ok(Channel(shared))
    }

    /// Greets the agent until it answers: the agent may still be on its way up.
    pub fn hello(&self, set_clock: bool, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let mut seed = vec![0u8; 64];
            random(&mut seed)?;
            let nonce = u64::from_le_bytes(seed[..8].try_into().unwrap_or_default());
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.map_or(0, |d| d.as_nanos() as u64);
            self.send(&Message::Hello {
                nonce,
                unix_ns: if set_clock { now } else { 0 },
                seed,
            })?;
            let wait =
                Duration::from_secs(2).min(deadline.saturating_duration_since(Instant::now()));
            let guard = locked(&self.0.hello);
            let (guard, _) = self
                .0
                .hello_arrived
                .wait_timeout_while(guard, wait, |seen| *seen != Some(nonce))
                .unwrap_or_else(|e| e.into_inner());
            if *guard == Some(nonce) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return fail(format!(
                    "the agent in dom0 did not answer within {:.0} s",
                    limit.as_secs_f64()
                ));
            }
        }
    }

    /// Starts a command.
    pub fn spawn(&self, command: Command) -> Result<Running> {
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let (tx, events) = mpsc::channel();
        let credit = Arc::new(Credit {
            left: Mutex::new(STDIN_WINDOW),
            more: Condvar::new(),
        });
        locked(&self.0.commands).insert(
            id,
            Entry {
                events: tx,
                credit: credit.clone(),
            },
        );
        self.send(&Message::Spawn { id, command })?;
        Ok(Running {
            channel: self.clone(),
            id,
            events,
            credit,
        })
    }

    /// Ends the connection.
    pub fn close(&self) {
        let _ = locked(&self.0.writer).shutdown(std::net::Shutdown::Both);
    }

    fn send(&self, message: &Message) -> Result<()> {
        let frame = message.to_frame().context(|| "sending to dom0".into())?;
        locked(&self.0.writer)
            .write_all(&frame.encode())
            .context(|| "sending to dom0 (has QEMU ended?)".into())
    }
}

impl Shared {
    fn read_from(&self, mut stream: UnixStream) {
        let mut decoder = Decoder::new();
        let mut buf = vec![0u8; 256 * 1024];
        loop {
            match stream.read(&mut buf) {
                Ok(0) | Err(_) => break,
                Ok(n) => decoder.push(&buf[..n]),
            }
            while let Some(frame) = decoder.next_frame() {
                if let Some(message) = Message::from_frame(frame) {
                    self.take(message);
                }
            }
        }
        // Receivers see the disconnect.
        let mut commands = locked(&self.commands);
        for entry in commands.values() {
            // Whoever waits to send is let go; its write then fails.
            *locked(&entry.credit.left) = usize::MAX / 2;
            entry.credit.more.notify_all();
        }
        commands.clear();
    }

    fn take(&self, message: Message) {
        let (id, event) = match message {
            Message::HelloAck { nonce } => {
                *locked(&self.hello) = Some(nonce);
                self.hello_arrived.notify_all();
                return;
            }
            Message::StdinCredit { id, bytes } => {
                if let Some(entry) = locked(&self.commands).get(&id) {
                    *locked(&entry.credit.left) += bytes as usize;
                    entry.credit.more.notify_all();
                }
                return;
            }
            Message::Stdout { id, data } => (id, Event::Stdout(data)),
            Message::Stderr { id, data } => (id, Event::Stderr(data)),
            Message::Exit { id, status } => (id, Event::Exit(status)),
            Message::Failed { id, reason } => (id, Event::Failed(reason)),
            _ => return,
        };
        let last = matches!(event, Event::Exit(_) | Event::Failed(_));
        let mut commands = locked(&self.commands);
        if let Some(entry) = commands.get(&id) {
            let _ = entry.events.send(event);
        }
        if last {
            commands.remove(&id);
        }
    }
}

impl Running {
    /// The next event; nothing when `limit` passes first. A lost connection is an error.
    pub fn next(&self, limit: Option<Duration>) -> Result<Option<Event>> {
        let lost = || Error("the connection to dom0 was lost: QEMU or dom0 ended".into());
        match limit {
            None => self.events.recv().map(Some).map_err(|_| lost()),
            Some(limit) => match self.events.recv_timeout(limit) {
                Ok(event) => Ok(Some(event)),
                Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
                Err(mpsc::RecvTimeoutError::Disconnected) => Err(lost()),
            },
        }
    }

    /// Its stdin.
    pub fn stdin(&self) -> Stdin {
        Stdin {
            channel: self.channel.clone(),
            id: self.id,
            credit: self.credit.clone(),
        }
    }

    /// Signals its process group.
    pub fn signal(&self, signal: u32) -> Result<()> {
        let id = self.id;
        self.channel.send(&Message::Signal { id, signal })
    }

    /// Tells its terminal a new size.
    pub fn resize(&self, rows: u16, cols: u16) -> Result<()> {
        let id = self.id;
        self.channel.send(&Message::Resize { id, rows, cols })
    }
}

impl Stdin {
    /// Sends bytes, waiting while the command is behind.
    pub fn write(&self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let mut left = locked(&self.credit.left);
            while *left == 0 {
                left = self
                    .credit
                    .more
                    .wait(left)
                    .unwrap_or_else(|e| e.into_inner());
            }
            let n = bytes.len().min(*left).min(MAX_PAYLOAD);
            *left -= n;
            drop(left);
            self.channel.send(&Message::Stdin {
                id: self.id,
                data: bytes[..n].to_vec(),
            })?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Says that no more will come.
    pub fn close(&self) -> Result<()> {
        self.channel.send(&Message::StdinEof { id: self.id })
    }
}

/// Random bytes of the host.
pub fn random(buf: &mut [u8]) -> Result<()> {
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(buf))
        .context(|| "reading /dev/urandom".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that echoes stdin to stdout, in this process.
    fn echo_agent(mut port: UnixStream) {
        let mut decoder = Decoder::new();
        let mut buf = [0u8; 4096];
        let reply = |m: Message, port: &mut UnixStream| {
            port.write_all(&m.to_frame().unwrap().encode()).unwrap();
        };
        // Bytes left over from before must do no harm.
        port.write_all(b"noise XLb1 noise").unwrap();
        while let Ok(n @ 1..) = port.read(&mut buf) {
            decoder.push(&buf[..n]);
            while let Some(frame) = decoder.next_frame() {
                match Message::from_frame(frame).unwrap() {
                    Message::Hello { nonce, .. } => reply(Message::HelloAck { nonce }, &mut port),
                    Message::Spawn { id, command } if command.argv.is_empty() => {
                        let reason = "empty".into();
                        reply(Message::Failed { id, reason }, &mut port);
                    }
                    Message::Stdin { id, data } => {
                        let bytes = data.len() as u32;
                        reply(Message::StdinCredit { id, bytes }, &mut port);
                        reply(Message::Stdout { id, data }, &mut port);
                    }
                    Message::StdinEof { id } => reply(Message::Exit { id, status: 7 }, &mut port),
                    _ => {}
                }
            }
        }
    }

    fn connected() -> Channel {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || echo_agent(theirs));
        let channel = Channel::new(ours).unwrap();
        channel.hello(true, Duration::from_secs(5)).unwrap();
        channel
    }

    #[test]
    fn more_than_the_window_passes_through_stdin() {
        let channel = connected();
        let argv = vec!["cat".to_string()];
        let running = channel
            .spawn(Command {
                argv,
                ..Command::default()
            })
            .unwrap();
        let sent: Vec<u8> = (0..STDIN_WINDOW * 3).map(|i| i as u8).collect();
        let stdin = running.stdin();
        let copy = sent.clone();
        std::thread::spawn(move || {
            stdin.write(&copy).unwrap();
            stdin.close().unwrap();
        });
        let mut got = Vec::new();
        let status = loop {
            match running
                .next(Some(Duration::from_secs(10)))
                .unwrap()
                .unwrap()
            {
                Event::Stdout(data) => got.extend(data),
                Event::Exit(status) => break status,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((status, got == sent), (7, true));
    }

    #[test]
    fn a_refused_command_and_a_lost_connection_are_told() {
        let channel = connected();
        let refused = channel.spawn(Command::default()).unwrap();
        assert!(matches!(refused.next(None).unwrap(), Some(Event::Failed(r)) if r == "empty"));
        let argv = vec!["sleep".to_string()];
        let lost = channel
            .spawn(Command {
                argv,
                ..Command::default()
            })
            .unwrap();
        assert!(
            lost.next(Some(Duration::from_millis(10)))
                .unwrap()
                .is_none()
        );
        channel.close();
        assert!(lost.next(None).is_err());
    }
}
