//! Images of the format vhd.
#![no_main]

mod image;

libfuzzer_sys::fuzz_target!(|data: &[u8]| image::try_image(blkback::Format::Vhd, data));
