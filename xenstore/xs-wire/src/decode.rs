//! Turns a stream of bytes, however it is cut, into messages of at most 4096 bytes of payload.

use alloc::vec::Vec;
use core::fmt;

use crate::op::{Header, PAYLOAD_MAX};

/// A whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its header; `len` is the body's length.
    pub header: Header,
    /// Its payload.
    pub body: Vec<u8>,
}

/// A header announced more than [`PAYLOAD_MAX`] bytes: the stream cannot be followed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    /// The length announced.
    pub len: u32,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a message of {} bytes, more than {PAYLOAD_MAX}",
            self.len
        )
    }
}

impl core::error::Error for TooLong {}

/// A whole message where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its header; `len` is the body's length.
    pub header: Header,
    /// Its payload.
    pub body: &'a [u8],
}

impl Frame<'_> {
    /// Bytes of header and payload.
    pub fn size(&self) -> usize {
        Header::SIZE + self.body.len()
    }
}

/// Looks at the first message in `bytes` without copying; `None` if it is not complete yet.
pub fn peek(bytes: &[u8]) -> Result<Option<Frame<'_>>, TooLong> {
    let Some((head, rest)) = bytes.split_first_chunk::<{ Header::SIZE }>() else {
        return Ok(None);
    };
    let header = Header::decode(head);
    if header.len as usize > PAYLOAD_MAX {
        return Err(TooLong { len: header.len });
    }
    Ok(rest
        .get(..header.len as usize)
        .map(|body| Frame { header, body }))
}

/// Collects one message at a time. Holds at most 16 + 4096 bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes from the front of `input` until a message is complete or `input` is empty. After an
    /// error every further call returns that error.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Message>, TooLong> {
        self.take(input, Header::SIZE);
        let Some(head) = self.bytes.first_chunk::<{ Header::SIZE }>() else {
            return Ok(None);
        };
        let header = Header::decode(head);
        if header.len as usize > PAYLOAD_MAX {
            return Err(TooLong { len: header.len });
        }
        let whole = Header::SIZE + header.len as usize;
        self.take(input, whole);
        if self.bytes.len() < whole {
            return Ok(None);
        }
        let body = self.bytes.split_off(Header::SIZE);
        self.bytes.clear();
        Ok(Some(Message { header, body }))
    }

    /// Whether the stream stands between two messages.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn take(&mut self, input: &mut &[u8], until: usize) {
        let len = until.saturating_sub(self.bytes.len()).min(input.len());
        let (now, later) = input.split_at(len);
        self.bytes.extend_from_slice(now);
        *input = later;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message() -> impl Strategy<Value = Message> {
        (
            any::<u32>(),
            any::<u32>(),
            any::<u32>(),
            proptest::collection::vec(any::<u8>(), 0..300),
        )
            .prop_map(|(op, req_id, tx_id, body)| Message {
                header: Header {
                    op,
                    req_id,
                    tx_id,
                    len: body.len() as u32,
                },
                body,
            })
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_messages(messages in proptest::collection::vec(message(), 0..8), cut in 1usize..64) {
            let mut stream = Vec::new();
            for message in &messages {
                stream.extend_from_slice(&message.header.encode());
                stream.extend_from_slice(&message.body);
            }
            let mut decoder = Decoder::new();
            let mut got = Vec::new();
            for mut piece in stream.chunks(cut) {
                while !piece.is_empty() {
                    got.extend(decoder.feed(&mut piece).unwrap());
                }
            }
            // A message without a body is complete with its header, even if nothing follows.
            prop_assert!(decoder.is_empty());
            prop_assert_eq!(&got, &messages);

            let mut rest = &stream[..];
            for message in &messages {
                let frame = peek(rest).unwrap().unwrap();
                prop_assert_eq!(frame.header, message.header);
                prop_assert_eq!(frame.body, &message.body[..]);
                rest = &rest[frame.size()..];
            }
        }

        #[test]
        fn any_bytes_are_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..6000)) {
            let mut decoder = Decoder::new();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let before = rest.len();
                match decoder.feed(&mut rest) {
                    Ok(_) => prop_assert!(rest.len() < before),
                    Err(error) => { prop_assert!(error.len as usize > PAYLOAD_MAX); break; }
                }
                prop_assert!(decoder.bytes.len() <= Header::SIZE + PAYLOAD_MAX);
            }
            let _ = peek(&bytes);
        }
    }

    #[test]
    fn limits() {
        for (len, ok) in [(0, true), (4096, true), (4097, false), (u32::MAX, false)] {
            let header = Header {
                op: 2,
                req_id: 0,
                tx_id: 0,
                len,
            };
            let bytes = header.encode();
            assert_eq!(Decoder::new().feed(&mut &bytes[..]).is_ok(), ok, "{len}");
            assert_eq!(peek(&bytes).is_ok(), ok, "{len}");
        }
    }
}
