//! Bytes over a ring, with coverage.
#![no_main]

#[allow(dead_code)]
#[path = "../../xenstored/tests/targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(
    init: targets::seeds::write("ring"),
    |bytes: &[u8]| targets::ring(bytes)
);
