//! Images of the format vhd.
#![no_main]

mod image;

use blkback::Format;

libfuzzer_sys::fuzz_target!(
    init: image::write_seeds(Format::Vhd),
    |data: &[u8]| image::try_image(Format::Vhd, data)
);
