//! Records: what the two logs are made of. Each is a multiple of 8 bytes: two words of header, then a payload.

use crate::core::ConnId;

/// Bytes of a record's header.
pub const HEADER: usize = 16;
/// Longest payload.
pub const PAYLOAD_MAX: usize = (1 << 24) - 1;

/// What a record tells. Those from 1 on tell of connections, those from 32 on of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Numbers that go on counting: the connections', and the calls of `receive` and `send`. Begins the log.
    Counts = 1,
    /// A connection: what it is; `aux` is a socket's [`count`](super::count).
    Open = 2,
    /// A connection is gone.
    Close = 3,
    /// `aux` bytes were received into the buffer in the file's head.
    Received = 4,
    /// Bytes of the input were kept, which are counted already.
    Kept = 5,
    /// These bytes that follow in the input are kept in memory.
    More = 6,
    /// `aux` bytes of the input were carried out.
    Done = 7,
    /// Bytes to send.
    Output = 8,
    /// An event to send, kept as such: `aux` bytes of its path are left out; the path, then the token.
    Waiting = 9,
    /// `aux` events have become bytes to send.
    Moved = 10,
    /// `aux` bytes were sent on a socket, by the next call of `send`.
    Sent = 11,
    /// `aux` bytes were put on a ring.
    Given = 12,
    /// A ring begins anew: as `Open`, and what was kept of its input and output is dropped.
    Rebound = 13,
    /// The first `aux` events that waited were forgotten.
    Dropped = 14,
    /// The socket's [`count`](super::count) was set to `aux`.
    Count = 15,
    /// `aux` bytes were received, and carried out at once.
    Taken = 16,
    /// A piece of a snapshot.
    Snapshot = 32,
    /// A request was carried out.
    Request = 33,
    /// A client of dom0's was attached.
    Attach = 34,
    /// A connection was detached.
    Detach = 35,
    /// The states of domains were looked at.
    Domains = 36,
    /// The time was told: `conn` is nanoseconds.
    Time = 37,
    /// What the world answered while the next was done.
    Answers = 38,
    /// A connection begins afresh.
    Restart = 39,
}

impl Kind {
    fn from_code(code: u8) -> Option<Kind> {
        use Kind::*;
        const ALL: [Kind; 24] = [
            Counts, Open, Close, Received, Kept, More, Done, Output, Waiting, Moved, Sent, Given,
            Rebound, Dropped, Count, Taken, Snapshot, Request, Attach, Detach, Domains, Time,
            Answers, Restart,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == code)
    }
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// What it tells.
    pub kind: Kind,
    /// A number whose meaning the kind says.
    pub aux: u32,
    /// The connection; 0 if it is of none.
    pub conn: ConnId,
    /// What else there is to it.
    pub payload: &'a [u8],
}

/// A header for a payload of `len` bytes.
#[inline]
pub fn header(kind: Kind, aux: u32, conn: ConnId, len: usize) -> [u8; HEADER] {
    debug_assert!(len <= PAYLOAD_MAX);
    let first = (len as u64) << 40 | (kind as u64) << 32 | u64::from(aux);
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&first.to_le_bytes());
    header[8..].copy_from_slice(&conn.0.to_le_bytes());
    header
}

/// Takes the first record off a log; `None` if there is none.
pub fn next<'a>(log: &mut &'a [u8]) -> Option<Record<'a>> {
    let (header, rest) = log.split_at_checked(HEADER)?;
    let first = u64::from_le_bytes(header[..8].try_into().ok()?);
    let conn = u64::from_le_bytes(header[8..].try_into().ok()?);
    let len = (first >> 40) as usize;
    let (payload, rest) = rest.split_at_checked(len.next_multiple_of(8))?;
    let record = Record {
        kind: Kind::from_code((first >> 32) as u8)?,
        aux: first as u32,
        conn: ConnId(conn),
        payload: &payload[..len],
    };
    *log = rest;
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(kinds in proptest::collection::vec((any::<u8>(), any::<u32>(), any::<u64>(), proptest::collection::vec(any::<u8>(), 0..70)), 0..20), cut in any::<u16>()) {
            let mut log = Vec::new();
            let mut all = Vec::new();
            for (code, aux, conn, payload) in &kinds {
                let Some(kind) = Kind::from_code(*code % 44) else { continue };
                log.extend(header(kind, *aux, ConnId(*conn), payload.len()));
                log.extend(payload);
                log.resize(log.len().next_multiple_of(8), 0);
                all.push(Record { kind, aux: *aux, conn: ConnId(*conn), payload });
            }
            let mut rest = &log[..];
            for record in &all {
                prop_assert_eq!(next(&mut rest), Some(*record));
            }
            prop_assert!(rest.is_empty());
            // Whatever is cut off, what is left is read as it was.
            let mut cut = &log[..usize::from(cut) % (log.len() + 1)];
            for record in &all {
                match next(&mut cut) {
                    Some(read) => prop_assert_eq!(read, *record),
                    None => break,
                }
            }
        }
    }
}
