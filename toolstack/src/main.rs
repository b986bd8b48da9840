//! The command `xlrs`. C's runtime calls it without Rust's in between, which would read the limits of the stack
//! from /proc and make another for its last words: some 4 % of what it takes to create a guest.
#![cfg_attr(not(test), no_main)]
// A test's `main` is the test runner's.
#![cfg_attr(test, allow(dead_code))]
#![deny(unsafe_code)]

mod cli;

use std::ffi::{c_char, c_int};

use cli::ExitCode;
use xlrs::os;

/// What a panic ends with, as ever in Rust.
const PANICKED: i32 = 101;

// SAFETY: the only `main` there is, and of the type that C's runtime calls.
#[allow(unsafe_code)]
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main(_: c_int, _: *const *const c_char) -> c_int {
    os::set_up_process();
    let code = std::panic::catch_unwind(run).map_or(PANICKED, |code| code.0.into());
    os::leave(code)
}

fn run() -> ExitCode {
    xlrs::times::begin();
    let cli = cli::Cli::read();
    let status = cli.exit_status();
    xlrs::times::mark("command line");
    let result = cli::run(cli);
    xlrs::times::print();
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xlrs: {error}");
            ExitCode(status(error.kind))
        }
    }
}
