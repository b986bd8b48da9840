//! A whole host in one process: the real store core and the real block backend on the fake world's
//! grants and events, with guests that use the real drivers. Everything runs only when stepped.

mod disk;
mod machine;
mod store_server;

pub use disk::{FakeDisk, Toolstack};
pub use machine::{FakeGuest, GuestWire, Machine, MemoryImage};
pub use store_server::{DaemonClient, StoreServer};
