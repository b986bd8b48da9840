//! Turns the bytes of a ring slot into a checked request, or into the reason to refuse it.

use xen_sys::io::blkif;
use xen_sys::{GrantRef, PAGE_SIZE};

use crate::Protocol;

/// Bytes of a sector in the protocol, whatever the disk's own are.
pub const SECTOR: u64 = blkif::SECTOR_SIZE as u64;

/// A slot's content, taken apart and not yet believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRequest {
    /// `BLKIF_OP_*`, or anything.
    pub operation: u8,
    /// Number of segments; of a discard, its flags; of an indirect request, what it is to do.
    pub nr_segments: u8,
    /// The guest's own name for the request, to be echoed.
    pub id: u64,
    /// First sector.
    pub sector: u64,
    /// Of a discard: how many sectors. Lies over the segments.
    pub nr_sectors: u64,
    /// Segments, as many as fit into a slot.
    pub segments: [Segment; blkif::MAX_SEGMENTS_PER_REQUEST],
    /// Of an indirect request: how many segments. Lies over the handle.
    pub indirect_count: u16,
    /// Of an indirect request: the pages that hold the segments. Lies over the segments.
    pub indirect_grefs: [GrantRef; blkif::MAX_INDIRECT_PAGES_PER_REQUEST],
}

/// Part of a page: sectors `first..=last` of the 8 in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The page.
    pub gref: GrantRef,
    /// First sector, 0 to 7.
    pub first: u8,
    /// Last sector, `first` to 7.
    pub last: u8,
}

impl Segment {
    /// Takes `struct blkif_request_segment` apart; the same in both protocols.
    pub fn decode(bytes: &[u8], at: usize) -> Segment {
        Segment {
            gref: GrantRef(u32::from_le_bytes(take(bytes, at))),
            first: bytes[at + 4],
            last: bytes[at + 5],
        }
    }

    /// Offset in the page, in bytes.
    pub fn offset(&self) -> u16 {
        u16::from(self.first) * SECTOR as u16
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        (usize::from(self.last - self.first) + 1) * SECTOR as usize
    }

    /// Never: a checked segment has at least one sector.
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl RawRequest {
    /// Takes a slot's bytes apart (`struct blkif_request`, io/blkif.h). x86_32 aligns 64-bit fields to 4,
    /// so all from `id` on lies 4 bytes lower there.
    pub fn decode(slot: &[u8; blkif_request::MAX], protocol: Protocol) -> RawRequest {
        let base = match protocol {
            Protocol::Native => 8,
            Protocol::X86_32 => 4,
        };
        RawRequest {
            operation: slot[0],
            nr_segments: slot[1],
            id: u64::from_le_bytes(take(slot, base)),
            sector: u64::from_le_bytes(take(slot, base + 8)),
            nr_sectors: u64::from_le_bytes(take(slot, base + 16)),
            segments: std::array::from_fn(|n| Segment::decode(slot, base + 16 + 8 * n)),
            indirect_count: u16::from_le_bytes(take(slot, 2)),
            indirect_grefs: std::array::from_fn(|n| {
                GrantRef(u32::from_le_bytes(take(slot, base + 20 + 4 * n)))
            }),
        }
    }

    /// What the response names as the operation: of an indirect request, what it was to do.
    pub fn answers(&self) -> u8 {
        match self.operation {
            blkif::OP_INDIRECT => self.nr_segments,
            other => other,
        }
    }

    /// Where the segments of an indirect request are, `None` if it is another one.
    pub fn indirect(&self, limits: &Limits) -> Result<Option<Indirect<'_>>, Refusal> {
        if self.operation != blkif::OP_INDIRECT {
            return Ok(None);
        }
        if limits.indirect == 0 {
            return Err(Refusal::Operation(self.operation));
        }
        if self.nr_segments != blkif::OP_READ && self.nr_segments != blkif::OP_WRITE {
            return Err(Refusal::IndirectOperation(self.nr_segments));
        }
        let count = self.indirect_count;
        if count == 0 {
            return Err(Refusal::NoSegments);
        }
        if count > limits.indirect {
            return Err(Refusal::TooManySegments(count));
        }
        let pages = usize::from(count).div_ceil(SEGMENTS_PER_PAGE);
        let grefs = self.indirect_grefs.get(..pages);
        Ok(Some(Indirect {
            count: usize::from(count),
            grefs: grefs.ok_or(Refusal::TooManySegments(count))?,
        }))
    }

    /// Checks everything that can be checked without touching the guest's pages. `indirect` are the
    /// segments that [`indirect`](Self::indirect) told to fetch, taken from no other request.
    pub fn check(&self, limits: &Limits, indirect: Vec<Segment>) -> Result<Request, Refusal> {
        match self.operation {
            blkif::OP_READ => self.direct(Op::Read, limits),
            blkif::OP_WRITE => self.direct(Op::Write, limits),
            // Linux sends data with a flush if it wants both in one.
            blkif::OP_FLUSH_DISKCACHE if self.nr_segments == 0 => Ok(Request::bare(Op::Flush)),
            blkif::OP_FLUSH_DISKCACHE => self.direct(Op::FlushWrite, limits),
            blkif::OP_WRITE_BARRIER if limits.read_only => Err(Refusal::ReadOnly),
            blkif::OP_WRITE_BARRIER if self.nr_segments == 0 => Ok(Request::bare(Op::Barrier)),
            blkif::OP_WRITE_BARRIER => self.direct(Op::Barrier, limits),
            blkif::OP_DISCARD if limits.discard => self.discard(limits),
            blkif::OP_INDIRECT => match (self.indirect(limits)?, self.nr_segments) {
                (Some(_), blkif::OP_READ) => self.transfer(Op::Read, indirect, limits),
                (Some(_), _) => self.transfer(Op::Write, indirect, limits),
                (None, _) => Err(Refusal::Operation(self.operation)),
            },
            other => Err(Refusal::Operation(other)),
        }
    }

    fn direct(&self, op: Op, limits: &Limits) -> Result<Request, Refusal> {
        let segments = self
            .segments
            .get(..usize::from(self.nr_segments))
            .ok_or(Refusal::TooManySegments(self.nr_segments.into()))?;
        self.transfer(op, segments.to_vec(), limits)
    }

    fn transfer(
        &self,
        op: Op,
        segments: Vec<Segment>,
        limits: &Limits,
    ) -> Result<Request, Refusal> {
        if op != Op::Read && limits.read_only {
            return Err(Refusal::ReadOnly);
        }
        if segments.is_empty() {
            return Err(Refusal::NoSegments);
        }
        let mut len = 0;
        for segment in &segments {
            if segment.last >= blkif::SECTORS_PER_PAGE || segment.first > segment.last {
                return Err(Refusal::Segment(*segment));
            }
            len += segment.len() as u64;
        }
        let offset = limits.range(self.sector, len / SECTOR)?;
        let unit = u64::from(limits.sector_size);
        if !offset.is_multiple_of(unit) || !len.is_multiple_of(unit) {
            return Err(Refusal::Unaligned {
                sector: self.sector,
                count: len / SECTOR,
            });
        }
        Ok(Request {
            op,
            offset,
            len: len as usize,
            segments,
        })
    }

    fn discard(&self, limits: &Limits) -> Result<Request, Refusal> {
        if limits.read_only {
            return Err(Refusal::ReadOnly);
        }
        // Secure erasure was not offered; a wish for it that cannot be met must not look fulfilled.
        if self.nr_segments & blkif::DISCARD_SECURE != 0 {
            return Err(Refusal::Operation(self.operation));
        }
        let mut offset = limits.range(self.sector, self.nr_sectors)?;
        let end = offset + self.nr_sectors * SECTOR;
        // What does not fill a sector of the disk's is kept: a discard is a hint.
        let unit = u64::from(limits.sector_size);
        offset = offset.next_multiple_of(unit);
        Ok(Request {
            offset,
            ..Request::bare(Op::Discard {
                len: (end / unit * unit).saturating_sub(offset),
            })
        })
    }
}

/// Where the segments of an indirect request are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indirect<'a> {
    /// How many segments.
    pub count: usize,
    /// The pages that hold them, [`SEGMENTS_PER_PAGE`] each.
    pub grefs: &'a [GrantRef],
}

/// Segments in a page of them.
pub const SEGMENTS_PER_PAGE: usize = PAGE_SIZE / size_of::<blkif::Segment>();

/// Most segments of an indirect request that are offered: 1 MiB of whole pages.
pub const MAX_INDIRECT: u16 = 256;

/// What a disk allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size in sectors of 512 bytes.
    pub sectors_512: u64,
    /// The unit in which it is read and written, in bytes: a power of two from 512 to 4096.
    pub sector_size: u32,
    /// No writes.
    pub read_only: bool,
    /// Discard was offered.
    pub discard: bool,
    /// Most segments of an indirect request, 0 if those were not offered.
    pub indirect: u16,
}

impl Limits {
    /// The byte offset of sectors that lie on the disk.
    fn range(&self, sector: u64, count: u64) -> Result<u64, Refusal> {
        let fits = sector
            .checked_add(count)
            .is_some_and(|end| end <= self.sectors_512);
        fits.then(|| sector * SECTOR)
            .ok_or(Refusal::OffTheEnd { sector, count })
    }
}

/// A request that may be carried out: it lies on the disk and its segments lie in their pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// Bytes to transfer: the sum of the segments.
    pub len: usize,
    segments: Vec<Segment>,
}

impl Request {
    fn bare(op: Op) -> Request {
        Request {
            op,
            offset: 0,
            len: 0,
            segments: Vec::new(),
        }
    }

    /// The guest's pages to transfer from or to, in order; at most [`MAX_INDIRECT`].
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// From disk to guest.
    Read,
    /// From guest to disk.
    Write,
    /// Everything acknowledged so far is made to last.
    Flush,
    /// A flush, then a write.
    FlushWrite,
    /// Everything before is done and made to last, then a write (if there are segments) that lasts too, then
    /// what comes after.
    Barrier,
    /// The guest does not need these bytes any more.
    Discard {
        /// How many.
        len: u64,
    },
}

/// Why a request is answered with an error before anything is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An operation that is unknown or was not offered.
    Operation(u8),
    /// A transfer of nothing.
    NoSegments,
    /// More segments than a slot holds, or than were offered (XSA-513).
    TooManySegments(u16),
    /// An indirect request for something else than reading or writing.
    IndirectOperation(u8),
    /// Not in whole sectors of the disk.
    Unaligned {
        /// First sector, of 512 bytes.
        sector: u64,
        /// Number of sectors.
        count: u64,
    },
    /// Sectors beyond the page, or backwards (XSA-513).
    Segment(Segment),
    /// Sectors beyond the end of the disk, or beyond 64 bits.
    OffTheEnd {
        /// First sector.
        sector: u64,
        /// Number of sectors.
        count: u64,
    },
    /// A write to a read-only disk.
    ReadOnly,
}

impl Refusal {
    /// The `BLKIF_RSP_*` for it.
    pub fn status(&self) -> i16 {
        match self {
            Refusal::Operation(_) => blkif::RSP_EOPNOTSUPP,
            _ => blkif::RSP_ERROR,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Operation(op) => write!(f, "operation {op} was not offered"),
            Refusal::IndirectOperation(op) => write!(f, "operation {op} in an indirect request"),
            Refusal::Unaligned { sector, count } => write!(
                f,
                "{count} sectors of 512 bytes from {sector} on, not in whole sectors of the disk"
            ),
            Refusal::NoSegments => write!(f, "a transfer without segments"),
            Refusal::TooManySegments(count) => write!(f, "{count} segments"),
            Refusal::Segment(s) => write!(f, "a segment from sector {} to {}", s.first, s.last),
            Refusal::OffTheEnd { sector, count } => {
                write!(
                    f,
                    "{count} sectors from {sector} on, beyond the end of the disk"
                )
            }
            Refusal::ReadOnly => write!(f, "a write to a read-only disk"),
        }
    }
}

/// The bytes of a response (`struct blkif_response`), all of them set (XSA-216). x86_32's are the first 12.
pub fn response(id: u64, operation: u8, status: i16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&id.to_le_bytes());
    bytes[8] = operation;
    bytes[10..12].copy_from_slice(&status.to_le_bytes());
    bytes
}

/// Sizes of a request.
pub mod blkif_request {
    /// The larger of the two protocols' slots, in bytes.
    pub const MAX: usize = 112;
    /// An x86_32 slot, in bytes.
    pub const X86_32: usize = 108;
}

fn take<const N: usize>(slot: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|n| slot[at + n])
}

// The offsets above are those of the header.
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<blkif::Request>() == blkif_request::MAX);
    assert!(offset_of!(blkif::Request, id) == 8);
    assert!(offset_of!(blkif::Request, sector_number) == 16);
    assert!(offset_of!(blkif::RequestDiscard, nr_sectors) == 24);
    assert!(offset_of!(blkif::Request, seg) == 24);
    assert!(size_of::<blkif::Segment>() == 8);
    assert!(offset_of!(blkif::RequestIndirect, indirect_op) == 1);
    assert!(offset_of!(blkif::RequestIndirect, nr_segments) == 2);
    assert!(offset_of!(blkif::RequestIndirect, sector_number) == 16);
    assert!(offset_of!(blkif::RequestIndirect, indirect_grefs) == 28);
    assert!(size_of::<blkif::Response>() == 16);
    assert!(offset_of!(blkif::Response, status) == 10);
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        sectors_512: 1000,
        sector_size: 512,
        read_only: false,
        discard: true,
        indirect: MAX_INDIRECT,
    };

    fn raw(operation: u8, sector: u64, segments: &[(u8, u8)]) -> RawRequest {
        let mut raw = RawRequest {
            operation,
            nr_segments: segments.len() as u8,
            id: 7,
            sector,
            nr_sectors: 0,
            segments: Default::default(),
            indirect_count: 0,
            indirect_grefs: Default::default(),
        };
        for (n, &(first, last)) in segments.iter().enumerate() {
            let gref = GrantRef(100 + n as u32);
            raw.segments[n] = Segment { gref, first, last };
        }
        raw
    }

    #[test]
    fn what_is_allowed() {
        let check = |raw: RawRequest, op, offset, len| {
            let request = raw.check(&LIMITS, Vec::new()).expect("allowed");
            assert_eq!((request.op, request.offset, request.len), (op, offset, len));
        };
        check(raw(0, 0, &[(0, 7)]), Op::Read, 0, 4096);
        check(raw(0, 992, &[(0, 7)]), Op::Read, 992 * 512, 4096);
        check(raw(1, 999, &[(3, 3)]), Op::Write, 999 * 512, 512);
        check(raw(1, 1, &[(0, 7); 11]), Op::Write, 512, 45056);
        check(raw(3, u64::MAX, &[]), Op::Flush, 0, 0);
        check(raw(3, 8, &[(0, 0)]), Op::FlushWrite, 4096, 512);
        check(raw(2, 8, &[(0, 0)]), Op::Barrier, 4096, 512);
        check(raw(2, u64::MAX, &[]), Op::Barrier, 0, 0);
        let mut discard = raw(5, 10, &[]);
        discard.nr_sectors = 990;
        check(discard, Op::Discard { len: 990 * 512 }, 5120, 0);
    }

    #[test]
    fn what_is_refused() {
        let check = |raw: RawRequest, limits: Limits, status, why: &str| {
            let refusal = raw.check(&limits, Vec::new()).expect_err(why);
            assert_eq!(refusal.status(), status, "{refusal}");
            assert!(refusal.to_string().contains(why), "{refusal}");
        };
        let read_only = Limits {
            read_only: true,
            ..LIMITS
        };
        let (error, unsupported) = (-1, -2);
        let many = |nr_segments| RawRequest {
            nr_segments,
            ..raw(0, 0, &[(0, 7)])
        };
        check(raw(0, 0, &[]), LIMITS, error, "without segments");
        check(many(12), LIMITS, error, "12 segments");
        check(many(32), LIMITS, error, "32 segments");
        check(many(255), LIMITS, error, "255 segments");
        check(raw(0, 0, &[(0, 8)]), LIMITS, error, "sector 0 to 8");
        check(
            raw(0, 0, &[(0, 7), (255, 255)]),
            LIMITS,
            error,
            "255 to 255",
        );
        check(raw(1, 0, &[(5, 4)]), LIMITS, error, "sector 5 to 4");
        check(raw(0, 993, &[(0, 7)]), LIMITS, error, "beyond the end");
        check(raw(0, u64::MAX, &[(0, 0)]), LIMITS, error, "beyond the end");
        check(
            raw(0, u64::MAX / 512, &[(0, 0)]),
            LIMITS,
            error,
            "beyond the end",
        );
        check(raw(1, 0, &[(0, 7)]), read_only, error, "read-only");
        check(raw(3, 0, &[(0, 7)]), read_only, error, "read-only");
        check(raw(2, 0, &[(0, 7)]), read_only, error, "read-only");
        check(raw(4, 0, &[(0, 7)]), LIMITS, unsupported, "operation 4");
        let big = Limits {
            sector_size: 4096,
            ..LIMITS
        };
        check(raw(0, 4, &[(0, 7)]), big, error, "whole sectors");
        check(raw(1, 8, &[(0, 6)]), big, error, "whole sectors");
        check(raw(255, 0, &[(0, 7)]), LIMITS, unsupported, "operation 255");

        let discard = |nr_sectors, flag| RawRequest {
            nr_sectors,
            nr_segments: flag,
            ..raw(5, 10, &[])
        };
        let none = Limits {
            discard: false,
            ..LIMITS
        };
        check(discard(991, 0), LIMITS, error, "beyond the end");
        check(discard(u64::MAX - 5, 0), LIMITS, error, "beyond the end");
        check(discard(1, 1), LIMITS, unsupported, "operation 5");
        check(discard(1, 0), none, unsupported, "operation 5");
        check(discard(1, 0), read_only, error, "read-only");
    }

    #[test]
    fn both_protocols_are_taken_apart() {
        let mut native = [0u8; 112];
        native[0] = 1;
        native[1] = 2;
        native[8..16].copy_from_slice(&0x1122_3344_5566_7788u64.to_le_bytes());
        native[16..24].copy_from_slice(&99u64.to_le_bytes());
        native[24..28].copy_from_slice(&5u32.to_le_bytes());
        native[28..30].copy_from_slice(&[1, 6]);
        native[104..108].copy_from_slice(&77u32.to_le_bytes());
        let mut packed = [0u8; 112];
        packed[..4].copy_from_slice(&native[..4]);
        packed[4..108].copy_from_slice(&native[8..]);
        let one = RawRequest::decode(&native, Protocol::Native);
        let other = RawRequest::decode(&packed, Protocol::X86_32);
        assert_eq!(one, other);
        assert_eq!((one.operation, one.nr_segments, one.sector), (1, 2, 99));
        assert_eq!(one.id, 0x1122_3344_5566_7788);
        assert_eq!(one.segments[10].gref, GrantRef(77));
        let first = Segment {
            gref: GrantRef(5),
            first: 1,
            last: 6,
        };
        assert_eq!(one.segments[0], first);
        assert_eq!((first.offset(), first.len()), (512, 3072));
    }

    #[test]
    fn indirect_requests() {
        let indirect = |op, count| RawRequest {
            nr_segments: op,
            indirect_count: count,
            ..raw(6, 0, &[])
        };
        let whole = |count| {
            let segment = Segment {
                gref: GrantRef(1),
                first: 0,
                last: 7,
            };
            vec![segment; count]
        };
        for (count, pages) in [(1, 1), (125, 1), (256, 1)] {
            let request = indirect(0, count);
            let at = request.indirect(&LIMITS).unwrap().unwrap();
            assert_eq!((at.count, at.grefs.len()), (count.into(), pages));
        }
        let request = indirect(1, 125).check(&LIMITS, whole(125)).unwrap();
        assert_eq!((request.op, request.len), (Op::Write, 125 * 4096));
        assert_eq!(indirect(1, 9).answers(), 1);
        let none = Limits {
            indirect: 0,
            ..LIMITS
        };
        for (request, limits, status, why) in [
            (indirect(0, 0), LIMITS, -1, "without segments"),
            (indirect(0, 257), LIMITS, -1, "257 segments"),
            (indirect(0, u16::MAX), LIMITS, -1, "65535 segments"),
            (indirect(3, 1), LIMITS, -1, "operation 3"),
            (indirect(6, 1), LIMITS, -1, "operation 6"),
            (indirect(0, 1), none, -2, "not offered"),
        ] {
            let refusal = request.indirect(&limits).unwrap_err();
            assert_eq!(refusal.status(), status);
            assert!(refusal.to_string().contains(why), "{refusal}");
            assert!(request.check(&limits, Vec::new()).is_err());
        }
        assert!(indirect(0, 126).check(&LIMITS, whole(126)).is_err());
        assert!(indirect(0, 1).check(&LIMITS, Vec::new()).is_err());
    }

    #[test]
    fn a_discard_keeps_what_does_not_fill_a_sector() {
        let big = Limits {
            sector_size: 4096,
            ..LIMITS
        };
        for (sector, count, offset, len) in [
            (0, 8, 0, 4096),
            (1, 15, 4096, 4096),
            (1, 6, 4096, 0),
            (9, 20, 8192, 4096),
        ] {
            let request = RawRequest {
                nr_sectors: count,
                ..raw(5, sector, &[])
            };
            let request = request.check(&big, Vec::new()).unwrap();
            let expected = (offset, Op::Discard { len });
            assert_eq!((request.offset, request.op), expected, "{sector}+{count}");
        }
    }

    proptest! {
        #[test]
        fn whatever_passes_the_check_is_in_range(
            slot in proptest::collection::vec(any::<u8>(), 112),
            op in 0u8..7, count in 0u8..14, small: bool, slot_len in 0usize..40,
            sectors_512 in 0u64..5000, read_only: bool, discard: bool, x32: bool,
        ) {
            let mut bytes: [u8; 112] = slot.try_into().unwrap();
            (bytes[0], bytes[1]) = (op, count);
            let base = if x32 { 4 } else { 8 };
            if small {
                // Mostly valid numbers, so that both outcomes are met.
                bytes[base + 9..base + 16].fill(0);
                for n in 0..11 {
                    bytes[base + 20 + 8 * n] &= 3;
                    bytes[base + 21 + 8 * n] &= 7;
                }
            }
            let protocol = if x32 { Protocol::X86_32 } else { Protocol::Native };
            let sector_size = 512 << (slot_len % 4);
            let limits = Limits { sectors_512, sector_size, read_only, discard, indirect: 32 };
            let raw = RawRequest::decode(&bytes, protocol);
            let segments = (0..slot_len).map(|n| Segment::decode(&bytes, n % 100)).collect();
            if let Ok(request) = raw.check(&limits, segments) {
                let mut len = request.len as u64;
                prop_assert!(request.segments().len() <= 11.max(slot_len));
                let sum: usize = request.segments().iter().map(Segment::len).sum();
                prop_assert_eq!(sum, request.len);
                for segment in request.segments() {
                    prop_assert!(usize::from(segment.offset()) + segment.len() <= 4096);
                }
                if let Op::Discard { len: bytes } = request.op {
                    prop_assert!(discard);
                    len = bytes;
                }
                prop_assert!(request.offset.checked_add(len).unwrap() < sectors_512 * 512 + u64::from(sector_size));
                prop_assert!(!read_only || matches!(request.op, Op::Read | Op::Flush));
            }
        }
    }
}
