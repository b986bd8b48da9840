//! What waits to be sent to one client: bytes, and behind them events that are not bytes yet.
//!
//! Requests are taken up only while little waits, so replies are bounded by that; events are caused by others. They are
//! kept as references to shared text, and one that is equal to one still waiting is dropped: it would say nothing
//! that the first does not.

use std::collections::{HashSet, VecDeque};

use xs_wire::{Header, Op};

use crate::core::Event;

/// More bytes than this waiting, and no further request is taken up.
const HIGH_WATER: usize = 64 << 10;
/// What an event is counted as beside its text.
const EVENT_OVERHEAD: usize = 64;

/// What has become of an event.
#[derive(Debug)]
pub enum Added<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// It waits.
    Waiting(&'a Event),
    /// An equal one waits already.
    Nothing,
}

/// One client's output.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    sent: usize,
    /// How many of the first bytes are the rest of a message that was sent in part before they came here.
    cut: usize,
    waiting: VecDeque<Event>,
    known: HashSet<Event>,
    waiting_size: usize,
}

impl Output {
    /// Whether so little waits that another request may be taken up.
    pub fn has_room(&self) -> bool {
        self.waiting.is_empty() && self.bytes.len() - self.sent < HIGH_WATER
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.sent == self.bytes.len() && self.waiting.is_empty()
    }

    /// About how much memory the waiting events take, in bytes.
    pub fn waiting_size(&self) -> usize {
        self.waiting_size
    }

    /// Adds a reply; returns its bytes.
    pub fn reply(&mut self, op: Op, request: &Header, body: &[u8]) -> &[u8] {
        let from = self.bytes.len();
        let header = Header {
            op: op.code(),
            len: body.len() as u32,
            ..*request
        };
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.extend_from_slice(body);
        &self.bytes[from..]
    }

    /// Adds an event; returns what has become of it.
    pub fn event(&mut self, event: Event) -> Added<'_> {
        if self.has_room() {
            let from = self.bytes.len();
            self.encode(&event);
            Added::Bytes(&self.bytes[from..])
        } else if self.known.contains(&event) {
            Added::Nothing
        } else {
            self.wait(event);
            self.waiting.back().map_or(Added::Nothing, Added::Waiting)
        }
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds an event behind all that waits.
    pub fn wait(&mut self, event: Event) {
        self.waiting_size += size(&event);
        self.known.insert(event.clone());
        self.waiting.push_back(event);
    }

    /// Makes bytes of events that wait, while there is room; returns of how many.
    pub fn fill(&mut self) -> usize {
        let mut moved = 0;
        while self.bytes.len() - self.sent < HIGH_WATER && self.move_one().is_some() {
            moved += 1;
        }
        moved
    }

    /// Makes bytes of the first event that waits; `None` if none does.
    pub fn move_one(&mut self) -> Option<()> {
        let event = self.waiting.pop_front()?;
        self.known.remove(&event);
        self.waiting_size -= size(&event);
        self.encode(&event);
        Some(())
    }

    /// The bytes to send next, beside the events that wait: see [`fill`](Self::fill).
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// The events that wait.
    pub fn waiting(&self) -> &VecDeque<Event> {
        &self.waiting
    }

    /// Takes note that so many of the bytes were sent.
    pub fn sent(&mut self, len: usize) {
        self.sent += len;
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            (self.sent, self.cut) = (0, 0);
            // Memory that a burst took is given back.
            self.bytes.shrink_to(HIGH_WATER);
        } else if self.sent > HIGH_WATER {
            self.cut = self.partial();
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// How many bytes there are of a message that was sent in part.
    fn partial(&self) -> usize {
        let mut at = self.cut;
        while at < self.sent {
            at += message_size(&self.bytes[at..]);
        }
        at - self.sent
    }

    /// All that waits as bytes, and how many of the first are the rest of a message that was sent in part.
    pub fn export(&self) -> (Vec<u8>, usize) {
        let mut all = Output {
            bytes: self.bytes[self.sent..].to_vec(),
            ..Output::default()
        };
        for event in &self.waiting {
            all.encode(event);
        }
        (all.bytes, self.partial())
    }

    /// Output of which all this is to be sent: a part of a message, then whole ones. Events behind all else wait
    /// as such, so that they count as what they are.
    pub fn import(bytes: &[u8], partial: usize) -> Output {
        let mut output = Output::default();
        let partial = partial.min(bytes.len());
        let (mut at, mut kept) = (partial, partial);
        // Up to the last message that is no event.
        while at < bytes.len() {
            let size = message_size(&bytes[at..]);
            let is_event =
                matches!(header(&bytes[at..]), Some(header) if header.op == Op::WatchEvent.code());
            at += size;
            if !is_event || at < HIGH_WATER {
                kept = at.min(bytes.len());
            }
        }
        output.bytes = bytes[..kept].to_vec();
        output.cut = partial;
        while kept < bytes.len() {
            let size = message_size(&bytes[kept..]);
            let body = bytes[kept..].get(Header::SIZE..size).unwrap_or_default();
            let mut texts = body.splitn(2, |byte| *byte == 0);
            let path = texts
                .next()
                .map(String::from_utf8_lossy)
                .unwrap_or_default();
            let token = texts.next().unwrap_or_default();
            output.wait(Event {
                path: path.into(),
                skip: 0,
                token: token.strip_suffix(b"\0").unwrap_or(token).into(),
            });
            kept += size;
        }
        output
    }

    fn encode(&mut self, event: &Event) {
        let path = event.shown_path().as_bytes();
        let header = Header {
            op: Op::WatchEvent.code(),
            req_id: 0,
            tx_id: 0,
            len: (path.len() + event.token.len() + 2) as u32,
        };
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.extend_from_slice(path);
        self.bytes.push(0);
        self.bytes.extend_from_slice(&event.token);
        self.bytes.push(0);
    }
}

fn header(bytes: &[u8]) -> Option<Header> {
    bytes.first_chunk().map(Header::decode)
}

/// The size of the message that these bytes begin with; what cannot be one counts as up to the end.
fn message_size(bytes: &[u8]) -> usize {
    let size = header(bytes).map_or(usize::MAX, |header| {
        (header.len as usize).saturating_add(Header::SIZE)
    });
    size.min(bytes.len())
}

fn size(event: &Event) -> usize {
    event.path.len() + event.token.len() + EVENT_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: usize) -> Event {
        Event {
            path: format!("/local/domain/7/{n}").into(),
            skip: 16,
            token: (*b"tok").into(),
        }
    }

    #[test]
    fn a_reader_that_sleeps_gets_each_event_once_and_in_order() {
        let mut output = Output::default();
        let request = Header {
            op: 2,
            req_id: 9,
            tx_id: 3,
            len: 77,
        };
        output.reply(Op::Read, &request, b"abc");
        assert!(output.has_room());
        for n in (0..10_000).chain(0..10_000) {
            output.event(event(n));
        }
        assert!(!output.has_room());
        assert!(
            output.waiting.len() < 10_000 + 10,
            "{}",
            output.waiting.len()
        );
        let mut got = Vec::new();
        loop {
            output.fill();
            let bytes = output.bytes();
            if bytes.is_empty() {
                break;
            }
            let len = bytes.len().min(1000);
            got.extend_from_slice(&bytes[..len]);
            output.sent(len);
        }
        assert_eq!((output.waiting_size(), output.is_empty()), (0, true));
        let frame = xs_wire::peek(&got).unwrap().unwrap();
        let header = frame.header;
        assert_eq!((header.req_id, header.tx_id, header.len), (9, 3, 3));
        assert_eq!(frame.body, b"abc");
        let mut rest = &got[frame.size()..];
        let mut seen = Vec::new();
        while let Some(frame) = xs_wire::peek(rest).unwrap() {
            let header = frame.header;
            assert_eq!((header.op, header.req_id), (Op::WatchEvent.code(), 0));
            let event = xs_wire::parse_event(frame.body).unwrap();
            assert_eq!(event.token, "tok");
            seen.push(event.path.parse::<usize>().unwrap());
            rest = &rest[frame.size()..];
        }
        assert!(rest.is_empty());
        let mut unique = seen.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), 10_000);
        assert_eq!(seen[..10_000], (0..10_000).collect::<Vec<_>>());
    }
}
