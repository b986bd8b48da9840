//! Xen's error numbers (errno.h), which are Linux's for the values below 200.

use core::fmt;

/// A positive error number as Xen and Linux use them.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Errno {
            $(#[doc = $text] pub const $name: Errno = Errno($number);)*

            /// The symbolic name, such as `"ENOENT"`, if the number has one.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $($number => Some(stringify!($name)),)* _ => None }
            }

            /// A short description, if the number is known.
            pub const fn text(self) -> Option<&'static str> {
                match self.0 { $($number => Some($text),)* _ => None }
            }

            /// The number with this symbolic name.
            pub fn from_name(name: &[u8]) -> Option<Errno> {
                $(if name == stringify!($name).as_bytes() { return Some(Errno::$name); })*
                None
            }
        }

        /// The error numbers, for the test that asks a C compiler.
        pub const CONSTANTS: &[crate::Constant] =
            &[$(crate::Constant { c: stringify!($name), value: $number },)*];
    };
}

errnos! {
    EPERM = 1, "operation not permitted";
    ENOENT = 2, "no such entry";
    ESRCH = 3, "no such domain or process";
    EINTR = 4, "interrupted";
    EIO = 5, "input/output error";
    ENXIO = 6, "no such device or address";
    E2BIG = 7, "too big";
    ENOEXEC = 8, "wrong executable format";
    EBADF = 9, "bad descriptor";
    EAGAIN = 11, "try again";
    ENOMEM = 12, "out of memory";
    EACCES = 13, "permission denied";
    EFAULT = 14, "bad address";
    EBUSY = 16, "busy";
    EEXIST = 17, "already exists";
    EXDEV = 18, "crosses devices";
    ENODEV = 19, "no such device";
    ENOTDIR = 20, "not a directory";
    EISDIR = 21, "is a directory";
    EINVAL = 22, "invalid argument";
    ENFILE = 23, "too many open files in the system";
    EMFILE = 24, "too many open files";
    EFBIG = 27, "too large";
    ENOSPC = 28, "no space left";
    EROFS = 30, "read-only";
    EPIPE = 32, "broken pipe";
    EDOM = 33, "argument out of domain";
    ERANGE = 34, "result out of range";
    EDEADLK = 35, "would deadlock";
    ENAMETOOLONG = 36, "name too long";
    ENOSYS = 38, "not implemented";
    ENOTEMPTY = 39, "not empty";
    ENODATA = 61, "no data";
    EILSEQ = 84, "illegal sequence";
    EOVERFLOW = 75, "value too large";
    EUSERS = 87, "too many users";
    EMSGSIZE = 90, "message too long";
    EOPNOTSUPP = 95, "operation not supported";
    EADDRINUSE = 98, "address in use";
    EADDRNOTAVAIL = 99, "address not available";
    ENOBUFS = 105, "no buffer space";
    EISCONN = 106, "already connected";
    ENOTCONN = 107, "not connected";
    ETIMEDOUT = 110, "timed out";
    ECONNREFUSED = 111, "connection refused";
}

impl Errno {
    /// Splits a hypercall's result: negative is an error, negated.
    pub const fn check(result: i64) -> Result<u64, Errno> {
        match result {
            0.. => Ok(result as u64),
            -4095..0 => Err(Errno(-result as i32)),
            _ => Err(Errno::EINVAL),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self.text()) {
            (Some(name), Some(text)) => write!(f, "{name} ({}): {text}", self.0),
            _ => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn an_errno_prints_name_number_and_meaning() {
        assert_eq!(Errno::ENOENT.to_string(), "ENOENT (2): no such entry");
        assert_eq!(Errno(4000).to_string(), "errno 4000");
    }

    #[test]
    fn a_result_splits_at_zero() {
        assert_eq!(Errno::check(7), Ok(7));
        assert_eq!(Errno::check(0), Ok(0));
        assert_eq!(Errno::check(-2), Err(Errno::ENOENT));
        assert_eq!(Errno::check(i64::MIN), Err(Errno::EINVAL));
    }

    #[test]
    fn names_go_both_ways() {
        for constant in CONSTANTS {
            let errno = Errno(constant.value as i32);
            assert_eq!(
                Errno::from_name(errno.name().unwrap().as_bytes()),
                Some(errno)
            );
        }
    }
}
