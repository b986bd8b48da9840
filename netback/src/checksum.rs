//! Fills in transport checksums that a guest left blank (`NETTXF_csum_blank`): Linux's front end does so
//! for TCP and UDP over IPv4 whatever the backend says, and a TAP device without offloads must not see that.

/// The Internet checksum of `data`, starting from a partial sum (RFC 1071). Never inverted here.
fn sum(data: &[u8], start: u32) -> u32 {
    let mut total = u64::from(start);
    let mut pairs = data.chunks_exact(2);
    for pair in &mut pairs {
        total += u64::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    if let [last] = pairs.remainder() {
        total += u64::from(*last) << 8;
    }
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    total as u32
}

/// The Internet checksum of `data` (RFC 1071).
pub fn internet_checksum(data: &[u8]) -> u16 {
    !(sum(data, 0) as u16)
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Computes the TCP or UDP checksum of an Ethernet frame and writes it in. False if the frame is no
/// complete TCP or UDP packet, or a fragment: then there is no checksum to fill in.
#[must_use]
pub fn complete(frame: &mut [u8]) -> bool {
    try_complete(frame).is_some()
}

fn try_complete(frame: &mut [u8]) -> Option<()> {
    let (protocol, addresses, segment) = transport(frame)?;
    let field = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    // The pseudo header: addresses, protocol, length.
    let start = sum(frame.get(addresses)?, u32::from(protocol));
    let segment = frame.get_mut(segment)?;
    segment.get_mut(field..field + 2)?.fill(0);
    let len = segment.len() as u32;
    let mut value = !(sum(segment, start + (len >> 16) + (len & 0xffff)) as u16);
    if value == 0 && protocol == UDP {
        // Zero would mean "no checksum" (RFC 768).
        value = 0xffff;
    }
    segment
        .get_mut(field..field + 2)?
        .copy_from_slice(&value.to_be_bytes());
    Some(())
}

type Range = std::ops::Range<usize>;

/// The transport protocol, where the addresses are and where the segment is.
fn transport(frame: &[u8]) -> Option<(u8, Range, Range)> {
    let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let mut at = 12;
    let mut ethertype = word(at)?;
    for _ in 0..2 {
        if matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
            at += 4;
            ethertype = word(at)?;
        }
    }
    let ip = at + 2;
    match ethertype {
        ETHERTYPE_IPV4 => {
            let version_and_len = *frame.get(ip)?;
            let header = usize::from(version_and_len & 15) * 4;
            let total = usize::from(word(ip + 2)?);
            let fragment = word(ip + 6)? & 0x3fff;
            if version_and_len >> 4 != 4 || header < 20 || total < header || fragment != 0 {
                return None;
            }
            Some((
                *frame.get(ip + 9)?,
                ip + 12..ip + 20,
                ip + header..ip + total,
            ))
        }
        ETHERTYPE_IPV6 => {
            let payload = usize::from(word(ip + 4)?);
            // Extension headers do not come with blank checksums: that was not offered.
            Some((
                *frame.get(ip + 6)?,
                ip + 8..ip + 40,
                ip + 40..ip + 40 + payload,
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An IPv4 frame around a segment; the transport checksum is whatever the segment holds.
    fn ipv4(protocol: u8, tags: &[u8], segment: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend_from_slice(tags);
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((20 + segment.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend_from_slice(segment);
        frame
    }

    #[test]
    fn a_known_udp_packet() {
        // 10.0.0.1:1 to 10.0.0.2:2, "hi"; the sum of the words by hand:
        // 0a00+0001+0a00+0002 + 11 + 000a + 0001+0002+000a+6869 = 0x7c94, inverted 0x836b.
        let mut frame = ipv4(17, &[], &[0, 1, 0, 2, 0, 10, 0xaa, 0xbb, b'h', b'i']);
        assert!(complete(&mut frame));
        assert_eq!(frame[40..42], [0x83, 0x6b]);
        // The same behind a VLAN tag, and with padding after the packet.
        let mut frame = ipv4(17, &[0x81, 0, 0, 5], &[0, 1, 0, 2, 0, 10, 0, 0, b'h', b'i']);
        frame.extend([0xff; 5]);
        assert!(complete(&mut frame));
        assert_eq!(frame[44..46], [0x83, 0x6b]);
    }

    #[test]
    fn a_udp_sum_of_zero_is_sent_as_ones() {
        // The word 0x83 0x6b more makes the sum come out as all ones, its inverse zero.
        let mut frame = ipv4(17, &[], &[0, 1, 0, 2, 0, 10, 0, 0, 0xeb, 0xd4]);
        assert!(complete(&mut frame));
        assert_eq!(frame[40..42], [0xff, 0xff]);
    }

    #[test]
    fn what_has_no_checksum_to_fill_in() {
        let whole = ipv4(6, &[], &[0; 20]);
        for len in 0..whole.len() {
            assert!(!complete(&mut whole[..len].to_vec()), "{len} bytes");
        }
        assert!(complete(&mut whole.clone()));
        for (at, value) in [
            (12, 9),
            (14, 0x44),
            (14, 0x65),
            (20, 0x20),
            (21, 1),
            (23, 1),
        ] {
            let mut frame = whole.clone();
            frame[at] = value;
            assert!(!complete(&mut frame), "byte {at} = {value}");
        }
    }

    proptest! {
        #[test]
        fn a_completed_segment_sums_to_ones(tcp: bool, v6: bool, body in proptest::collection::vec(any::<u8>(), 20..2000)) {
            let protocol = if tcp { TCP } else { UDP };
            let mut frame = if v6 {
                let mut frame = vec![2; 12];
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((body.len() as u16).to_be_bytes());
                frame.extend([protocol, 64]);
                frame.extend(7..39u8);
                frame.extend_from_slice(&body);
                frame
            } else {
                ipv4(protocol, &[], &body)
            };
            prop_assert!(complete(&mut frame));
            let (addresses, at) = if v6 { (22..54, 54) } else { (26..34, 34) };
            let start = sum(&frame[addresses], u32::from(protocol) + body.len() as u32);
            prop_assert_eq!(sum(&frame[at..], start), 0xffff);
        }

        #[test]
        fn any_bytes_do_no_harm(mut frame in proptest::collection::vec(any::<u8>(), 0..200), ip: bool) {
            if ip && frame.len() > 15 {
                frame[12..15].copy_from_slice(&[8, 0, 0x45]);
            }
            let before = frame.len();
            let _ = complete(&mut frame);
            prop_assert_eq!(frame.len(), before);
        }
    }
}
