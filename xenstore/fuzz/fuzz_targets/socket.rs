//! Bytes over a socket, with coverage.
#![no_main]

#[allow(dead_code)]
#[path = "../../xenstored/tests/targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(
    init: targets::seeds::write("socket"),
    |bytes: &[u8]| targets::socket(bytes)
);
