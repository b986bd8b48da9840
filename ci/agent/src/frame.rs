//! Cuts a byte stream into checksummed frames, and finds the next frame after damage.
//!
//! Layout, little-endian: magic u32, kind u32, id u32, payload length u32, crc32 u32 (of the
//! sixteen bytes before it and of the payload), payload.

/// First four bytes of each frame.
pub const MAGIC: u32 = u32::from_le_bytes(*b"XLb1");
/// Bytes before the payload.
pub const HEADER_LEN: usize = 20;
/// Longest payload of one frame.
pub const MAX_PAYLOAD: usize = 32 * 1024;

/// One frame: what kind, which command it belongs to, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Number of a [`crate::message::Kind`].
    pub kind: u32,
    /// Number of the command it belongs to; 0 for the connection itself.
    pub id: u32,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The frame's bytes on the wire. A payload that is too long is a bug of the caller.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.payload.len() <= MAX_PAYLOAD, "frame payload too long");
        let mut out = Vec::with_capacity(HEADER_LEN + self.payload.len());
        for word in [MAGIC, self.kind, self.id, self.payload.len() as u32] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let crc = crc32(&[&out, &self.payload]);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&self.payload);
        out
    }
}

/// Collects bytes and gives out whole, checked frames.
#[derive(Default)]
pub struct Decoder {
    buf: Vec<u8>,
    skipped: u64,
}

impl Decoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as they came from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// How many bytes belonged to no sound frame so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The next whole frame, if one is there. Bytes that are no frame are skipped and counted.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let mut at = 0;
        let found = loop {
            match parse(&self.buf[at..]) {
                Parsed::Frame(frame, used) => {
                    at += used;
                    break Some(frame);
                }
                Parsed::NeedMore => break None,
                Parsed::Bad => {
                    at += 1;
                    self.skipped += 1;
                }
            }
        };
        self.buf.drain(..at);
        found
    }
}

enum Parsed {
    Frame(Frame, usize),
    NeedMore,
    Bad,
}

fn parse(buf: &[u8]) -> Parsed {
    let magic = MAGIC.to_le_bytes();
    let have = buf.len().min(4);
    if buf[..have] != magic[..have] {
        return Parsed::Bad;
    }
    if buf.len() < HEADER_LEN {
        return Parsed::NeedMore;
    }
    let word =
        |n: usize| u32::from_le_bytes([buf[n * 4], buf[n * 4 + 1], buf[n * 4 + 2], buf[n * 4 + 3]]);
    let len = word(3) as usize;
    if len > MAX_PAYLOAD {
        return Parsed::Bad;
    }
    let Some(payload) = buf.get(HEADER_LEN..HEADER_LEN + len) else {
        return Parsed::NeedMore;
    };
    if crc32(&[&buf[..16], payload]) != word(4) {
        return Parsed::Bad;
    }
    let frame = Frame {
        kind: word(1),
        id: word(2),
        payload: payload.to_vec(),
    };
    Parsed::Frame(frame, HEADER_LEN + len)
}

/// CRC-32 (IEEE 802.3, reflected, polynomial 0xedb88320) over the parts, as if joined.
pub fn crc32(parts: &[&[u8]]) -> u32 {
    let mut crc = !0u32;
    for byte in parts.iter().flat_map(|p| p.iter()) {
        crc = (crc >> 8) ^ CRC_TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize];
    }
    !crc
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut c = i as u32;
        let mut bit = 0;
        while bit < 8 {
            c = if c & 1 == 1 {
                (c >> 1) ^ 0xedb8_8320
            } else {
                c >> 1
            };
            bit += 1;
        }
        table[i] = c;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn crc_of_the_standard_check_string() {
        assert_eq!(crc32(&[b"1234", b"56789"]), 0xcbf4_3926);
    }

    fn arb_frame() -> impl Strategy<Value = Frame> {
        (
            any::<u32>(),
            any::<u32>(),
            proptest::collection::vec(any::<u8>(), 0..300),
        )
            .prop_map(|(kind, id, payload)| Frame { kind, id, payload })
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_the_stream(
            frames in proptest::collection::vec(arb_frame(), 1..8), chunk in 1usize..64,
        ) {
            let wire: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
            let mut dec = Decoder::new();
            let mut got = Vec::new();
            for part in wire.chunks(chunk) {
                dec.push(part);
                got.extend(std::iter::from_fn(|| dec.next_frame()));
            }
            prop_assert_eq!(got, frames);
            prop_assert_eq!(dec.skipped(), 0);
        }

        #[test]
        fn a_sound_frame_is_found_after_noise(
            noise in proptest::collection::vec(any::<u8>(), 0..100), frame in arb_frame(),
        ) {
            let mut dec = Decoder::new();
            dec.push(&noise);
            while dec.next_frame().is_some() {}
            // Enough sound frames to get past a header the noise may have begun.
            let mut seen = false;
            for _ in 0..(MAX_PAYLOAD / HEADER_LEN + 10) {
                dec.push(&frame.encode());
                while let Some(f) = dec.next_frame() { seen |= f == frame; }
                if seen { break; }
            }
            prop_assert!(seen);
        }

        #[test]
        fn a_flipped_bit_never_gives_a_wrong_frame(frame in arb_frame(), at in any::<usize>(), bit in 0u8..8) {
            let mut wire = frame.encode();
            let at = at % wire.len();
            wire[at] ^= 1 << bit;
            let mut dec = Decoder::new();
            dec.push(&wire);
            prop_assert!(dec.next_frame().is_none_or(|f| f != frame));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut dec = Decoder::new();
            dec.push(&bytes);
            while dec.next_frame().is_some() {}
        }
    }
}
