//! Requests of the toolstack: the node `control/shutdown`, which the guest empties to acknowledge.

use xen_hal::{Store, StoreError, StoreExt};

/// The node, relative to the guest's home.
pub const SHUTDOWN_NODE: &str = "control/shutdown";

/// What the toolstack may ask for and a guest of ours can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownRequest {
    /// `poweroff` or `halt`
    Poweroff,
    /// `reboot`
    Reboot,
}

/// Tells the toolstack what we can do (`control/feature-*`), as far as it lets us.
pub fn announce(store: &impl Store) {
    for name in ["control/feature-poweroff", "control/feature-reboot"] {
        // The toolstack makes the nodes for us to write; one that does not can do without.
        let _ = store.write(None, name, b"1");
    }
}

/// Reads, acknowledges and returns the request that stands in the node. A request that is not supported
/// (`suspend`, unknown words) is left alone: the toolstack will see that nobody took it.
pub fn take_shutdown(store: &impl Store) -> Result<Option<ShutdownRequest>, StoreError> {
    let Some(value) = store.read_optional(None, SHUTDOWN_NODE)? else {
        return Ok(None);
    };
    let request = match &value[..] {
        b"poweroff" | b"halt" => ShutdownRequest::Poweroff,
        b"reboot" => ShutdownRequest::Reboot,
        _ => return Ok(None),
    };
    store.write(None, SHUTDOWN_NODE, b"")?;
    Ok(Some(request))
}
