//! The xenstore protocol (docs/misc/xenstore.txt, io/xs_wire.h): a sans-IO codec and client for no_std.
//!
//! - [`Request`] builds and parses every operation's payload, [`Header`] and [`Op`] what stands before it.
//! - [`Decoder`] and [`peek`] cut a stream into messages.
//! - [`Client`] is a client without I/O: its owner moves the bytes, over a socket or a ring.
//! - [`call`] holds the blocking operations over anything that can [`Exchange`](call::Exchange) a request
//!   for a reply.
//!
//! Invariant: does no I/O and never panics on input; what a peer says is bounded before it is kept.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod call;
mod client;
mod decode;
mod events;
mod op;
mod request;
mod types;

pub use client::{Client, MAX_PENDING, ProtocolError, Reply, RequestId, parse_error, parse_event};
pub use decode::{Decoder, Frame, Message, TooLong, peek};
pub use events::{MAX_EVENT_BYTES, MAX_EVENTS};
pub use op::{ABS_PATH_MAX, Header, Op, PAYLOAD_MAX, REL_PATH_MAX};
pub use request::{Request, encode_permissions, number, parse_permissions, split_word, words};
pub use types::{Access, Permission, StoreError, TxId, WatchEvent};
