//! io/xenbus.h: the states of a device's two ends, as numbers; xen-hal has the type.

use crate::abi_consts;

abi_consts! {
    table CONSTANTS;
    STATE_UNKNOWN: u8 = 0, "XenbusStateUnknown";
    STATE_INITIALISING: u8 = 1, "XenbusStateInitialising";
    STATE_INIT_WAIT: u8 = 2, "XenbusStateInitWait";
    STATE_INITIALISED: u8 = 3, "XenbusStateInitialised";
    STATE_CONNECTED: u8 = 4, "XenbusStateConnected";
    STATE_CLOSING: u8 = 5, "XenbusStateClosing";
    STATE_CLOSED: u8 = 6, "XenbusStateClosed";
    STATE_RECONFIGURING: u8 = 7, "XenbusStateReconfiguring";
    STATE_RECONFIGURED: u8 = 8, "XenbusStateReconfigured";
}
