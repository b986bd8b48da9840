//! What a domain has asked for, counted.

use xen_sys::Errno;
use xs_wire::Op;

/// Requests by kind, and what came of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    requests: [u64; KINDS],
    /// Bytes of requests, headers included.
    pub bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Transactions that could not be committed because of others (EAGAIN).
    pub conflicts: u64,
    /// Requests refused because of a quota (ENOSPC, ENOMEM).
    pub refusals: u64,
}

/// Numbers of operations are less than this; the rest count as one.
const KINDS: usize = 32;

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            requests: [0; KINDS],
            bytes: 0,
            errors: 0,
            conflicts: 0,
            refusals: 0,
        }
    }
}

impl Counters {
    /// Counts a request.
    pub fn count(&mut self, op: u32, len: usize, result: Result<(), Errno>) {
        self.requests[(op as usize).min(KINDS - 1)] += 1;
        self.bytes += (xs_wire::Header::SIZE + len) as u64;
        let Err(errno) = result else { return };
        self.errors += 1;
        match errno {
            Errno::EAGAIN => self.conflicts += 1,
            Errno::ENOSPC | Errno::ENOMEM => self.refusals += 1,
            _ => {}
        }
    }

    /// Counts all of `other` as well.
    pub fn add(&mut self, other: &Counters) {
        for (mine, theirs) in self.requests.iter_mut().zip(other.requests) {
            *mine += theirs;
        }
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.conflicts += other.conflicts;
        self.refusals += other.refusals;
    }

    /// As JSON.
    pub fn json(&self) -> String {
        let named = Op::ALL.iter().filter_map(|op| {
            let count = *self.requests.get(op.code() as usize)?;
            (count > 0).then(|| format!("\"{}\":{count}", op.name()))
        });
        let unknown = self.requests[KINDS - 1];
        let unknown = (unknown > 0).then(|| format!("\"unknown\":{unknown}"));
        let requests: Vec<String> = named.chain(unknown).collect();
        format!(
            "{{\"requests\":{{{}}},\"bytes\":{},\"errors\":{},\"conflicts\":{},\"refusals\":{}}}",
            requests.join(","),
            self.bytes,
            self.errors,
            self.conflicts,
            self.refusals,
        )
    }
}
