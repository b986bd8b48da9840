//! A store that is to be gone on from, with coverage.
#![no_main]

#[allow(dead_code)]
#[path = "../../xenstored/tests/targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(
    init: targets::seeds::write("state"),
    |bytes: &[u8]| targets::state(bytes)
);
