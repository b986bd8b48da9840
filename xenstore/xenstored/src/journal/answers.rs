//! What the world answered to the core, as bytes: written while the core works, read when its work is done again.

use xen_sys::{DomId, Errno, Port};
use xs_wire::{Header, Op};

use crate::core::{Buffered, ConnId, DomainReport, DomainState, Event, Host, Identity};

/// Answers in the order in which they were asked for.
#[derive(Debug, Default)]
pub struct Answers {
    bytes: Vec<u8>,
    /// How many replies and events were queued.
    pub outputs: u32,
}

impl Answers {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.outputs = 0;
    }

    /// One more reply or event was queued.
    #[inline]
    pub fn count(&mut self) {
        self.outputs = self.outputs.wrapping_add(1);
    }

    /// All so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// To [`Host::domain_identity`].
    pub fn identity(&mut self, identity: Option<Identity>) {
        self.bytes.push(identity.is_some().into());
        if let Some(Identity(number)) = identity {
            self.bytes.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// To [`Host::domain_states`].
    pub fn states(&mut self, states: Option<&[DomainReport]>) {
        self.bytes.push(states.is_some().into());
        let states = states.unwrap_or_default();
        self.bytes
            .extend_from_slice(&(states.len() as u32).to_le_bytes());
        for DomainReport {
            dom,
            identity,
            state,
        } in states
        {
            self.bytes.extend_from_slice(&dom.0.to_le_bytes());
            self.bytes.extend_from_slice(&identity.0.to_le_bytes());
            self.bytes.push(match state {
                DomainState::Running => 0,
                DomainState::Shutdown => 1,
                DomainState::Dying => 2,
            });
        }
    }

    /// To [`Host::connect`].
    pub fn connected(&mut self, result: Result<ConnId, Errno>) {
        match result {
            Ok(conn) => {
                self.bytes.push(0);
                self.bytes.extend_from_slice(&conn.0.to_le_bytes());
            }
            Err(errno) => self.failed(errno),
        }
    }

    /// To [`Host::rebind`].
    pub fn rebound(&mut self, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.bytes.push(0),
            Err(errno) => self.failed(errno),
        }
    }

    /// To [`Host::waiting_bytes`].
    pub fn waiting(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&bytes.to_le_bytes());
    }

    fn failed(&mut self, errno: Errno) {
        self.bytes.push(1);
        self.bytes.extend_from_slice(&errno.0.to_le_bytes());
    }
}

/// A world that answers what was answered before, and sends nothing.
#[derive(Debug)]
pub struct Replay<'a> {
    answers: &'a [u8],
    /// Whether something was asked that was not asked before, so that what is done is not what was done.
    pub strayed: bool,
    /// How many replies and events were queued.
    pub outputs: u32,
}

impl<'a> Replay<'a> {
    /// Answers from `answers`.
    pub fn new(answers: &'a [u8]) -> Replay<'a> {
        Replay {
            answers,
            strayed: false,
            outputs: 0,
        }
    }

    /// Whether all that was answered was asked for.
    pub fn is_done(&self) -> bool {
        !self.strayed && self.answers.is_empty()
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.answers.split_first_chunk() {
            Some((bytes, rest)) => {
                self.answers = rest;
                *bytes
            }
            None => {
                self.strayed = true;
                self.answers = &[];
                [0; N]
            }
        }
    }

    fn result<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Result<T, Errno> {
        match self.take() {
            [0] => Ok(value(self)),
            _ => Err(Errno(i32::from_le_bytes(self.take()))),
        }
    }
}

impl Host for Replay<'_> {
    fn domain_identity(&mut self, _: DomId) -> Option<Identity> {
        let known = self.take() == [1];
        known.then(|| Identity(u64::from_le_bytes(self.take())))
    }

    fn domain_states(&mut self) -> Option<Vec<DomainReport>> {
        let known = self.take() == [1];
        let count = u32::from_le_bytes(self.take());
        let mut states = Vec::new();
        for _ in 0..count {
            if self.strayed {
                return None;
            }
            states.push(DomainReport {
                dom: DomId(u16::from_le_bytes(self.take())),
                identity: Identity(u64::from_le_bytes(self.take())),
                state: match self.take() {
                    [0] => DomainState::Running,
                    [1] => DomainState::Shutdown,
                    _ => DomainState::Dying,
                },
            });
        }
        known.then_some(states)
    }

    fn connect(&mut self, _: DomId, _: u64, _: Port, _: u32) -> Result<ConnId, Errno> {
        self.result(|this| ConnId(u64::from_le_bytes(this.take())))
    }

    fn rebind(&mut self, _: ConnId, _: DomId, _: Port) -> Result<(), Errno> {
        self.result(|_| ())
    }

    fn disconnect(&mut self, _: ConnId) {}

    fn reply(&mut self, _: ConnId, _: Op, _: &Header, _: &[u8]) {
        self.outputs = self.outputs.wrapping_add(1);
    }

    fn event(&mut self, _: ConnId, _: Event, _: usize) {
        self.outputs = self.outputs.wrapping_add(1);
    }

    fn waiting_bytes(&mut self, _: ConnId) -> usize {
        u32::from_le_bytes(self.take()) as usize
    }

    fn buffered(&self, _: ConnId) -> Buffered {
        Buffered::default()
    }

    fn log(&mut self, _: &str) {}
}
