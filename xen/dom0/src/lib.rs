//! The only crate that opens /dev/xen/*: hypercalls, grants, events and store rings of a Linux dom0.
