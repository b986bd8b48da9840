//! From what a file holds to what the daemon was.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use xs_wire::Header;

use super::answers::Replay;
use super::conns::{What, read_event};
use super::file::{Content, Log};
use super::record::{self, Kind};
use crate::core::state::State;
use crate::core::{ConnId, Core};
use crate::daemon::Output;

/// What an earlier daemon was.
#[derive(Debug)]
pub struct Recovered {
    /// The store.
    pub core: Core,
    /// The connections.
    pub conns: BTreeMap<ConnId, RecoveredConn>,
    /// The last number given to a connection.
    pub last_id: u64,
    /// Requests that had another outcome this time, which tells of a daemon that does things differently.
    pub strayed: usize,
    /// A connection whose request has ended the daemon again and again.
    pub poison: Option<ConnId>,
    pub(super) received: u64,
    pub(super) sent: u64,
}

/// A connection.
#[derive(Debug)]
pub struct RecoveredConn {
    /// What it is.
    pub what: What,
    /// Input to carry out first.
    pub input: Vec<u8>,
    /// Output to send first.
    pub output: Output,
    /// At what the log says a socket's [`count`](super::count) stands.
    pub count: u32,
    /// What was received if it stands lower: so many of these bytes, which are input too.
    pub under_way: Vec<u8>,
    /// How many bytes of the file's buffer are its input too, how many there were, and by which call they came.
    fresh: usize,
    fresh_len: usize,
    fresh_call: u64,
}

/// Takes a file's content for what it is, or says why it cannot be.
pub fn recover(content: Content) -> Result<Recovered, String> {
    // A file that somebody has changed may say what no daemon was.
    let work = AssertUnwindSafe(|| {
        let (core, strayed) = core(&content.logs[Log::Core as usize])
            .ok_or("is damaged: what it says of the store makes no sense")?;
        let mut io = conns(&content)?;
        (io.core, io.strayed, io.poison) = (core, strayed, content.poison);
        Ok::<_, String>(io)
    });
    match catch_unwind(work) {
        Ok(result) => result,
        Err(_) => Err("is damaged: it cannot be taken up".to_owned()),
    }
}

/// The store, and how many requests had another outcome than before.
fn core(mut log: &[u8]) -> Option<(Core, usize)> {
    let mut bytes = Vec::new();
    let mut next = record::next(&mut log);
    while let Some(record) = next
        && record.kind == Kind::Snapshot
    {
        bytes.extend_from_slice(record.payload);
        next = record::next(&mut log);
    }
    let state = State::decode(&bytes).ok()?;
    drop(bytes);
    let mut core = Core::import(state);
    let mut strayed = 0;
    let mut answers: &[u8] = &[];
    while let Some(record) = next {
        let mut host = Replay::new(answers);
        answers = &[];
        match record.kind {
            Kind::Answers => answers = record.payload,
            Kind::Request => {
                let (header, body) = record.payload.split_first_chunk()?;
                let header = Header::decode(header);
                core.request(&mut host, record.conn, &header, body);
            }
            Kind::Attach => core.attach_dom0(record.conn),
            Kind::Detach => core.detach(record.conn),
            Kind::Restart => core.restart(record.conn),
            Kind::Domains => core.domains_changed(&mut host),
            Kind::Time => core.pass_time(&mut host, Duration::from_nanos(record.conn.0)),
            _ => return None,
        }
        if record.kind != Kind::Answers && (!host.is_done() || host.outputs != record.aux) {
            strayed += 1;
        }
        next = record::next(&mut log);
    }
    log.is_empty().then_some((core, strayed))
}

/// The connections.
fn conns(content: &Content) -> Result<Recovered, String> {
    let mut log = &content.logs[Log::Io as usize][..];
    let mut this =
        Recovered::begin(&mut log).ok_or("is damaged: its log of connections has no beginning")?;
    let mut count = 0;
    while !log.is_empty() {
        count += 1;
        let record = record::next(&mut log)
            .ok_or_else(|| format!("is damaged: record {count} of connections is none"))?;
        this.apply(&record).ok_or_else(|| {
            let record::Record { kind, aux, conn, payload } = record;
            let len = payload.len();
            format!(
                "is damaged: record {count} of connections, {kind:?} {aux} of {} with {len} bytes, does not fit those before",
                conn.0
            )
        })?;
    }
    this.finish(content)
        .ok_or("is damaged: the calls under way do not fit what was done before")?;
    Ok(this)
}

impl Recovered {
    fn begin(log: &mut &[u8]) -> Option<Recovered> {
        let first = record::next(log).filter(|record| record.kind == Kind::Counts)?;
        let number = |at: usize| -> Option<u64> {
            let bytes = first.payload.get(at..at + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        Some(Recovered {
            core: Core::new(Default::default()),
            conns: BTreeMap::new(),
            last_id: first.conn.0,
            strayed: 0,
            poison: None,
            received: number(0)?,
            sent: number(8)?,
        })
    }

    fn apply(&mut self, record: &record::Record<'_>) -> Option<()> {
        let len = record.aux as usize;
        match record.kind {
            Kind::Open => {
                let conn = RecoveredConn {
                    what: What::decode(record.payload)?,
                    input: Vec::new(),
                    output: Output::default(),
                    count: record.aux,
                    under_way: Vec::new(),
                    fresh: 0,
                    fresh_len: 0,
                    fresh_call: 0,
                };
                self.last_id = self.last_id.max(record.conn.0);
                return self.conns.insert(record.conn, conn).is_none().then_some(());
            }
            Kind::Close => return self.conns.remove(&record.conn).map(drop),
            Kind::Received | Kind::Taken => self.received += 1,
            Kind::Sent => self.sent += 1,
            _ => {}
        }
        let conn = self.conns.get_mut(&record.conn)?;
        match record.kind {
            Kind::Received | Kind::Taken => {
                if conn.fresh != 0 || conn.what != What::Socket {
                    return None;
                }
                conn.count = conn.count.checked_sub(record.aux)?;
                if record.kind == Kind::Received {
                    (conn.fresh, conn.fresh_len, conn.fresh_call) = (len, len, self.received);
                }
            }
            Kind::Count => conn.count = record.aux,
            Kind::Kept => conn.input.extend_from_slice(record.payload),
            Kind::More => {
                conn.taken(record.payload.len())?;
                conn.input.extend_from_slice(record.payload);
            }
            Kind::Done => {
                let kept = len.min(conn.input.len());
                conn.input.drain(..kept);
                conn.taken(len - kept)?;
            }
            Kind::Output => conn.output.push(record.payload),
            Kind::Waiting => conn.output.wait(read_event(record.aux, record.payload)?),
            Kind::Moved => {
                for _ in 0..len {
                    conn.output.move_one()?;
                }
            }
            Kind::Dropped => {
                for _ in 0..len {
                    conn.output.take_one()?;
                }
            }
            Kind::Sent | Kind::Given => conn.sent(len)?,
            Kind::Rebound => {
                conn.what = What::decode(record.payload)?;
                conn.input.clear();
                conn.output = Output::default();
            }
            _ => return None,
        }
        Some(())
    }

    /// Takes in what the last socket calls did that nobody could write down any more.
    fn finish(&mut self, content: &Content) -> Option<()> {
        let (conn, number, bytes) = &content.receive;
        for (id, known) in &mut self.conns {
            if known.fresh > 0 {
                let is_last = id == conn && known.fresh_call == *number && *number == self.received;
                let bytes = bytes.get(..known.fresh_len).filter(|_| is_last)?;
                let from = bytes.len().checked_sub(known.fresh)?;
                known.input.extend_from_slice(&bytes[from..]);
                known.fresh = 0;
            }
        }
        if *number == self.received + 1 {
            self.received += 1;
            if let Some(known) = self.conns.get_mut(conn) {
                known.under_way = bytes.clone();
            }
        }
        let (conn, number, len) = content.send;
        if number == self.sent + 1
            && let Some(len) = len
        {
            self.sent += 1;
            self.conns.get_mut(&conn)?.sent(len as usize)?;
        }
        Some(())
    }
}

impl RecoveredConn {
    /// So many bytes more were taken from where they came.
    fn taken(&mut self, len: usize) -> Option<()> {
        match &mut self.what {
            What::Socket => self.fresh = self.fresh.checked_sub(len)?,
            What::Ring(ring) => ring.taken = ring.taken.wrapping_add(len as u32),
        }
        Some(())
    }

    fn sent(&mut self, len: usize) -> Option<()> {
        if len > self.output.bytes().len() {
            return None;
        }
        self.output.sent(len);
        if let What::Ring(ring) = &mut self.what {
            ring.given = ring.given.wrapping_add(len as u32);
        }
        Some(())
    }
}
