//! Time.

/// A monotonic clock.
pub trait Clock {
    /// Nanoseconds since some fixed moment in the past.
    fn now_ns(&self) -> u64;
}
