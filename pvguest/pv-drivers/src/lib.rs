//! Front-end drivers of a PV guest, host-tested: console, store, block, network.
