//! Takes a ring's requests, has them carried out, and answers them in the order in which they end.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use xen_backend::account::Count;
use xen_hal::{CopyBuffer, Error, ForeignGrants, GrantCopy, Result};
use xen_ring::{PeerError, SharedMemoryExt};
use xen_sys::io::blkif;
use xen_sys::{DomId, Errno, PAGE_SIZE};

use crate::engine::{Done, Engine, Job, Work};
use crate::journal::{Journal, Record};
use crate::memory::{Buffer, Memory, Piece};
use crate::pool::Pool;
use crate::rate::Rate;
use crate::request::{Limits, Op, RawRequest, Request, SEGMENTS_PER_PAGE, Segment};
use crate::ring::Ring;
use crate::storage::Storage;

/// How data gets from and to the guest's pages. Metadata is copied out once either way (XSA-155); what a
/// guest does to a page of data while it is transferred harms only that data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataMove {
    /// Xen copies: one system call and hypercall for a request's segments.
    Copy,
    /// Pages of a guest that agrees to it stay mapped, a bounded number; for others as with `Copy`.
    Persistent,
}

/// What is left to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something was done: there may be more.
    More,
    /// Nothing can be done now: either a job ends, or the front end sends an event with the next request.
    Idle,
}

/// Takes one line for the log.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// What a queue works with.
pub struct Parts<G: ForeignGrants> {
    /// Whose it is.
    pub dom: DomId,
    /// The ring.
    pub ring: Ring<G::Mapping>,
    /// The account of what runs.
    pub journal: Journal,
    /// Access to the guest's pages.
    pub grants: G,
    /// Most of the guest's pages that stay mapped; 0 if it has not agreed to it.
    pub persistent: usize,
    /// Carries jobs out.
    pub engine: Box<dyn Engine>,
    /// The disk, for its size.
    pub storage: Arc<dyn Storage>,
    /// What it allows.
    pub limits: Limits,
    /// How fast it may go.
    pub rate: Rate,
    /// For what the guest does wrong.
    pub log: Log,
}

/// One ring of a connected disk.
pub struct Queue<G: ForeignGrants> {
    parts: Parts<G>,
    pool: Pool<G>,
    /// What runs, by its place in the journal.
    active: Vec<Option<Active>>,
    free: Vec<u16>,
    /// Jobs that run, and requests that wait for memory.
    busy: usize,
    /// Taken, but there is no memory for their data yet.
    starved: VecDeque<u16>,
    /// A barrier that waits for what came before it.
    barrier: Option<u16>,
    /// Nothing is taken before all that runs has ended.
    fence: bool,
    closed: bool,
    /// Answered and not yet published.
    answered: Vec<u16>,
    /// Taken and not yet begun.
    taken: Vec<u16>,
    /// Bytes of buffers in use.
    buffered: usize,
    /// System calls, data hypercalls and events so far, those of engine and pool not counted.
    calls: u64,
    data_calls: u64,
    events: u64,
    logged: u32,
    steps: u32,
}

/// A request between its taking and its answer.
struct Active {
    raw: RawRequest,
    request: Option<Request>,
    /// What is still to be done.
    steps: Steps,
    /// Where its data goes through, unless that is the guest's own pages.
    buffer: Option<Arc<Buffer>>,
}

/// Up to three things to do, one after another.
#[derive(Clone, Copy, Debug, Default)]
struct Steps([Option<Work>; 3]);

impl Steps {
    fn of(request: &Request) -> Steps {
        use Work::{Flush, Read, Write};
        Steps(match request.op {
            Op::Read => [Some(Read), None, None],
            Op::Write => [Some(Write), None, None],
            Op::FlushWrite => [Some(Flush), Some(Write), None],
            Op::Barrier if request.len > 0 => [Some(Flush), Some(Write), Some(Flush)],
            Op::Flush | Op::Barrier => [Some(Flush), None, None],
            Op::Discard { len: 0 } => [None; 3],
            Op::Discard { len } => [Some(Work::Discard(len)), None, None],
        })
    }
}

/// A queue that never rests writes all its counts down after so many steps.
const TELL: u32 = 64;

/// Bytes of buffers that a queue uses at a time, at most; the largest request has 1 MiB.
const MAX_BUFFERED: usize = 2 << 20;

/// Bad requests that are logged for each connection; a hostile guest must not fill the log.
const MAX_LOGGED: u32 = 10;

impl<G: ForeignGrants> Queue<G>
where
    G: Clone,
    G::Mapping: Send + Sync + 'static,
{
    /// A queue that goes on with what the journal has.
    pub fn new(parts: Parts<G>) -> Result<Self> {
        let slots = parts.ring.capacity() as u16;
        let pool = Pool::new(parts.dom, parts.grants.clone(), parts.persistent);
        let mut queue = Queue {
            pool,
            active: (0..slots).map(|_| None).collect(),
            free: Vec::new(),
            busy: 0,
            starved: VecDeque::new(),
            barrier: None,
            fence: false,
            closed: false,
            answered: Vec::new(),
            taken: Vec::new(),
            buffered: 0,
            calls: 0,
            data_calls: 0,
            events: 0,
            logged: 0,
            steps: 0,
            parts,
        };
        queue.go_on()?;
        Ok(queue)
    }

    /// Runs again what the process before us left running, and answers what it left unanswered.
    fn go_on(&mut self) -> Result<()> {
        let published = self.parts.ring.next_response();
        let left = self.parts.journal.unanswered(published);
        // The two differ only if the guest has changed its ring's indices.
        if left.len() as u32 != self.parts.ring.owed() {
            return Err(Error::Ring(PeerError::IndexOutOfRange {
                theirs: published,
                ours: self.parts.ring.next_request(),
                capacity: self.parts.ring.capacity(),
            }));
        }
        let protocol = self.parts.ring.protocol();
        let mut again = Vec::new();
        for (place, record, bytes) in left {
            self.hold(place, RawRequest::decode(&bytes, protocol));
            match record {
                Record::Ended { status } => self.answer(place, status),
                Record::Running => again.push(place),
            }
        }
        let replayed = again.len() as u64;
        self.parts.journal.add(Count::Replayed, replayed);
        for place in again {
            self.begin(place);
        }
        self.fence = self.busy > 0;
        // Those that were answered just now become free when that is published.
        self.free = (0..self.active.len() as u16)
            .rev()
            .filter(|place| self.active[usize::from(*place)].is_none())
            .filter(|place| !self.answered.contains(place))
            .collect();
        Ok(())
    }

    /// Answers what has ended, takes what is new, and publishes the answers with one event at most. An error
    /// means that ring, engine or event channel is of no use any more.
    pub fn step(&mut self, mut notify: impl FnMut() -> Result<()>) -> Result<Progress> {
        let mut worked = self.reap();
        worked |= self.feed();
        worked |= self.take()?;
        self.parts.engine.kick().map_err(engine_failed)?;
        worked |= self.reap();
        if !self.answered.is_empty() {
            let asked = self.parts.ring.publish();
            for place in self.answered.drain(..) {
                self.parts.journal.clear(place);
                self.free.push(place);
            }
            if asked {
                self.calls += 1;
                self.events += 1;
                notify()?;
            }
        }
        self.steps = self.steps.wrapping_add(1);
        if self.steps.is_multiple_of(TELL) {
            self.tell();
        }
        Ok(if worked {
            Progress::More
        } else {
            Progress::Idle
        })
    }

    /// To be called before a wait: asks the front end for an event with the next request. True if one is
    /// there already.
    #[must_use = "true means that there is work: waiting now would lose an event"]
    pub fn rest(&mut self) -> bool {
        self.tell();
        self.may_take() && self.parts.rate.wait().is_none() && self.parts.ring.wait_for_more()
    }

    /// How many requests are taken and not answered.
    pub fn in_flight(&self) -> usize {
        self.parts.ring.owed() as usize
    }

    /// Whether requests wait that could be taken; does not ask the front end for an event.
    fn has_requests(&self) -> bool {
        self.may_take() && self.parts.ring.pending().map_or(true, |count| count > 0)
    }

    /// Whether a step would find something to do, as far as can be told without a system call.
    pub fn has_work(&mut self) -> bool {
        self.has_requests() || self.busy > 0 && self.parts.engine.ready()
    }

    /// Whoever carries its jobs out.
    pub fn engine(&mut self) -> &mut dyn Engine {
        &mut *self.parts.engine
    }

    /// The counts.
    pub fn journal(&self) -> &Journal {
        &self.parts.journal
    }

    /// How fast it may go.
    pub fn rate(&mut self) -> &mut Rate {
        &mut self.parts.rate
    }

    /// Counts system calls that were made for this queue elsewhere.
    pub fn count_calls(&mut self, more: u64) {
        self.calls += more;
    }

    /// Writes the counts that are kept elsewhere into the journal.
    fn tell(&self) {
        let journal = &self.parts.journal;
        let data_calls = self.data_calls + self.pool.calls();
        let calls = self.calls + self.data_calls + 2 * self.pool.calls();
        journal.set(Count::Calls, calls + self.parts.engine.calls());
        journal.set(Count::DataCalls, data_calls);
        journal.set(Count::Events, self.events);
        journal.set(Count::Mapped, self.pool.len() as u64);
        journal.set(Count::InFlight, self.in_flight() as u64);
    }

    /// Takes nothing more; what was taken is still carried out.
    pub fn close(&mut self) {
        self.closed = true;
    }

    fn may_take(&self) -> bool {
        !self.closed && self.barrier.is_none() && !self.fence && self.starved.is_empty()
    }

    /// Takes requests from the ring, records them, and begins them.
    fn take(&mut self) -> Result<bool> {
        let protocol = self.parts.ring.protocol();
        let batch = self.parts.engine.batch();
        let mut taken = std::mem::take(&mut self.taken);
        while taken.len() < batch && self.may_take() && self.parts.rate.allows() {
            // A ring has no more requests than slots, so a place is free for each.
            let Some(&place) = self.free.last() else {
                break;
            };
            let index = self.parts.ring.next_request();
            let Some(bytes) = self.parts.ring.pop()? else {
                break;
            };
            self.free.pop();
            self.parts.journal.begin(place, &bytes, index);
            let raw = RawRequest::decode(&bytes, protocol);
            self.hold(place, raw);
            taken.push(place);
            if raw.operation == blkif::OP_WRITE_BARRIER {
                self.barrier = Some(place);
            }
        }
        let any = !taken.is_empty();
        if any {
            let next = self.parts.ring.next_request();
            self.parts.journal.set_taken(next);
        }
        for place in taken.drain(..) {
            if self.barrier != Some(place) {
                self.begin(place);
            }
        }
        self.taken = taken;
        if any {
            self.pass_barrier();
        }
        Ok(any)
    }

    fn hold(&mut self, place: u16, raw: RawRequest) {
        self.active[usize::from(place)] = Some(Active {
            raw,
            request: None,
            steps: Steps::default(),
            buffer: None,
        });
    }

    /// Begins a barrier once everything before it has ended.
    fn pass_barrier(&mut self) {
        if self.busy == 0
            && let Some(place) = self.barrier.take()
        {
            self.fence = true;
            self.begin(place);
            self.fence = self.busy > 0;
        }
    }

    /// Checks a request and begins its first step.
    fn begin(&mut self, place: u16) {
        let Some(active) = &self.active[usize::from(place)] else {
            return;
        };
        let raw = active.raw;
        let limits = Limits {
            sectors_512: self.parts.storage.sectors_512(),
            ..self.parts.limits
        };
        let request = match self.checked(&raw, &limits) {
            Ok(request) => request,
            Err((status, why)) => {
                self.complain(|| why);
                return self.answer(place, status);
            }
        };
        let steps = Steps::of(&request);
        self.parts.rate.spend(request.len);
        if let Some(active) = &mut self.active[usize::from(place)] {
            active.request = Some(request);
            active.steps = steps;
        }
        self.advance(place);
    }

    fn checked(&mut self, raw: &RawRequest, limits: &Limits) -> Result<Request, (i16, String)> {
        let refused = |refusal: crate::request::Refusal| {
            let status = refusal.status();
            (status, format!("refused: {refusal}"))
        };
        let segments = match raw.indirect(limits).map_err(refused)? {
            None => Vec::new(),
            Some(indirect) => self
                .fetch_segments(indirect.grefs, indirect.count)
                .map_err(|trouble| {
                    let why = format!("refused: its indirect segments: {trouble}");
                    (blkif::RSP_ERROR, why)
                })?,
        };
        raw.check(limits, segments).map_err(refused)
    }

    /// Copies the segments of an indirect request out of the guest's pages, once.
    fn fetch_segments(
        &mut self,
        grefs: &[xen_sys::GrantRef],
        count: usize,
    ) -> Result<Vec<Segment>, Trouble> {
        const SIZE: usize = size_of::<blkif::Segment>();
        let mut segments = Vec::with_capacity(count);
        let mut bytes = vec![0; count.min(SEGMENTS_PER_PAGE) * SIZE];
        for &gref in grefs {
            let here = (count - segments.len()).min(SEGMENTS_PER_PAGE);
            let bytes = &mut bytes[..here * SIZE];
            match self.mapped(gref) {
                Some(page) => page.read_bytes(0, bytes),
                None => {
                    self.data_calls += 1;
                    let mut pieces = [GrantCopy {
                        gref,
                        offset: 0,
                        local: CopyBuffer::FromGrant(bytes),
                        status: 0,
                    }];
                    self.parts.grants.copy(self.parts.dom, &mut pieces)?;
                    all_copied(&pieces)?;
                }
            }
            segments.extend((0..here).map(|n| Segment::decode(bytes, n * SIZE)));
        }
        Ok(segments)
    }

    /// A page of the guest's if it is to stay mapped. One that cannot be mapped is left to Xen's copy, which
    /// says why.
    fn mapped(&mut self, gref: xen_sys::GrantRef) -> Option<Memory> {
        if self.parts.persistent == 0 {
            return None;
        }
        self.pool.get(gref).ok().flatten()
    }

    /// Begins the next step of a request, or answers it.
    fn advance(&mut self, place: u16) {
        let Some(active) = &mut self.active[usize::from(place)] else {
            return;
        };
        let Some(work) = active.steps.0[0] else {
            return self.answer(place, blkif::RSP_OKAY);
        };
        let (offset, transfer) = match (&active.request, work) {
            (Some(request), Work::Read | Work::Write) => (request.offset, true),
            (Some(request), _) => (request.offset, false),
            (None, _) => (0, false),
        };
        let data = if transfer {
            match self.prepare(place) {
                Ok(Some(data)) => data,
                Ok(None) => {
                    self.starved.push_back(place);
                    return;
                }
                Err(trouble) => return self.fail(place, &trouble),
            }
        } else {
            Vec::new()
        };
        if let Some(active) = &mut self.active[usize::from(place)] {
            active.steps.0 = [active.steps.0[1], active.steps.0[2], None];
        }
        self.busy += 1;
        self.parts.engine.start(Job {
            token: place,
            work,
            offset,
            data,
        });
    }

    /// The memory of a transfer, with the data of a write in it; `None` if too much is in use.
    fn prepare(&mut self, place: u16) -> Result<Option<Vec<Piece>>, Trouble> {
        let Some(request) = self.active[usize::from(place)]
            .as_mut()
            .and_then(|active| active.request.take())
        else {
            return Ok(Some(Vec::new()));
        };
        let result = self.memory_for(place, &request);
        if let Some(active) = &mut self.active[usize::from(place)] {
            active.request = Some(request);
        }
        result
    }

    fn memory_for(&mut self, place: u16, request: &Request) -> Result<Option<Vec<Piece>>, Trouble> {
        let mut pieces = Vec::with_capacity(request.segments().len());
        for segment in request.segments() {
            let Some(page) = self.mapped(segment.gref) else {
                break;
            };
            pieces.push(Piece::new(page, segment.offset().into(), segment.len()));
        }
        if pieces.len() == request.segments().len() {
            return Ok(Some(pieces));
        }
        drop(pieces);
        let size = request.len.next_multiple_of(PAGE_SIZE);
        if self.buffered > 0 && self.buffered + size > MAX_BUFFERED {
            return Ok(None);
        }
        let mut buffer = Buffer::new(size);
        if request.op != Op::Read {
            let mut rest = &mut buffer.bytes_mut()[..request.len];
            let mut copies = Vec::with_capacity(request.segments().len());
            for segment in request.segments() {
                let (data, more) = rest.split_at_mut(segment.len());
                copies.push(copy_of(segment, CopyBuffer::FromGrant(data)));
                rest = more;
            }
            self.data_calls += 1;
            self.parts.grants.copy(self.parts.dom, &mut copies)?;
            all_copied(&copies)?;
        }
        let buffer = Arc::new(buffer);
        self.buffered += size;
        if let Some(active) = &mut self.active[usize::from(place)] {
            active.buffer = Some(buffer.clone());
        }
        Ok(Some(vec![Piece::new(buffer, 0, request.len)]))
    }

    /// Goes on with requests for which there was no memory.
    fn feed(&mut self) -> bool {
        let mut fed = false;
        while let Some(place) = self.starved.pop_front() {
            let before = self.starved.len();
            self.advance(place);
            if self.starved.len() > before {
                // Still none; it keeps its place in the line.
                self.starved.rotate_right(1);
                break;
            }
            fed = true;
        }
        fed
    }

    /// Takes what has ended, a batch of it.
    fn reap(&mut self) -> bool {
        let mut any = false;
        for _ in 0..self.parts.engine.batch() {
            let Some(Done { job, result }) = self.parts.engine.finished() else {
                break;
            };
            any = true;
            self.busy -= 1;
            let place = job.token;
            drop(job.data);
            match result
                .map_err(Trouble::Storage)
                .and_then(|()| self.deliver(place, job.work))
            {
                Ok(()) => self.advance(place),
                Err(trouble) => self.fail(place, &trouble),
            }
        }
        if any && self.busy == 0 {
            self.fence = false;
            self.pass_barrier();
        }
        any
    }

    /// After a step: copies what was read to the guest, and counts.
    fn deliver(&mut self, place: u16, work: Work) -> Result<(), Trouble> {
        let Some(active) = &mut self.active[usize::from(place)] else {
            return Ok(());
        };
        let len = active.request.as_ref().map_or(0, |request| request.len) as u64;
        let journal = &self.parts.journal;
        match work {
            Work::Read => journal.add(Count::ReadBytes, len),
            Work::Write => journal.add(Count::WrittenBytes, len),
            Work::Flush => journal.add(Count::Flushes, 1),
            Work::Discard(_) => {}
        }
        if work != Work::Read && work != Work::Write {
            return Ok(());
        }
        let (Some(mut buffer), Some(request)) = (active.buffer.take(), &active.request) else {
            return Ok(());
        };
        self.buffered -= buffer.len_bytes();
        let (Work::Read, Some(buffer)) = (work, Arc::get_mut(&mut buffer)) else {
            return Ok(());
        };
        let mut rest = &buffer.bytes_mut()[..request.len];
        let mut copies = Vec::with_capacity(request.segments().len());
        for segment in request.segments() {
            let (data, more) = rest.split_at(segment.len());
            copies.push(copy_of(segment, CopyBuffer::ToGrant(data)));
            rest = more;
        }
        self.data_calls += 1;
        self.parts.grants.copy(self.parts.dom, &mut copies)?;
        all_copied(&copies)
    }

    fn fail(&mut self, place: u16, trouble: &Trouble) {
        if let Some(active) = &self.active[usize::from(place)]
            && let Some(request) = &active.request
        {
            let (op, offset, len) = (request.op, request.offset, request.len);
            self.complain(|| format!("{op:?} of {len} bytes at {offset}: {trouble}"));
        }
        self.answer(place, blkif::RSP_ERROR);
    }

    /// Puts a request's answer into the ring; [`step`](Self::step) publishes it.
    fn answer(&mut self, place: u16, status: i16) {
        let Some(active) = self.active[usize::from(place)].take() else {
            return;
        };
        if let Some(buffer) = active.buffer {
            self.buffered -= buffer.len_bytes();
        }
        let count = match status {
            blkif::RSP_OKAY => Count::Done,
            _ => Count::Errors,
        };
        self.parts.journal.add(count, 1);
        let response = self.parts.ring.next_response();
        self.parts.journal.end(place, status, response);
        let (id, operation) = (active.raw.id, active.raw.answers());
        self.parts.ring.push(id, operation, status);
        self.answered.push(place);
    }

    fn complain(&mut self, what: impl FnOnce() -> String) {
        if self.logged < MAX_LOGGED {
            self.logged += 1;
            (self.parts.log)(&what());
            if self.logged == MAX_LOGGED {
                (self.parts.log)("further bad requests are only counted");
            }
        }
    }
}

fn copy_of<'a>(segment: &Segment, local: CopyBuffer<'a>) -> GrantCopy<'a> {
    GrantCopy {
        gref: segment.gref,
        offset: segment.offset(),
        local,
        status: 0,
    }
}

fn all_copied(pieces: &[GrantCopy<'_>]) -> Result<(), Trouble> {
    match pieces.iter().find(|piece| piece.status != 0) {
        Some(piece) => Err(Trouble::Grant {
            gref: piece.gref,
            status: piece.status,
        }),
        None => Ok(()),
    }
}

/// The engine itself is of no use any more.
pub fn engine_failed(error: io::Error) -> Error {
    Error::System {
        op: "carry out requests",
        object: error.to_string(),
        errno: Errno(error.raw_os_error().unwrap_or(Errno::EIO.0)),
    }
}

/// Why a valid request failed.
enum Trouble {
    Storage(io::Error),
    Grant {
        gref: xen_sys::GrantRef,
        status: i16,
    },
    World(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::World(error)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Storage(error) => error.fmt(f),
            Trouble::Grant { gref, status } => write!(f, "grant {gref}: GNTST status {status}"),
            Trouble::World(error) => error.fmt(f),
        }
    }
}
