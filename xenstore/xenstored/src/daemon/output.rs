//! What waits to be sent to one client: bytes, and behind them events that are not bytes yet.
//!
//! Requests are taken up only while little waits, so replies are bounded by that; events are caused by others. They are
//! kept as references to shared text, and one that is equal to one still waiting is dropped: it would say nothing
//! that the first does not.

use std::collections::{HashSet, VecDeque};

use xs_wire::{Header, Op};

use crate::core::{Event, account};

/// More bytes than this waiting, and no further request is taken up.
const HIGH_WATER: usize = 64 << 10;

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
#[derive(Debug)]
pub struct Output {
    bytes: Vec<u8>,
    sent: usize,
    /// How many of the first bytes are the rest of a message that was sent in part before they came here.
    cut: usize,
    /// Bytes that were in `bytes` before what is there now.
    passed: u64,
    /// Where replies end that are not sent whole, from the first byte ever; kept only if they are counted.
    replies: VecDeque<u64>,
    most_replies: usize,
    waiting: VecDeque<Event>,
    /// Since when each of them waits.
    since: VecDeque<Seconds>,
    known: HashSet<Event>,
    waiting_size: usize,
}

/// Time from some start.
pub type Seconds = u32;

impl Default for Output {
    fn default() -> Output {
        Output {
            bytes: Vec::new(),
            sent: 0,
            cut: 0,
            passed: 0,
            replies: VecDeque::new(),
            most_replies: usize::MAX,
            waiting: VecDeque::new(),
            since: VecDeque::new(),
            known: HashSet::new(),
            waiting_size: 0,
        }
    }
}

impl Output {
    /// Whether so little waits that another request may be taken up.
    pub fn has_room(&self) -> bool {
        self.takes_bytes() && self.replies.len() < self.most_replies
    }

    fn takes_bytes(&self) -> bool {
        self.waiting.is_empty() && self.bytes.len() - self.sent < HIGH_WATER
    }

    /// Sets how many replies may wait before no further request is taken up; they are not counted if any number may.
    pub fn set_most_replies(&mut self, most: usize) {
        self.most_replies = most;
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.sent == self.bytes.len() && self.waiting.is_empty()
    }

    /// What is kept here, in bytes as [`account`] counts.
    pub fn held(&self) -> usize {
        self.bytes.len() + self.waiting_size + account::REPLY * self.replies.len()
    }

    /// How many replies wait, if they are counted.
    pub fn replies(&self) -> usize {
        self.replies.len()
    }

    /// Whether events wait that are not bytes yet.
    pub fn has_events(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Forgets the events that have waited since before that time; returns how many.
    pub fn expire(&mut self, before: Seconds) -> usize {
        let mut count = 0;
        while self.since.front().is_some_and(|since| *since < before) && self.take_one().is_some() {
            count += 1;
        }
        count
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
        if self.most_replies != usize::MAX {
            let end = self.passed + self.bytes.len() as u64;
            self.replies.push_back(end);
        }
        &self.bytes[from..]
    }

    /// Adds an event; returns what has become of it.
    pub fn event(&mut self, event: Event, now: Seconds) -> Added<'_> {
        if self.takes_bytes() {
            let from = self.bytes.len();
            self.encode(&event);
            Added::Bytes(&self.bytes[from..])
        } else if self.known.contains(&event) {
            Added::Nothing
        } else {
            self.wait(event);
            if let Some(since) = self.since.back_mut() {
                *since = now;
            }
            self.waiting.back().map_or(Added::Nothing, Added::Waiting)
        }
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds an event behind all that waits.
    pub fn wait(&mut self, event: Event) {
        self.waiting_size += event_size(&event);
        self.known.insert(event.clone());
        self.waiting.push_back(event);
        self.since.push_back(0);
    }

    /// Makes bytes of events that wait, while there is room; returns of how many.
    pub fn fill(&mut self) -> usize {
        if self.waiting.is_empty() {
            return 0;
        }
        let mut moved = 0;
        while self.bytes.len() - self.sent < HIGH_WATER && self.move_one().is_some() {
            moved += 1;
        }
        moved
    }

    /// Makes bytes of the first event that waits; `None` if none does.
    pub fn move_one(&mut self) -> Option<()> {
        let event = self.take_one()?;
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
        let gone = self.passed + self.sent as u64;
        while self.replies.front().is_some_and(|end| *end <= gone) {
            self.replies.pop_front();
        }
        if self.sent == self.bytes.len() {
            self.passed = gone;
            self.bytes.clear();
            (self.sent, self.cut) = (0, 0);
            // Memory that a burst took is given back.
            self.bytes.shrink_to(HIGH_WATER);
        } else if self.sent > HIGH_WATER {
            self.passed = gone;
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

    /// Takes the first event that waits.
    pub fn take_one(&mut self) -> Option<Event> {
        let event = self.waiting.pop_front()?;
        self.since.pop_front();
        self.known.remove(&event);
        self.waiting_size -= event_size(&event);
        if self.waiting.is_empty() {
            // Memory that a burst took is given back.
            (self.waiting, self.since, self.known) = Default::default();
        }
        Some(event)
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

/// What an event that waits is counted as.
pub fn event_size(event: &Event) -> usize {
    event.path.len() + event.token.len() + account::EVENT
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
            output.event(event(n), 0);
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
        assert_eq!((output.held(), output.is_empty()), (0, true));
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

    #[test]
    fn replies_are_counted_until_they_are_sent() {
        let mut output = Output::default();
        let request = Header {
            op: 2,
            req_id: 9,
            tx_id: 3,
            len: 77,
        };
        output.set_most_replies(3);
        for left in [2, 1, 0] {
            output.reply(Op::Read, &request, b"abcd");
            assert_eq!(output.has_room(), left > 0);
        }
        output.event(event(1), 0);
        let len = output.bytes().len();
        for (sent, replies) in [(19, 3), (1, 2), (20, 1), (25, 0)] {
            output.sent(sent);
            assert_eq!(output.replies(), replies);
            assert!(output.has_room() || replies == 3);
        }
        output.sent(len - 65);
        assert_eq!((output.held(), output.is_empty()), (0, true));
        output.reply(Op::Read, &request, b"");
        output.sent(16);
        assert_eq!(output.replies(), 0);
    }

    #[test]
    fn old_events_go() {
        let mut output = Output::default();
        let request = Header {
            op: 2,
            req_id: 9,
            tx_id: 3,
            len: 77,
        };
        while output.has_room() {
            output.reply(Op::Read, &request, &[0; 1000]);
        }
        let full = output.held();
        for n in 0..100 {
            output.event(event(n), n as u32 / 10);
        }
        assert_eq!((output.expire(0), output.expire(3)), (0, 30));
        assert!(output.held() > full && output.has_events());
        assert_eq!(output.expire(10), 70);
        assert_eq!((output.held(), output.has_events()), (full, false));
        output.event(event(7), 11);
        assert!(output.has_events());
    }
}
