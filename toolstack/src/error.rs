//! What went wrong while handling guests: which step, on what, why, and what to do about it.

use std::fmt;

use xen_hal::Error as HalError;
use xen_sys::Errno;
use xs_wire::StoreError;

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it is; decides the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anything without a kind of its own.
    Failed,
    /// Not enough memory.
    NoMemory,
    /// A value or file that makes no sense.
    Invalid,
    /// The guest did not answer in time.
    GuestTimedOut,
    /// A daemon or back end did not answer in time.
    TimedOut,
    /// The guest has no paravirtual drivers.
    NoParavirt,
    /// A device or domain of this name or number exists.
    Exists,
    /// There is no such domain.
    NoSuchDomain,
    /// A signal has asked for an end.
    Aborted,
    /// Xen or the store daemon cannot be reached.
    Unreachable,
    /// The command line makes no sense.
    Usage,
    /// The configuration makes no sense.
    Config,
}

impl Kind {
    /// The exit status that scripts written for xl expect where guests are made: libxl's error number.
    pub const fn exit_status(self) -> u8 {
        match self {
            Kind::Failed => 3,
            Kind::NoMemory => 5,
            Kind::Invalid => 6,
            Kind::GuestTimedOut => 8,
            Kind::TimedOut => 9,
            Kind::NoParavirt => 10,
            Kind::Exists => 17,
            Kind::NoSuchDomain => 21,
            Kind::Aborted => 22,
            Kind::Unreachable | Kind::Config => 1,
            Kind::Usage => 2,
        }
    }
}

/// A failure, told so that it can be acted upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What kind it is.
    pub kind: Kind,
    /// What was tried, such as `"read the kernel"`.
    pub step: String,
    /// On what.
    pub object: String,
    /// Why it failed.
    pub cause: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Error {
    /// A failure of the general kind.
    pub fn new(
        step: impl Into<String>,
        object: impl fmt::Display,
        cause: impl fmt::Display,
    ) -> Error {
        Error {
            kind: Kind::Failed,
            step: step.into(),
            object: object.to_string(),
            cause: cause.to_string(),
            hint: None,
        }
    }

    /// An operating-system call that failed.
    pub fn system(step: &str, object: impl fmt::Display, error: &std::io::Error) -> Error {
        let (cause, hint) = match error.raw_os_error() {
            Some(number) => (Errno(number).to_string(), system_hint(Errno(number))),
            None => (error.to_string(), None),
        };
        Error {
            hint: hint.map(String::from),
            ..Error::new(step, object, cause)
        }
    }

    /// The same of this kind.
    pub fn kind(mut self, kind: Kind) -> Error {
        self.kind = kind;
        self
    }

    /// The same with advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// The same, and what went wrong after it.
    pub fn then(mut self, later: &Error) -> Error {
        let Error {
            step,
            object,
            cause,
            ..
        } = later;
        self.cause = format!("{}; then {step} {object}: {cause}", self.cause);
        self
    }

    /// Names the step and object of an error of a lower layer.
    pub fn hal(step: &'static str, object: impl fmt::Display) -> impl FnOnce(HalError) -> Error {
        move |error| {
            let (kind, hint) = hal_hint(&error);
            Error {
                kind,
                hint: hint.map(String::from),
                ..Error::new(step, object, error)
            }
        }
    }

    /// Names the step and object of an error of the store.
    pub fn store(
        step: &'static str,
        object: impl fmt::Display,
    ) -> impl FnOnce(StoreError) -> Error {
        move |error| Error::hal(step, object)(HalError::Store(error))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.step)?;
        if !self.object.is_empty() {
            write!(f, " {}", self.object)?;
        }
        write!(f, ": {}", self.cause)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  help: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Lets a store transaction's body return our errors.
impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        Error::store("use the store", "")(error)
    }
}

fn system_hint(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::EACCES | Errno::EPERM => Some("run this as root"),
        Errno::ENOENT => Some("check the path"),
        Errno::ENOSPC => Some("free some space"),
        _ => None,
    }
}

fn hal_hint(error: &HalError) -> (Kind, Option<&'static str>) {
    let errno = match error {
        HalError::Hypercall { errno, .. } => *errno,
        HalError::Store(StoreError { errno, .. }) => {
            let hint = match *errno {
                Errno::ENOTCONN | Errno::EPIPE | Errno::ECONNREFUSED => {
                    "the store daemon has gone; `xlrs host status` tells more"
                }
                Errno::ETIMEDOUT => {
                    "the store daemon does not answer; `xlrs host status` tells more"
                }
                Errno::ENOSPC | Errno::E2BIG => "a limit of the store daemon was reached",
                _ => "`xlrs host status` tells whether the store daemon is well",
            };
            return (Kind::Failed, Some(hint));
        }
        HalError::UnknownVersion { .. } => {
            return (
                Kind::Failed,
                Some("this release of xlrs knows Xen 4.14 to 4.22"),
            );
        }
        HalError::System { .. } => {
            return (
                Kind::Failed,
                Some("`dmesg` may tell what the kernel says about it"),
            );
        }
        _ => return (Kind::Failed, None),
    };
    match errno {
        Errno::ENOMEM => (
            Kind::NoMemory,
            Some(
                "`xlrs info free_memory` tells how much Xen has left; give the guest less, or dom0",
            ),
        ),
        Errno::EACCES => (
            Kind::Failed,
            Some("the hypervisor's interface is another than its version promises"),
        ),
        Errno::EPERM => (Kind::Failed, Some("only root in dom0 may do this")),
        Errno::ESRCH => (
            Kind::NoSuchDomain,
            Some("`xlrs list` shows the domains that exist"),
        ),
        Errno::EEXIST => (
            Kind::Exists,
            Some("`xlrs list` shows the domains that exist"),
        ),
        _ => (
            Kind::Failed,
            Some("`xlrs dmesg` shows what the hypervisor says about it"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What libxl's error numbers are, and what xl ends with where it has no number to tell.
    #[test]
    fn what_makes_guests_ends_as_xl_does() {
        for (kind, status) in [
            (Kind::Config, 1),
            (Kind::Unreachable, 1),
            (Kind::Usage, 2),
            (Kind::Failed, 3),
            (Kind::NoMemory, 5),
            (Kind::Invalid, 6),
            (Kind::GuestTimedOut, 8),
            (Kind::TimedOut, 9),
            (Kind::NoParavirt, 10),
            (Kind::Exists, 17),
            (Kind::NoSuchDomain, 21),
            (Kind::Aborted, 22),
        ] {
            assert_eq!(kind.exit_status(), status, "{kind:?}");
        }
    }
}
