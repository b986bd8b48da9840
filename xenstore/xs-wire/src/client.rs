//! The client's side without I/O: requests become bytes, bytes become replies and watch events.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use xen_sys::Errno;

use crate::decode::{Decoder, Message, TooLong, peek};
use crate::events::Events;
use crate::op::{Header, Op};
use crate::request::{Request, split_word};
use crate::types::{TxId, WatchEvent};

/// Most requests that may wait for their replies.
pub const MAX_PENDING: usize = 256;

/// A request that was sent and whose reply is not yet taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "the reply is kept until it is taken or forgotten"]
pub struct RequestId(u32);

/// The daemon's answer: the payload, or its error.
pub type Reply = Result<Vec<u8>, Errno>;

/// The daemon said something that it must not; the connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// A message announced too many bytes.
    TooLong(TooLong),
    /// A reply to a request that was not made, or not of its kind.
    UnexpectedReply {
        /// The operation's number.
        op: u32,
        /// The request's number.
        req_id: u32,
    },
    /// A watch event that is not two words of text.
    MalformedEvent,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::TooLong(error) => write!(f, "the store daemon sent {error}"),
            ProtocolError::UnexpectedReply { op, req_id } => write!(
                f,
                "the store daemon sent a reply of kind {op} to request {req_id}, which was not made"
            ),
            ProtocolError::MalformedEvent => {
                write!(f, "the store daemon sent a malformed watch event")
            }
        }
    }
}

impl core::error::Error for ProtocolError {}

#[derive(Debug)]
struct Pending {
    id: u32,
    op: Op,
    /// Path and token, of `WATCH` and `UNWATCH`.
    watch: Option<(String, String)>,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting,
    Forgotten,
    Done(Reply),
}

/// One connection's state. The owner moves bytes: from [`output`](Self::output) to the daemon, and what
/// comes from the daemon to [`feed`](Self::feed).
#[derive(Debug, Default)]
pub struct Client {
    decoder: Decoder,
    output: Vec<u8>,
    sent: usize,
    next_id: u32,
    /// The numbers have come round: one may be in use.
    has_wrapped: bool,
    /// In the order in which they were made, and their replies come and are most likely taken.
    pending: VecDeque<Pending>,
    events: Events,
    events_seen: u64,
    failed: Option<ProtocolError>,
}

impl Client {
    /// A client at the beginning of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Queues a request. E2BIG if it does not fit a message, EINVAL for a NUL within a word, EBUSY if
    /// [`MAX_PENDING`] requests wait already.
    pub fn request(&mut self, tx: Option<TxId>, request: &Request<'_>) -> Result<RequestId, Errno> {
        if self.pending.len() >= MAX_PENDING {
            return Err(Errno::EBUSY);
        }
        self.compact();
        let start = self.output.len();
        self.output.extend_from_slice(&[0; Header::SIZE]);
        if let Err(errno) = request.encode(&mut self.output) {
            self.output.truncate(start);
            return Err(errno);
        }
        let id = self.fresh_id();
        let header = Header {
            op: request.op().code(),
            req_id: id,
            tx_id: tx.map_or(0, |tx| tx.0.get()),
            len: (self.output.len() - start - Header::SIZE) as u32,
        };
        self.output[start..start + Header::SIZE].copy_from_slice(&header.encode());
        let watch = watch_in(request);
        if let (Op::Watch, Some((path, token))) = (request.op(), &watch) {
            self.events.asked(path, token);
        }
        self.pending.push_back(Pending {
            id,
            op: request.op(),
            watch,
            state: State::Waiting,
        });
        Ok(RequestId(id))
    }

    /// How many requests wait for their replies, or whose replies wait to be taken.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The bytes that wait to be sent.
    pub fn output(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// The first message that waits to be sent, once every request before it is answered; else nothing. For the kernel's
    /// device: it takes one whole message at a time, and Linux sends the body from the buffer that the next one is
    /// written to.
    pub fn output_message(&self) -> &[u8] {
        let output = self.output();
        let Ok(Some(frame)) = peek(output) else {
            return output;
        };
        let is_answered = |pending: &&Pending| matches!(pending.state, State::Done(_));
        let unanswered = self.pending.iter().find(|pending| !is_answered(pending));
        match unanswered {
            Some(other) if other.id != frame.header.req_id => &[],
            _ => &output[..frame.size()],
        }
    }

    /// Tells that the first `len` bytes of [`output`](Self::output) were sent.
    pub fn sent(&mut self, len: usize) {
        self.sent = (self.sent + len).min(self.output.len());
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        }
    }

    /// Takes what has come from the daemon. After an error the connection is lost: every further call
    /// returns that error.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), ProtocolError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.take_all(&mut bytes);
        self.failed = result.err();
        result
    }

    /// Takes the reply to a request, if it has come. A reply can be taken once.
    pub fn take_reply(&mut self, id: RequestId) -> Option<Reply> {
        let at = self.position(id.0)?;
        if !matches!(self.pending[at].state, State::Done(_)) {
            return None;
        }
        match self.pending.remove(at)?.state {
            State::Done(reply) => Some(reply),
            State::Waiting | State::Forgotten => None,
        }
    }

    /// Gives up waiting for a reply; it is dropped when it comes.
    pub fn forget(&mut self, id: RequestId) {
        if let Some(at) = self.position(id.0) {
            match self.pending[at].state {
                State::Done(_) => {
                    self.pending.remove(at);
                }
                _ => self.pending[at].state = State::Forgotten,
            }
        }
    }

    /// Takes the next watch event. Equal ones that wait are one; when more than [`MAX_EVENTS`](crate::MAX_EVENTS)
    /// wait, one event at a watch's own path stands for all of that watch.
    pub fn next_event(&mut self) -> Option<WatchEvent> {
        self.events.pop()
    }

    /// Takes the next event of the watches with this token.
    pub fn next_event_for(&mut self, token: &str) -> Option<WatchEvent> {
        self.next_event_if(|event| event.token == token)
    }

    /// Takes the next event that is wanted; the others wait on.
    pub fn next_event_if(&mut self, wanted: impl Fn(&WatchEvent) -> bool) -> Option<WatchEvent> {
        self.events.pop_if(wanted)
    }

    /// How many watch events have come, those that said nothing new included.
    pub fn events_seen(&self) -> u64 {
        self.events_seen
    }

    /// Whether a watch event waits.
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// Whether an event waits that is wanted.
    pub fn has_event_if(&self, wanted: impl Fn(&WatchEvent) -> bool) -> bool {
        self.events.has(wanted)
    }

    /// Token and path of each watch that is set, or asked for and not refused.
    pub fn watches(&self) -> impl Iterator<Item = (&str, &str)> {
        self.events.watches()
    }

    fn take_all(&mut self, bytes: &mut &[u8]) -> Result<(), ProtocolError> {
        while !bytes.is_empty() {
            if let Some(message) = self.decoder.feed(bytes).map_err(ProtocolError::TooLong)? {
                self.take(message)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, message: Message) -> Result<(), ProtocolError> {
        let Header { op, req_id, .. } = message.header;
        if op == Op::WatchEvent.code() {
            let event = parse_event(&message.body).ok_or(ProtocolError::MalformedEvent)?;
            self.events_seen += 1;
            self.events.push(event);
            return Ok(());
        }
        let unexpected = ProtocolError::UnexpectedReply { op, req_id };
        let at = self.position(req_id).ok_or(unexpected)?;
        let asked = &mut self.pending[at];
        let reply = if op == Op::Error.code() {
            Err(parse_error(&message.body))
        } else if op == asked.op.code() {
            Ok(message.body)
        } else {
            return Err(unexpected);
        };
        if matches!(asked.state, State::Done(_)) {
            return Err(unexpected);
        }
        match (asked.op, asked.watch.take(), &reply) {
            (Op::Watch, Some((path, token)), Err(_)) => self.events.refused(&path, &token),
            (Op::Unwatch, Some((path, token)), Ok(_)) => self.events.removed(&path, &token),
            (Op::ResetWatches, _, Ok(_)) => self.events.reset(),
            _ => {}
        }
        if matches!(asked.state, State::Forgotten) {
            self.pending.remove(at);
        } else {
            asked.state = State::Done(reply);
        }
        Ok(())
    }

    fn position(&self, id: u32) -> Option<usize> {
        // Unless some were forgotten or taken out of order, the numbers have no gaps.
        let first = self.pending.front()?.id;
        let near = id.wrapping_sub(first) as usize;
        match self.pending.get(near) {
            Some(pending) if pending.id == id => Some(near),
            _ => self.pending.iter().position(|pending| pending.id == id),
        }
    }

    fn fresh_id(&mut self) -> u32 {
        loop {
            // 0 is the number that events carry.
            match self.next_id.checked_add(1) {
                Some(next) => self.next_id = next,
                None => (self.next_id, self.has_wrapped) = (1, true),
            }
            if !self.has_wrapped || self.position(self.next_id).is_none() {
                return self.next_id;
            }
        }
    }

    fn compact(&mut self) {
        if self.sent > 0 {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
    }
}

/// The path and token of a request that sets or removes a watch.
fn watch_in(request: &Request<'_>) -> Option<(String, String)> {
    let (Request::Watch(path, token, _) | Request::Unwatch(path, token)) = request else {
        return None;
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some((text(path), text(token)))
}

/// The path and token in the payload of a watch event.
pub fn parse_event(body: &[u8]) -> Option<WatchEvent> {
    let (path, rest) = split_word(body)?;
    // A third word is what a later protocol may add.
    let (token, _) = split_word(rest)?;
    let text = |bytes: &[u8]| Some(String::from(core::str::from_utf8(bytes).ok()?));
    Some(WatchEvent {
        path: text(path)?,
        token: text(token)?,
    })
}

/// The error in the payload of an `ERROR` message; EIO for a name that is not known.
pub fn parse_error(body: &[u8]) -> Errno {
    let name = split_word(body).map_or(body, |(name, _)| name);
    Errno::from_name(name).unwrap_or(Errno::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn message(op: Op, req_id: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Header {
            op: op.code(),
            req_id,
            tx_id: 0,
            len: body.len() as u32,
        }
        .encode()
        .to_vec();
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn replies_find_their_requests() {
        let mut client = Client::new();
        let a = client.request(None, &Request::Read(b"/a")).unwrap();
        let b = client.request(None, &Request::Read(b"/b")).unwrap();
        let c = client.request(None, &Request::Read(b"/c")).unwrap();
        assert_eq!(client.output().len(), 3 * (16 + 3));
        assert_eq!(client.output_message(), &client.output()[..19]);
        client.sent(20);
        assert_eq!(client.output().len(), 2 * 19 - 1);
        client.forget(c);
        client.feed(&message(Op::Read, b.0, b"two")).unwrap();
        client.feed(&message(Op::Error, a.0, b"ENOENT\0")).unwrap();
        client.feed(&message(Op::Read, c.0, b"three")).unwrap();
        assert_eq!(client.take_reply(a), Some(Err(Errno::ENOENT)));
        assert_eq!(client.take_reply(b), Some(Ok(b"two".to_vec())));
        assert_eq!(client.take_reply(b), None);
        assert_eq!(client.take_reply(c), None);
        assert!(client.pending.is_empty());
    }

    #[test]
    fn events_between_replies() {
        let mut client = Client::new();
        let a = client.request(None, &Request::Read(b"/a")).unwrap();
        let mut stream = message(Op::WatchEvent, 0, b"/x\0t\0");
        stream.extend(message(Op::WatchEvent, 0, b"/x\0t\0"));
        stream.extend(message(Op::WatchEvent, 0, b"/y\0t\0"));
        stream.extend(message(Op::Read, a.0, b""));
        for byte in stream {
            client.feed(&[byte]).unwrap();
        }
        assert_eq!(client.take_reply(a), Some(Ok(vec![])));
        assert_eq!(client.next_event().unwrap().path, "/x");
        assert_eq!(client.next_event().unwrap().path, "/y");
        assert_eq!(client.next_event(), None);
    }

    #[test]
    fn a_wrong_daemon_is_an_error_that_stays() {
        for bytes in [
            message(Op::Read, 9, b""),
            message(Op::Write, 1, b"OK\0"),
            message(Op::WatchEvent, 0, b"/x\0"),
            message(Op::WatchEvent, 0, b"\xff\0\0"),
        ] {
            let mut client = Client::new();
            let id = client.request(None, &Request::Read(b"/a")).unwrap();
            assert_eq!(id.0, 1);
            let error = client.feed(&bytes).unwrap_err();
            assert_eq!(client.feed(&[]), Err(error));
        }
    }

    #[test]
    fn limits() {
        let mut client = Client::new();
        for _ in 0..MAX_PENDING {
            let _ = client.request(None, &Request::Read(b"/a")).unwrap();
        }
        assert_eq!(
            client.request(None, &Request::Read(b"/a")),
            Err(Errno::EBUSY)
        );
    }

    #[test]
    fn one_message_at_a_time_is_answered_before_the_next() {
        let mut client = Client::new();
        let ids = [b"/a", b"/b"].map(|path| client.request(None, &Request::Read(path)).unwrap());
        let first = client.output_message().len();
        client.sent(first);
        assert!(client.output_message().is_empty() && !client.output().is_empty());
        client.forget(ids[0]);
        assert!(
            client.output_message().is_empty(),
            "forgotten is not answered"
        );
        let reply = message(Op::Read, ids[0].0, b"x");
        client.feed(&reply).unwrap();
        assert_eq!(client.output_message(), client.output());
    }

    #[test]
    fn watches_are_followed() {
        let watches = |client: &Client| -> Vec<String> {
            let text = |(token, path)| alloc::format!("{token}={path}");
            client.watches().map(text).collect()
        };
        let mut client = Client::new();
        let mut ask = |request: Request<'_>, op, body: &[u8]| {
            let id = client.request(None, &request).unwrap();
            client.feed(&message(op, id.0, body)).unwrap();
            let event = message(Op::WatchEvent, 0, b"/a/b\0t\0");
            client.feed(&event).unwrap();
            watches(&client)
        };
        let refused = ask(Request::Watch(b"/x", b"t", None), Op::Error, b"EACCES\0");
        assert!(refused.is_empty());
        let set = ask(Request::Watch(b"/a", b"t", None), Op::Watch, b"OK\0");
        assert_eq!(set, ["t=/a"]);
        // EEXIST: the one that is there stays.
        let twice = ask(Request::Watch(b"/a", b"t", None), Op::Error, b"EEXIST\0");
        assert_eq!(twice, ["t=/a"]);
        let other = ask(Request::Unwatch(b"/z", b"t"), Op::Error, b"ENOENT\0");
        assert_eq!(other, ["t=/a"]);
        assert!(client.has_event_if(|event| event.token == "t"));
        let id = client.request(None, &Request::Unwatch(b"/a", b"t"));
        let id = id.unwrap();
        client.feed(&message(Op::Unwatch, id.0, b"OK\0")).unwrap();
        assert!(!client.has_event() && watches(&client).is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(prop_oneof![0u8..24, Just(0u8)], 0..400)) {
            let mut client = Client::new();
            let id = client.request(None, &Request::TransactionStart).unwrap();
            let _ = client.feed(&bytes);
            let _ = client.take_reply(id);
            while client.next_event().is_some() {}
        }
    }
}
