//! The network backend: TAP devices on a bridge for PV guests.
