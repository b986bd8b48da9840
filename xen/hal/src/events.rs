//! Event channels: one bit each way between two domains.

use xen_sys::{DomId, Port};

use crate::Result;

/// One owner's event channels. Whatever is still bound when the owner is dropped is closed.
pub trait EventChannels {
    /// Makes a port that `remote` may bind to (`EVTCHNOP_alloc_unbound`).
    fn alloc_unbound(&self, remote: DomId) -> Result<Port>;

    /// Binds a local port to `remote`'s `port` (`EVTCHNOP_bind_interdomain`). Events sent before are lost:
    /// look for work and notify once after binding.
    fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Port>;

    /// Closes a local port (`EVTCHNOP_close`).
    fn close(&self, port: Port) -> Result<()>;

    /// Sends an event (`EVTCHNOP_send`).
    fn notify(&self, port: Port) -> Result<()>;

    /// Takes the next port that has fired, if any. A port that was taken stays silent until
    /// [`unmask`](Self::unmask), so that a peer cannot storm (XSA-332, XSA-391).
    fn next_pending(&self) -> Result<Option<Port>>;

    /// Lets a port fire again; to be called after its work is done.
    fn unmask(&self, port: Port) -> Result<()>;

    /// What names a port on this owner's descriptor, if it has one: read from there it says that the port has
    /// fired, written there it unmasks it. For whoever has the kernel do that along with other work.
    fn name(&self, port: Port) -> Option<[u8; 4]> {
        let _ = port;
        None
    }
}
