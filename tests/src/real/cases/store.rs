//! The store, from dom0 and from a guest.

use scenarios::{Outcome, store};
use xen_sys::DomId;

use crate::real::driver::Driver;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

/// Two clients of the daemon's socket.
pub fn socket(host: &Host) -> Outcome {
    leaves_nothing(host, || {
        host.step("nodes, values, transactions and watches through two sockets");
        store::tree(&host.store()?, &host.store()?, "/xlrs-test")
    })
}

/// A guest through its ring: what it may do with its own nodes and others'.
pub fn guest(host: &Host) -> Outcome {
    leaves_nothing(host, || {
        let driver = Driver::create(host, "store-guest", |config| config)?;
        let dom0 = host.store()?;
        host.step("the guest's own nodes and others'");
        let result = store::rights(&dom0, &driver.store(), DomId(driver.dom()));
        result.map_err(|stop| driver.with_console(stop))?;
        driver.shutdown()
    })
}
