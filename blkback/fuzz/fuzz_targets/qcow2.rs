//! Images of the format qcow2.
#![no_main]

mod image;

libfuzzer_sys::fuzz_target!(|data: &[u8]| image::try_image(blkback::Format::Qcow2, data));
