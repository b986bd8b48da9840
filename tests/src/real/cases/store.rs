//! The store, from dom0 and from a guest.

use scenarios::{Outcome, store};

use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

/// Two clients of the daemon's socket.
pub fn socket(host: &Host) -> Outcome {
    leaves_nothing(host, || {
        host.step("nodes, values, transactions and watches through two sockets");
        store::tree(&host.store()?, &host.store()?, "/xlrs-test")
    })
}
