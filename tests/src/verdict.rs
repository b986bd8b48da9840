//! How a scenario ends, and the short ways to say so.

use std::fmt::Display;

/// Why a scenario did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// What is tested did not do what it should.
    Failed(String),
    /// It cannot be run here, for this reason.
    Skipped(String),
    /// The surroundings broke before anything could be told.
    Broken(String),
}

/// A scenario's result, or that of a part of it.
pub type Outcome<T = ()> = Result<T, Stop>;

impl Stop {
    /// The exit status of the program `scenarios`.
    pub const fn status(&self) -> u8 {
        match self {
            Stop::Failed(_) => 1,
            Stop::Skipped(_) => 77,
            Stop::Broken(_) => 99,
        }
    }

    /// The verdict as one word.
    pub const fn word(&self) -> &'static str {
        match self {
            Stop::Failed(_) => "failed",
            Stop::Skipped(_) => "skipped",
            Stop::Broken(_) => "broken",
        }
    }

    /// The reason.
    pub fn reason(&self) -> &str {
        match self {
            Stop::Failed(reason) | Stop::Skipped(reason) | Stop::Broken(reason) => reason,
        }
    }
}

impl Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.word(), self.reason())
    }
}

impl std::error::Error for Stop {}

impl From<xen_hal::Error> for Stop {
    /// The subject is to blame; the error says what was tried on whom.
    fn from(error: xen_hal::Error) -> Stop {
        Stop::Failed(error.to_string())
    }
}

/// Turns an error or a missing value into a verdict that says what was tried.
pub trait OrStop<T> {
    /// The subject is to blame.
    fn or_fail(self, tried: impl Display) -> Outcome<T>;
    /// The surroundings are to blame.
    fn or_broken(self, tried: impl Display) -> Outcome<T>;
}

impl<T, E: Display> OrStop<T> for Result<T, E> {
    fn or_fail(self, tried: impl Display) -> Outcome<T> {
        self.map_err(|error| Stop::Failed(format!("{tried}: {error}")))
    }

    fn or_broken(self, tried: impl Display) -> Outcome<T> {
        self.map_err(|error| Stop::Broken(format!("{tried}: {error}")))
    }
}

impl<T> OrStop<T> for Option<T> {
    fn or_fail(self, tried: impl Display) -> Outcome<T> {
        self.ok_or_else(|| Stop::Failed(tried.to_string()))
    }

    fn or_broken(self, tried: impl Display) -> Outcome<T> {
        self.ok_or_else(|| Stop::Broken(tried.to_string()))
    }
}

/// Fails with a message unless the condition holds.
#[macro_export]
macro_rules! demand {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::Stop::Failed(format!($($message)+)));
        }
    };
}

/// Fails unless two values are equal, with a message before them.
#[macro_export]
macro_rules! demand_eq {
    ($left:expr, $right:expr, $($message:tt)+) => {
        match (&$left, &$right) {
            (left, right) => if *left != *right {
                let what = format!($($message)+);
                return Err($crate::Stop::Failed(format!("{what}: {left:?} instead of {right:?}")));
            }
        }
    };
}
