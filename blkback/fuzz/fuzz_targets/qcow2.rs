//! Images of the format qcow2.
#![no_main]

mod image;

use blkback::Format;

libfuzzer_sys::fuzz_target!(
    init: image::write_seeds(Format::Qcow2),
    |data: &[u8]| image::try_image(Format::Qcow2, data)
);
