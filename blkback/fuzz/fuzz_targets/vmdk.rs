//! Images of the format vmdk.
#![no_main]

mod image;

libfuzzer_sys::fuzz_target!(|data: &[u8]| image::try_image(blkback::Format::Vmdk, data));
