//! The states of a split driver's two ends (`enum xenbus_state`, io/xenbus.h).

/// Where one end of a device is in its life. The numbers are what stands in the `state` nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum XenbusState {
    /// No such node, or nonsense in it.
    Unknown = 0,
    /// Made by the toolstack; not yet looked at.
    Initialising = 1,
    /// The back end has published its features and waits for the front end.
    InitWait = 2,
    /// The front end has published its rings and waits for the back end.
    Initialised = 3,
    /// In use.
    Connected = 4,
    /// One end wants to end.
    Closing = 5,
    /// Nothing is mapped, bound or granted any more.
    Closed = 6,
    /// Being reconfigured (PCI).
    Reconfiguring = 7,
    /// Reconfigured (PCI).
    Reconfigured = 8,
}

impl XenbusState {
    /// The state that stands in a `state` node; [`Unknown`](Self::Unknown) if it is nonsense.
    pub fn parse(value: &[u8]) -> XenbusState {
        use XenbusState::*;
        match value {
            b"1" => Initialising,
            b"2" => InitWait,
            b"3" => Initialised,
            b"4" => Connected,
            b"5" => Closing,
            b"6" => Closed,
            b"7" => Reconfiguring,
            b"8" => Reconfigured,
            _ => Unknown,
        }
    }
}

impl core::fmt::Display for XenbusState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", *self as u8)
    }
}
