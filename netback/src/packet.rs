//! Decides which slots make a packet, and whether the packet is one to send.

use xen_ring::PeerError;
use xen_sys::io::netif::{self, TxFlags, TxRequest};
use xen_sys::types::PAGE_SIZE;
use xen_sys::{GrantRef, Plain};

/// The shortest packet: an Ethernet header.
pub const MIN_PACKET: usize = 14;
/// Most slots of a packet that is sent on; longer chains are refused (`XEN_NETIF_NR_SLOTS_MIN`).
pub const MAX_SLOTS: usize = netif::NR_SLOTS_MIN;

/// A transmit slot's bytes: a request, or more about the packet whose request came before.
pub type SlotBytes = [u8; size_of::<TxRequest>()];

/// One slot of a packet, for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A request with this id.
    Request(u16),
    /// Extra information, answered with `NETIF_RSP_NULL`.
    Extra,
}

/// One packet's slots, in ring order, and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The slots to answer.
    pub slots: Vec<Slot>,
    /// The pieces to copy, or why there is nothing to copy.
    pub content: Result<Content, Refusal>,
}

/// A packet's bytes, still in the guest's pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Where they are; each piece lies in its page and none is empty.
    pub pieces: Vec<Piece>,
    /// How many in all, 14 to 65535.
    pub len: usize,
    /// The transport checksum is still to be filled in.
    pub checksum_blank: bool,
}

/// Part of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The page.
    pub gref: GrantRef,
    /// Where in the page, in bytes.
    pub offset: u16,
    /// How much; offset + len is at most 4096.
    pub len: u16,
}

/// Why a packet is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Shorter than an Ethernet header.
    TooShort(u16),
    /// More slots than allowed (XSA-39).
    TooManySlots(usize),
    /// The later pieces are together longer than the whole.
    Inconsistent,
    /// A piece that goes over the end of its page.
    CrossesPage {
        /// Its offset.
        offset: u16,
        /// Its length.
        len: usize,
    },
    /// Extra information that was not offered, such as segmentation offload.
    Extra(u8),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::TooShort(size) => write!(f, "a packet of {size} bytes"),
            Refusal::TooManySlots(count) => write!(f, "a packet in {count} slots"),
            Refusal::Inconsistent => {
                write!(f, "a packet whose parts are longer than the whole")
            }
            Refusal::CrossesPage { offset, len } => {
                write!(f, "{len} bytes at {offset} of a page")
            }
            Refusal::Extra(kind) => write!(f, "extra information {kind}, which was not offered"),
        }
    }
}

/// Takes one packet's slots from `next`, however many there are, and checks them. `None` if there is no
/// slot at all; an error if the packet's end is not in the ring, which makes all that follows undefined.
pub fn gather(
    mut next: impl FnMut() -> Result<Option<SlotBytes>, PeerError>,
) -> Result<Option<Packet>, GatherError> {
    let Some(bytes) = next()? else {
        return Ok(None);
    };
    let first = request(&bytes);
    let mut slots = vec![Slot::Request(first.id)];
    let mut refusal = None;

    let mut more_extra = has(&first, TxFlags::EXTRA_INFO);
    while more_extra {
        let bytes = next()?.ok_or(GatherError::Unfinished)?;
        slots.push(Slot::Extra);
        let [kind, flags, ..] = bytes;
        refusal.get_or_insert(Refusal::Extra(kind));
        more_extra = flags & netif::EXTRA_FLAG_MORE != 0;
    }

    let mut rest: Vec<TxRequest> = Vec::new();
    let mut more = has(&first, TxFlags::MORE_DATA);
    while more {
        let bytes = next()?.ok_or(GatherError::Unfinished)?;
        let piece = request(&bytes);
        slots.push(Slot::Request(piece.id));
        more = has(&piece, TxFlags::MORE_DATA);
        // Bounded by the ring: its slots are not freed before they are answered.
        rest.push(piece);
    }
    let content = match refusal {
        Some(refusal) => Err(refusal),
        None => check(&first, &rest),
    };
    Ok(Some(Packet { slots, content }))
}

/// Why no packet could be gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatherError {
    /// The ring is broken.
    Ring(PeerError),
    /// A packet announces more slots than were published.
    Unfinished,
}

impl From<PeerError> for GatherError {
    fn from(error: PeerError) -> Self {
        GatherError::Ring(error)
    }
}

/// Checks a packet. The first request's size is that of the whole, the others' that of their piece.
fn check(first: &TxRequest, rest: &[TxRequest]) -> Result<Content, Refusal> {
    if usize::from(first.size) < MIN_PACKET {
        return Err(Refusal::TooShort(first.size));
    }
    if rest.len() + 1 > MAX_SLOTS {
        return Err(Refusal::TooManySlots(rest.len() + 1));
    }
    let len = usize::from(first.size);
    let others: usize = rest.iter().map(|piece| usize::from(piece.size)).sum();
    let first_len = len.checked_sub(others).ok_or(Refusal::Inconsistent)?;
    let all = std::iter::once((first, first_len))
        .chain(rest.iter().map(|piece| (piece, usize::from(piece.size))));
    let mut pieces = Vec::with_capacity(rest.len() + 1);
    for (piece, len) in all {
        let offset = piece.offset;
        if usize::from(offset) + len > PAGE_SIZE {
            return Err(Refusal::CrossesPage { offset, len });
        }
        // XSA-448: an empty piece is nothing to copy, and no reason to keep its slot.
        if len > 0 {
            pieces.push(Piece {
                gref: piece.gref,
                offset,
                len: len as u16,
            });
        }
    }
    Ok(Content {
        pieces,
        len,
        checksum_blank: has(first, TxFlags::CSUM_BLANK),
    })
}

fn request(bytes: &SlotBytes) -> TxRequest {
    TxRequest::from_prefix(bytes).expect("a slot is as long as a request")
}

fn has(request: &TxRequest, flag: TxFlags) -> bool {
    TxFlags::from_bits_retain(request.flags).contains(flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MORE: u16 = 4;
    const EXTRA: u16 = 8;

    fn slot(offset: u16, size: u16, flags: u16) -> SlotBytes {
        let request = TxRequest {
            gref: GrantRef(9),
            offset,
            flags,
            id: size,
            size,
        };
        request.as_bytes().try_into().unwrap()
    }

    fn run(slots: &[SlotBytes]) -> Result<Option<Packet>, GatherError> {
        let mut slots = slots.iter();
        gather(|| Ok(slots.next().copied()))
    }

    #[test]
    fn packets() {
        let check = |slots: &[SlotBytes], expected: Result<&[(u16, u16)], Refusal>| {
            let packet = run(slots).unwrap().unwrap();
            assert_eq!(packet.slots.len(), slots.len());
            let pieces = packet.content.map(|content| {
                let pieces = content.pieces.iter().map(|piece| (piece.offset, piece.len));
                pieces.collect::<Vec<_>>()
            });
            assert_eq!(pieces.as_deref().map_err(|refusal| *refusal), expected);
        };
        let crosses = |offset, len| Err(Refusal::CrossesPage { offset, len });
        check(&[slot(0, 60, 0)], Ok(&[(0, 60)]));
        check(&[slot(4082, 14, 0)], Ok(&[(4082, 14)]));
        check(&[slot(0, 4096, 0)], Ok(&[(0, 4096)]));
        check(&[slot(0, 13, 0)], Err(Refusal::TooShort(13)));
        check(&[slot(0, 0, 0)], Err(Refusal::TooShort(0)));
        check(&[slot(1, 4096, 0)], crosses(1, 4096));
        check(&[slot(4095, 14, 0)], crosses(4095, 14));
        check(&[slot(65535, 65535, 0)], crosses(65535, 65535));
        // 1000 in all: 900 + 60 + 40.
        check(
            &[slot(5, 1000, MORE), slot(7, 60, MORE), slot(0, 40, 0)],
            Ok(&[(5, 900), (7, 60), (0, 40)]),
        );
        check(
            &[slot(0, 60, MORE), slot(0, 61, 0)],
            Err(Refusal::Inconsistent),
        );
        check(&[slot(0, 60, MORE), slot(0, 60, 0)], Ok(&[(0, 60)]));
        check(&[slot(0, 60, MORE), slot(9, 0, 0)], Ok(&[(0, 60)]));
        check(
            &[slot(0, 5000, MORE), slot(4000, 904, 0)],
            crosses(4000, 904),
        );
        let mut chain = vec![slot(0, 1000, MORE); 1];
        chain.extend([slot(0, 10, MORE); 16]);
        chain.push(slot(0, 10, 0));
        assert!(run(&chain).unwrap().unwrap().content.is_ok());
        chain.insert(1, slot(0, 10, MORE));
        check(&chain, Err(Refusal::TooManySlots(19)));
        let mut gso = [0; 12];
        (gso[0], gso[2]) = (1, 100);
        check(&[slot(0, 60, EXTRA), gso], Err(Refusal::Extra(1)));
        gso[1] = 1;
        let second = [4; 12];
        check(
            &[slot(0, 60, EXTRA | MORE), gso, second, slot(0, 10, 0)],
            Err(Refusal::Extra(1)),
        );
        let packet = run(&[slot(0, 60, EXTRA), second]).unwrap().unwrap();
        assert_eq!(packet.slots, [Slot::Request(60), Slot::Extra]);
    }

    #[test]
    fn packets_without_an_end() {
        assert_eq!(run(&[]), Ok(None));
        for slots in [
            &[slot(0, 60, MORE)][..],
            &[slot(0, 60, EXTRA)],
            &[slot(0, 60, MORE), slot(0, 10, MORE)],
            &[slot(0, 60, EXTRA | MORE), [0; 12]],
            &[slot(0, 60, EXTRA), [1; 12]],
        ] {
            assert_eq!(run(slots), Err(GatherError::Unfinished));
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_in_range(
            slots in proptest::collection::vec(
                (0u16..5000, 0u16..5000, proptest::sample::select(vec![0u16, 0, 1, 4, 4, 4, 8, 12, 0xfff3])),
                1..40,
            ),
        ) {
            let slots: Vec<_> = slots.iter().map(|&(o, s, f)| slot(o, s, f)).collect();
            let mut left = slots.iter();
            let mut taken = 0;
            while let Ok(Some(packet)) = gather(|| Ok(left.next().copied())) {
                taken += packet.slots.len();
                if let Ok(content) = packet.content {
                    prop_assert!((MIN_PACKET..=65535).contains(&content.len));
                    prop_assert!(content.pieces.len() <= MAX_SLOTS);
                    let sum: usize = content.pieces.iter().map(|p| usize::from(p.len)).sum();
                    prop_assert_eq!(sum, content.len);
                    for piece in &content.pieces {
                        prop_assert!(piece.len > 0);
                        prop_assert!(usize::from(piece.offset) + usize::from(piece.len) <= 4096);
                    }
                }
            }
            prop_assert!(taken <= slots.len());
        }
    }
}
