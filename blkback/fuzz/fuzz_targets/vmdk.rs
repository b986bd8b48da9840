//! Images of the format vmdk.
#![no_main]

mod image;

use blkback::Format;

libfuzzer_sys::fuzz_target!(
    init: image::write_seeds(Format::Vmdk),
    |data: &[u8]| image::try_image(Format::Vmdk, data)
);
