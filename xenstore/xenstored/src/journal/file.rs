//! The state file: two logs in two areas each, and one word that says how much of them counts.
//!
//! Invariant: the file says at every instant what the daemon was at the last [`commit`](StateFile::commit); a log begins
//! anew in its other area, which counts from the commit on.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::fault;
use super::map::{MESSAGE, MSG_LEN, Map, UNKNOWN};
use super::record::{self, Kind};
use crate::core::ConnId;
use crate::os::Failure;

/// Says what the file is, and in which form.
const MAGIC: u64 = u64::from_le_bytes(*b"xenstor2");

/// Where words lie in the file's head.
const AT_MAGIC: usize = 0;
const AT_BOOT: usize = 16;
const BOOT_LEN: usize = 36;
const AT_COMMIT: usize = 64;
const AT_ATTEMPTS: usize = 72;
const AT_PANICS: usize = 80;
const AT_PANICKED: usize = 88;
const AT_CURRENT: usize = 96;
const AT_STARTED: usize = 104;
/// Two calls under way: connection, number, and for sending a message header.
const AT_RECEIVE: usize = 1024;
const AT_SEND: usize = 2048;
const CALL_CONN: usize = 0;
const CALL_NUMBER: usize = 8;
const CALL_MESSAGE: usize = 16;
const AT_BUFFER: usize = 4096;
/// Bytes received at a time.
pub const BUFFER: usize = 16 << 10;
const HEAD: usize = 64 << 10;
/// What an area may grow to; it takes memory only as far as it is written.
const AREA: usize = 1 << 30;
const TOTAL: usize = HEAD + 4 * AREA;
/// Memory is taken in pieces of this size.
const CHUNK: usize = 64 << 10;
/// An area's memory is kept for the next use up to this size.
const KEEP: usize = (1 << 20) + CHUNK;

const _: () = assert!(CALL_MESSAGE + MESSAGE <= 1024 && AT_BUFFER + BUFFER <= HEAD);

/// One of the two logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// The store: a snapshot, then what was done since.
    Core = 0,
    /// The connections: their positions, their input and output.
    Io = 1,
}

#[derive(Debug, Default)]
struct Area {
    /// Which of the two is in use.
    second: bool,
    /// Bytes written.
    len: usize,
    /// Bytes of each that have memory.
    allocated: [usize; 2],
    /// Bytes of each whose memory is in ours, to be written.
    ready: [usize; 2],
    /// Bytes that were taken out of our memory again.
    forgotten: usize,
    /// Bytes from which on it is to begin anew.
    limit: usize,
}

/// The file, written by one daemon.
#[derive(Debug)]
pub struct StateFile {
    map: Map,
    path: PathBuf,
    areas: [Area; 2],
    received: u64,
    sent: u64,
    /// Bytes of a connection that were received, which no record tells yet.
    fresh: Option<(ConnId, usize)>,
    /// Why nothing is written any more.
    failed: Option<io::Error>,
}

/// What a file holds.
#[derive(Debug)]
pub struct Content {
    /// The two logs.
    pub logs: [Vec<u8>; 2],
    /// The call of `receive` that was made last: connection, number, and the buffer, whose beginning it has filled.
    pub receive: (ConnId, u64, Vec<u8>),
    /// The call of `send` that was made last: connection, number, bytes.
    pub send: (ConnId, u64, Option<u32>),
    /// A connection whose request has ended the daemon twice.
    pub poison: Option<ConnId>,
}

impl Log {
    /// Bytes that it may take at least before it begins anew.
    fn least(self) -> usize {
        match self {
            Log::Core => 1 << 20,
            // So little that it stays in the processor's cache.
            Log::Io => 64 << 10,
        }
    }

    fn base(self, second: bool) -> usize {
        HEAD + (self as usize * 2 + usize::from(second)) * AREA
    }
}

impl StateFile {
    /// Opens the file, for this daemon alone, and reads what it holds, its logs only `with_logs`. `None` if that is not
    /// of use, with the reason told to `say`.
    pub fn open(
        path: &Path,
        with_logs: bool,
        say: &mut dyn FnMut(String),
    ) -> Result<(StateFile, Option<Content>), Failure> {
        let named =
            |what: &str, error: io::Error| format!("cannot {what} {}: {error}", path.display());
        if let Some(folder) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|error| named("make the folder of", error))?;
        }
        let mut file = open_locked(path)?;
        let content = match read(&file, with_logs) {
            Ok(content) => content,
            Err(why) => {
                say(format!("{}: {why}", path.display()));
                None
            }
        };
        if content.is_none() && file.metadata()?.len() > 0 {
            set_aside(path, say)?;
            file = open_locked(path)?;
        }
        if content.is_none() {
            file.set_len(TOTAL as u64)
                .map_err(|error| named("make room in", error))?;
        }
        let map = Map::new(file, TOTAL).map_err(|error| named("map", error))?;
        map.allocate(0, HEAD)
            .map_err(|error| named("make room in", error))?;
        let mut this = StateFile {
            map,
            path: path.to_owned(),
            areas: Default::default(),
            received: 0,
            sent: 0,
            fresh: None,
            failed: None,
        };
        if let Some(content) = &content {
            (this.received, this.sent) = (content.receive.1, content.send.1);
            let word = this.map.word(AT_COMMIT).load(Ordering::Acquire);
            for (log, half) in [(Log::Core, word as u32), (Log::Io, (word >> 32) as u32)] {
                let area = &mut this.areas[log as usize];
                area.second = half >> 31 != 0;
                area.len = (half & 0x7fff_ffff) as usize;
            }
        } else {
            this.map.write(AT_BOOT, &boot_id());
        }
        this.map.word(AT_ATTEMPTS).fetch_add(1, Ordering::Relaxed);
        this.map.word(AT_STARTED).store(uptime(), Ordering::Relaxed);
        Ok((this, content))
    }

    /// The state was taken up, or a new one begun: it is of use from now on.
    pub fn settled(&mut self) {
        self.map.word(AT_MAGIC).store(MAGIC, Ordering::Release);
        self.map.word(AT_ATTEMPTS).store(0, Ordering::Relaxed);
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why it is not written any more.
    pub fn failed(&self) -> Option<&io::Error> {
        self.failed.as_ref()
    }

    /// Lets a log begin anew; what is appended does not count before the next commit, and until then the old one does.
    pub fn restart(&mut self, log: Log) {
        let area = &mut self.areas[log as usize];
        area.second = !area.second;
        area.len = 0;
        area.forgotten = 0;
    }

    /// The new log is complete and was committed: its size so far is that of the snapshot. The old one is given up.
    pub fn restarted(&mut self, log: Log) {
        let area = &mut self.areas[log as usize];
        area.limit = log.least().max(area.len.saturating_mul(2));
        let old = log.base(!area.second);
        let side = usize::from(!area.second);
        let used = area.allocated[side];
        if used > KEEP {
            match self.map.punch(old, used) {
                Ok(()) => (area.allocated[side], area.ready[side]) = (0, 0),
                Err(error) => self.failed = Some(error),
            }
        } else if log == Log::Core {
            self.map.forget(old, used);
            area.ready[side] = 0;
        }
    }

    /// Whether a log is so long that it should begin anew.
    pub fn is_long(&self, log: Log) -> bool {
        let area = &self.areas[log as usize];
        area.len > area.limit
    }

    /// Appends a record; it counts from the next commit on.
    #[inline]
    pub fn append(&mut self, log: Log, kind: Kind, aux: u32, conn: ConnId, payload: [&[u8]; 2]) {
        let len = payload[0].len() + payload[1].len();
        let size = record::HEADER + len.next_multiple_of(8);
        let Some(at) = self.room(log, size) else {
            return;
        };
        self.map.write(at, &record::header(kind, aux, conn, len));
        self.map.write(at + record::HEADER, payload[0]);
        if !payload[1].is_empty() {
            self.map
                .write(at + record::HEADER + payload[0].len(), payload[1]);
        }
        fault::point();
    }

    /// Appends a record without a payload.
    #[inline]
    fn append_short(&mut self, log: Log, kind: Kind, aux: u32, conn: ConnId) {
        if let Some(at) = self.room(log, record::HEADER) {
            self.map.write(at, &record::header(kind, aux, conn, 0));
            fault::point();
        }
    }

    /// Where the next so many bytes of a log go.
    #[inline]
    fn room(&mut self, log: Log, size: usize) -> Option<usize> {
        let area = &self.areas[log as usize];
        if area.len + size > area.ready[usize::from(area.second)] && !self.grow(log, size) {
            return None;
        }
        let area = &mut self.areas[log as usize];
        let at = log.base(area.second) + area.len;
        area.len += size;
        Some(at)
    }

    #[cold]
    fn grow(&mut self, log: Log, size: usize) -> bool {
        if self.failed.is_some() {
            return false;
        }
        let area = &mut self.areas[log as usize];
        let base = log.base(area.second);
        let allocated = &mut area.allocated[usize::from(area.second)];
        let wanted = (area.len + size).next_multiple_of(CHUNK);
        if wanted > *allocated {
            let result = match wanted > AREA {
                true => Err(io::ErrorKind::FileTooLarge.into()),
                false => self.map.allocate(base + *allocated, wanted - *allocated),
            };
            if let Err(error) = result {
                // What the file says is not what is from now on.
                self.map.word(AT_MAGIC).store(0, Ordering::Release);
                self.failed = Some(error);
                return false;
            }
            *allocated = wanted;
        }
        let ready = &mut area.ready[usize::from(area.second)];
        self.map.prepare(base + *ready, wanted - *ready);
        *ready = wanted;
        // What was written before is read by nobody in this life.
        if log == Log::Core && area.len - area.forgotten > CHUNK {
            self.map
                .forget(base + area.forgotten, area.len - area.forgotten);
            area.forgotten = area.len;
        }
        true
    }

    /// Lets everything appended count, at once.
    #[inline]
    pub fn commit(&mut self) {
        self.tell_fresh();
        let half = |area: &Area| (u64::from(area.second) << 31) | area.len as u64;
        let word = half(&self.areas[0]) | half(&self.areas[1]) << 32;
        fault::point();
        self.map.word(AT_COMMIT).store(word, Ordering::Release);
        fault::point();
    }

    /// Notes whose request is carried out: if the daemon ends by its own fault, it was this one's.
    #[inline]
    pub fn current(&mut self, conn: ConnId) {
        self.map.word(AT_CURRENT).store(conn.0, Ordering::Relaxed);
    }

    /// Receives from a socket, whose kernel's count tells what a call under way has done: see [`count`](super::count). A record
    /// of it comes with the next commit at the latest.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        conn: ConnId,
        to: &mut Vec<u8>,
    ) -> Result<usize, Errno> {
        debug_assert!(self.fresh.is_none(), "the buffer is in use");
        self.begin_call(AT_RECEIVE, conn, self.received + 1);
        let len = self.map.receive(socket, AT_BUFFER, BUFFER)?;
        fault::point();
        if len > 0 {
            self.received += 1;
            self.map.read_more(AT_BUFFER, len, to);
            self.fresh = Some((conn, len));
        }
        Ok(len)
    }

    /// So many bytes of a connection's input were carried out.
    #[inline]
    pub fn done(&mut self, conn: ConnId, len: usize) {
        let kind = if self.fresh == Some((conn, len)) {
            self.fresh = None;
            Kind::Taken
        } else {
            self.tell_fresh();
            Kind::Done
        };
        self.append_short(Log::Io, kind, len as u32, conn);
    }

    /// Writes down what was received.
    #[inline]
    pub fn tell_fresh(&mut self) {
        if let Some((conn, len)) = self.fresh.take() {
            self.append_short(Log::Io, Kind::Received, len as u32, conn);
        }
    }

    /// Sends on a socket; the outcome is in the file before anybody can kill this process.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        conn: ConnId,
        bytes: &[u8],
    ) -> Result<usize, Errno> {
        // What the last call left is known by its number; the new number comes last.
        self.map
            .write(AT_SEND + CALL_MESSAGE + MSG_LEN, &UNKNOWN.to_le_bytes());
        self.begin_call(AT_SEND, conn, self.sent + 1);
        let len = self.map.send(socket, AT_SEND + CALL_MESSAGE, bytes)?;
        fault::point();
        self.sent += 1;
        self.append_short(Log::Io, Kind::Sent, len as u32, conn);
        self.commit();
        Ok(len)
    }

    /// How many calls of `receive` and `send` have moved bytes.
    pub fn counts(&self) -> (u64, u64) {
        (self.received, self.sent)
    }

    /// Counts calls whose outcome was found in the file.
    pub fn set_counts(&mut self, received: u64, sent: u64) {
        (self.received, self.sent) = (received, sent);
    }

    fn begin_call(&mut self, at: usize, conn: ConnId, number: u64) {
        self.map
            .word(at + CALL_CONN)
            .store(conn.0, Ordering::Release);
        self.map
            .word(at + CALL_NUMBER)
            .store(number, Ordering::Release);
        fault::point();
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let current = self.map.word(AT_CURRENT).load(Ordering::Relaxed);
            self.map.word(AT_PANICKED).store(current, Ordering::Relaxed);
            self.map.word(AT_PANICS).fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn open_locked(path: &Path) -> Result<File, Failure> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    let file = file.map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let path = path.display();
        return Err(format!("{path} is locked: another store daemon keeps its state there").into());
    }
    Ok(file)
}

/// Moves a file out of the way that is of no use, for whoever wants to know why.
pub fn set_aside(path: &Path, say: &mut dyn FnMut(String)) -> Result<(), Failure> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".unused");
    let aside = PathBuf::from(aside);
    fs::rename(path, &aside)
        .map_err(|error| format!("cannot move {} aside: {error}", path.display()))?;
    say(format!(
        "{} is not of use and was moved to {}; the store begins empty",
        path.display(),
        aside.display()
    ));
    Ok(())
}

/// Daemons in a row that ended while they took a state up, after which it is not tried again; many, as somebody may just
/// kill them.
const ATTEMPTS_MAX: u64 = 20;
/// Daemons in a row that failed by their own fault, after which their state is not tried again.
const PANICS_MAX: u64 = 5;
/// A daemon that lived so long did not end because of its state.
const LONG_LIFE_S: u64 = 60;

/// `Ok(None)` if the file is new.
pub fn read(file: &File, with_logs: bool) -> Result<Option<Content>, String> {
    use std::os::unix::fs::FileExt;
    let len = file.metadata().map_err(|error| error.to_string())?.size();
    if len == 0 {
        return Ok(None);
    }
    if len != TOTAL as u64 {
        return Err(format!(
            "has {len} bytes, not {TOTAL}: it is no state, or another version's"
        ));
    }
    let piece = |at: usize, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at as u64)
            .map_err(|error| format!("cannot be read: {error}"))?;
        Ok::<_, String>(bytes)
    };
    let head = piece(0, HEAD)?;
    let word = |at: usize| {
        let bytes = head[at..at + 8].try_into().unwrap_or_default();
        u64::from_le_bytes(bytes)
    };
    match word(AT_MAGIC) {
        MAGIC => {}
        0 => return Err("was not complete when its daemon ended".into()),
        _ => return Err("is no state, or another version's".into()),
    }
    if head[AT_BOOT..AT_BOOT + BOOT_LEN] != boot_id() {
        return Err("is from before this machine was started".into());
    }
    if word(AT_ATTEMPTS) >= ATTEMPTS_MAX {
        return Err(format!(
            "{ATTEMPTS_MAX} daemons in a row ended while they took it up"
        ));
    }
    let quick = uptime().saturating_sub(word(AT_STARTED)) < LONG_LIFE_S;
    let panics = word(AT_PANICS);
    if quick && panics >= PANICS_MAX {
        return Err(format!("{panics} daemons in a row failed with it"));
    }
    let poison = (quick && panics >= 2).then(|| ConnId(word(AT_PANICKED)));
    let commit = word(AT_COMMIT);
    let mut logs = [Vec::new(), Vec::new()];
    for (log, half) in [(Log::Core, commit as u32), (Log::Io, (commit >> 32) as u32)] {
        let len = (half & 0x7fff_ffff) as usize;
        if len > AREA {
            return Err("is damaged: a log is longer than can be".into());
        }
        if with_logs {
            logs[log as usize] = piece(log.base(half >> 31 != 0), len)?;
        }
    }
    let call = |at: usize| (ConnId(word(at + CALL_CONN)), word(at + CALL_NUMBER));
    let ((conn, number), (send_conn, send_number)) = (call(AT_RECEIVE), call(AT_SEND));
    let sent = AT_SEND + CALL_MESSAGE + MSG_LEN;
    let sent = u32::from_le_bytes(head[sent..sent + 4].try_into().unwrap_or_default());
    let buffer = head[AT_BUFFER..AT_BUFFER + BUFFER].to_vec();
    Ok(Some(Content {
        logs,
        receive: (conn, number, buffer),
        send: (send_conn, send_number, (sent != UNKNOWN).then_some(sent)),
        poison,
    }))
}

/// Tells one start of the machine from others.
fn boot_id() -> [u8; BOOT_LEN] {
    let text = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut id = [b'-'; BOOT_LEN];
    let len = text.len().min(BOOT_LEN);
    id[..len].copy_from_slice(&text[..len]);
    id
}

/// Seconds since the machine was started.
fn uptime() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64
}
