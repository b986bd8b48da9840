//! Every access to shared memory against an ordinary slice.

use proptest::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::vec::Vec;

use super::*;
use crate::testing::Page;

proptest! {
    #[test]
    fn bytes_land_where_they_were_put(
        pieces in prop::collection::vec((0usize..256, prop::collection::vec(any::<u8>(), 0..64)), 0..20),
        look in (0usize..256, 0usize..64),
    ) {
        let page = Page::new(256);
        let mut model = [0u8; 256];
        for (at, bytes) in &pieces {
            let end = (at + bytes.len()).min(256);
            let bytes = &bytes[..end - at];
            page.write_bytes(*at, bytes);
            model[*at..end].copy_from_slice(bytes);
        }
        let (at, len) = look;
        let mut seen = Vec::from([0; 64]);
        let len = len.min(256 - at);
        page.read_bytes(at, &mut seen[..len]);
        prop_assert_eq!(&seen[..len], &model[at..at + len]);
    }

    #[test]
    fn values_land_where_they_were_put(at in 0usize..=248, value: u64, small: [u16; 3]) {
        let page = Page::new(256);
        page.write(at, value);
        prop_assert_eq!(page.read::<u64>(at), value);
        page.write(at, small);
        prop_assert_eq!(page.read::<[u16; 3]>(at), small);
        prop_assert_eq!(page.read::<u64>(at) >> 48, value >> 48);
    }
}

#[test]
fn an_offset_out_of_range_is_our_own_bug() {
    for (at, len, fits) in [
        (0, 256, true),
        (255, 1, true),
        (256, 0, true),
        (256, 1, false),
        (0, 257, false),
        (usize::MAX, 1, false),
        (usize::MAX, usize::MAX, false),
    ] {
        let checked = AssertUnwindSafe(|| Page::new(256).check(at, len));
        assert_eq!(catch_unwind(checked).is_ok(), fits, "{len} bytes at {at}");
    }
}
