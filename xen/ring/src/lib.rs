//! Shared pages and rings: front and back halves, byte rings for console and store.
