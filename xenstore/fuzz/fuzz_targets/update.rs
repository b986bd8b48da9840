//! The stream of a live update, with coverage.
#![no_main]

#[allow(dead_code)]
#[path = "../../xenstored/tests/targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(
    init: targets::seeds::write("update"),
    |bytes: &[u8]| targets::update(bytes)
);
