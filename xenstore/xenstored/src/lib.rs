//! The store daemon: a pure core and the loop around it.
