//! Bytes over a ring, with coverage: `cargo +nightly fuzz run ring` in `xenstore/fuzz`'s parent.
#![no_main]

#[allow(dead_code)]
#[path = "../../xenstored/tests/targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::ring(bytes));
