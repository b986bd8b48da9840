//! Carries a ring's requests out, in order, and answers them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xen_hal::{AccessMode, CopyBuffer, ForeignGrants, GrantCopy, Result};
use xen_ring::SharedMemoryExt;
use xen_sys::io::blkif;
use xen_sys::types::PAGE_SIZE;
use xen_sys::{DomId, GrantRef};

use crate::request::{Limits, Op, RawRequest, Request};
use crate::ring::Ring;
use crate::storage::Storage;

/// How data gets from and to the guest's pages. Either way storage only ever sees our own copy, so a
/// guest that changes a page meanwhile changes nothing that was decided (XSA-155), and no file system
/// sees a foreign frame (XSA-229).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataMove {
    /// Xen copies: one system call and hypercall for a request's segments.
    Copy,
    /// The pages are mapped for the request and copied by the processor.
    Map,
}

/// What is left to do after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The budget is used up: run again.
    More,
    /// The ring is empty, and the front end will send an event with the next request.
    Idle,
}

/// Counts of a queue since it was connected; shared with whoever wants to look.
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests answered with success.
    pub done: AtomicU64,
    /// Requests that were refused or failed.
    pub errors: AtomicU64,
    /// Bytes read from the disk.
    pub read_bytes: AtomicU64,
    /// Bytes written to the disk.
    pub written_bytes: AtomicU64,
}

/// One ring of a connected disk.
pub struct Queue<G: ForeignGrants> {
    dom: DomId,
    ring: Ring<G::Mapping>,
    grants: G,
    data_move: DataMove,
    storage: Arc<dyn Storage>,
    limits: Limits,
    buffer: Box<[u8]>,
    stats: Arc<Stats>,
    log: Arc<dyn Fn(&str) + Send + Sync>,
    logged: u32,
}

/// Most bytes one request can transfer.
const MAX_TRANSFER: usize = blkif::MAX_SEGMENTS_PER_REQUEST * PAGE_SIZE;

/// Bad requests that are logged for each connection; a hostile guest must not fill the log.
const MAX_LOGGED: u32 = 10;

impl<G: ForeignGrants> Queue<G> {
    /// A queue on an attached ring of `dom`'s.
    pub fn new(
        dom: DomId,
        ring: Ring<G::Mapping>,
        grants: G,
        data_move: DataMove,
        storage: Arc<dyn Storage>,
        limits: Limits,
        log: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Self {
        Queue {
            dom,
            ring,
            grants,
            data_move,
            storage,
            limits,
            buffer: vec![0; MAX_TRANSFER].into_boxed_slice(),
            stats: Arc::default(),
            log,
            logged: 0,
        }
    }

    /// Counts, for reading from anywhere.
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }

    /// Carries out up to `budget` requests, calling `notify` whenever the front end wants an event. An
    /// error means that the ring or the event channel is of no use any more.
    pub fn run(
        &mut self,
        budget: usize,
        mut notify: impl FnMut() -> Result<()>,
    ) -> Result<Progress> {
        for _ in 0..budget {
            let Some(raw) = self.ring.pop()? else {
                if self.ring.wait_for_more() {
                    continue;
                }
                return Ok(Progress::Idle);
            };
            let status = self.serve(&raw);
            let counter = if status == blkif::RSP_OKAY {
                &self.stats.done
            } else {
                &self.stats.errors
            };
            counter.fetch_add(1, Ordering::Relaxed);
            if self.ring.answer(&raw, status) {
                notify()?;
            }
        }
        Ok(Progress::More)
    }

    fn serve(&mut self, raw: &RawRequest) -> i16 {
        let request = match raw.check(&self.limits) {
            Ok(request) => request,
            Err(refusal) => {
                self.complain(|| format!("refused: {refusal}"));
                return refusal.status();
            }
        };
        match self.carry_out(&request) {
            Ok(()) => blkif::RSP_OKAY,
            Err(error) => {
                let (op, offset, len) = (request.op, request.offset, request.len);
                self.complain(|| format!("{op:?} of {len} bytes at {offset}: {error}"));
                blkif::RSP_ERROR
            }
        }
    }

    fn carry_out(&mut self, request: &Request) -> Result<(), Trouble> {
        match request.op {
            Op::Read => {
                let data = &mut self.buffer[..request.len];
                self.storage.read(request.offset, data)?;
                self.give(request)?;
                self.stats
                    .read_bytes
                    .fetch_add(request.len as u64, Ordering::Relaxed);
                Ok(())
            }
            Op::Write => self.write(request),
            Op::Flush => Ok(self.storage.flush()?),
            Op::FlushWrite => {
                self.storage.flush()?;
                self.write(request)
            }
            Op::Discard { len } => Ok(self.storage.discard(request.offset, len)?),
        }
    }

    fn write(&mut self, request: &Request) -> Result<(), Trouble> {
        self.fetch(request)?;
        self.storage
            .write(request.offset, &self.buffer[..request.len])?;
        self.stats
            .written_bytes
            .fetch_add(request.len as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Copies the guest's segments into the buffer.
    fn fetch(&mut self, request: &Request) -> Result<(), Trouble> {
        if self.data_move == DataMove::Map {
            let pages = self.map(request, AccessMode::ReadOnly)?;
            let mut rest = &mut self.buffer[..request.len];
            for (n, segment) in request.segments().iter().enumerate() {
                let (data, more) = rest.split_at_mut(segment.len());
                pages.read_bytes(n * PAGE_SIZE + usize::from(segment.offset()), data);
                rest = more;
            }
            return Ok(());
        }
        let mut rest = &mut self.buffer[..request.len];
        let mut pieces = Vec::with_capacity(request.segments().len());
        for segment in request.segments() {
            let (data, more) = rest.split_at_mut(segment.len());
            pieces.push(GrantCopy {
                gref: segment.gref,
                offset: segment.offset(),
                local: CopyBuffer::FromGrant(data),
                status: 0,
            });
            rest = more;
        }
        self.grants.copy(self.dom, &mut pieces)?;
        all_copied(&pieces)
    }

    /// Copies the buffer into the guest's segments.
    fn give(&mut self, request: &Request) -> Result<(), Trouble> {
        let mut rest = &self.buffer[..request.len];
        if self.data_move == DataMove::Map {
            let pages = self.map(request, AccessMode::ReadWrite)?;
            for (n, segment) in request.segments().iter().enumerate() {
                let (data, more) = rest.split_at(segment.len());
                pages.write_bytes(n * PAGE_SIZE + usize::from(segment.offset()), data);
                rest = more;
            }
            return Ok(());
        }
        let mut pieces = Vec::with_capacity(request.segments().len());
        for segment in request.segments() {
            let (data, more) = rest.split_at(segment.len());
            pieces.push(GrantCopy {
                gref: segment.gref,
                offset: segment.offset(),
                local: CopyBuffer::ToGrant(data),
                status: 0,
            });
            rest = more;
        }
        self.grants.copy(self.dom, &mut pieces)?;
        all_copied(&pieces)
    }

    fn map(&self, request: &Request, mode: AccessMode) -> Result<G::Mapping, Trouble> {
        let grefs: Vec<GrantRef> = request.segments().iter().map(|s| s.gref).collect();
        Ok(self.grants.map(self.dom, &grefs, mode)?)
    }

    fn complain(&mut self, what: impl FnOnce() -> String) {
        if self.logged < MAX_LOGGED {
            self.logged += 1;
            (self.log)(&what());
            if self.logged == MAX_LOGGED {
                (self.log)("further bad requests are only counted");
            }
        }
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

/// Why a valid request failed.
enum Trouble {
    Storage(io::Error),
    Grant { gref: GrantRef, status: i16 },
    World(xen_hal::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Trouble::Storage(error)
    }
}

impl From<xen_hal::Error> for Trouble {
    fn from(error: xen_hal::Error) -> Self {
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
