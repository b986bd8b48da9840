//! Scenarios: one function each, run on the fake and on real Xen.
