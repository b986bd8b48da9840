//! The boot contract of a PV guest, written once for the builder and for the guest.
