//! What the lab's host side and its agent in dom0 say to each other, and what both know of programs.
//!
//! Invariant: no panic on any input; a damaged stream loses frames, never the connection.
//! Invariant: does no I/O; bytes in, frames out.
#![forbid(unsafe_code)]

pub mod bytes;
pub mod frame;
pub mod message;
pub mod symbols;

/// Name of the virtio-serial port that carries the frames.
pub const PORT_NAME: &str = "lab";

/// How many bytes of stdin the host may have under way to one command before the agent has
/// granted more.
pub const STDIN_WINDOW: usize = 256 * 1024;
