//! The block backend: disk images and block devices for PV guests.
//!
//! The parts, in the order a request meets them: `ring` takes a slot out, `request` turns its bytes into
//! a checked request or a refusal, `queue` moves the data between guest and `storage`, `ring` answers.
//! `disk` reads what the toolstack wrote and `driver` is the handshake's block part.
//!
//! Invariant: a slot is copied out once and decided on as a copy (XSA-155); every popped request gets
//! exactly one response, zeroed before it is filled (XSA-216).
//! Invariant: responses leave in the order of their requests, each published at once: a process that is
//! killed is followed by one that starts again at the first unanswered request.
//! Invariant: no panic on a guest's input; what a guest does wrong ends its own device at most.
#![forbid(unsafe_code)]

mod disk;
mod driver;
mod inline;
mod queue;
mod request;
mod ring;
mod storage;

pub use disk::{Disk, params_path};
pub use driver::{BlockDriver, Datapath, OpenImage, RingInfo, Served, open_file};
pub use inline::{Inline, InlineConnection};
pub use queue::{DataMove, Progress, Queue, Stats};
pub use request::{Limits, Op, RawRequest, Refusal, Request, Segment, response};
pub use ring::{Protocol, Ring};
pub use storage::{FileStorage, Identity, Storage};
