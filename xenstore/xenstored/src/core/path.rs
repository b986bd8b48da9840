//! Paths: checked once when a request comes in, absolute from then on.

use std::borrow::Cow;

use xen_sys::{DomId, Errno};
use xs_wire::{ABS_PATH_MAX, REL_PATH_MAX};

/// A special name that says a domain was introduced.
pub const INTRODUCE_DOMAIN: &str = "@introduceDomain";
/// A special name that says a domain was released, has shut down or died.
pub const RELEASE_DOMAIN: &str = "@releaseDomain";

/// Most bytes of a special name.
const SPECIAL_MAX: usize = 64;

/// A path of a request after its check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked<'a> {
    /// An absolute path; `prefix` is how many of its bytes were put before a relative one, with the slash.
    Node {
        /// The absolute path.
        path: Cow<'a, str>,
        /// Bytes of `/local/domain/N/`, 0 if the path was absolute.
        prefix: usize,
    },
    /// A name that begins with `@`.
    Special(&'a str),
}

/// A special name, for all domains or for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    /// [`INTRODUCE_DOMAIN`] or [`RELEASE_DOMAIN`].
    pub name: &'static str,
    /// The one.
    pub dom: Option<DomId>,
}

impl Special {
    /// Which of the names that mean something this is; `None` if it is none of them.
    pub fn parse(text: &str) -> Option<Special> {
        let (name, rest) = [INTRODUCE_DOMAIN, RELEASE_DOMAIN]
            .into_iter()
            .find_map(|name| Some((name, text.strip_prefix(name)?)))?;
        if rest.is_empty() {
            return Some(Special { name, dom: None });
        }
        let digits = rest.strip_prefix('/')?;
        let number: u16 = digits.parse().ok()?;
        // No sign and no leading zeros: events show the number in one way only.
        let dom = (number.to_string() == digits).then_some(DomId(number))?;
        Some(Special {
            name,
            dom: Some(dom),
        })
    }
}

/// A domain's home directory.
pub fn home(dom: DomId) -> String {
    format!("/local/domain/{dom}")
}

/// Checks a path as it stands on the wire; a relative one belongs to `dom`'s home. EINVAL for empty names, a
/// slash at the end, foreign characters, or one too long: 3072 bytes absolute, 2048 relative, where the
/// joined path must fit the former as well (XSA-323).
pub fn check(dom: DomId, raw: &[u8]) -> Result<Checked<'_>, Errno> {
    let text = core::str::from_utf8(raw).map_err(|_| Errno::EINVAL)?;
    if text.starts_with('@') {
        let fits = text.len() <= SPECIAL_MAX && text.bytes().all(is_name_byte_or_slash);
        return fits.then_some(Checked::Special(text)).ok_or(Errno::EINVAL);
    }
    if text == "/" {
        let path = Cow::Borrowed(text);
        return Ok(Checked::Node { path, prefix: 0 });
    }
    let relative = !text.starts_with('/');
    if relative && text.len() > REL_PATH_MAX {
        return Err(Errno::EINVAL);
    }
    let (path, prefix) = if relative {
        let mut path = home(dom);
        path.push('/');
        let prefix = path.len();
        path.push_str(text);
        (Cow::Owned(path), prefix)
    } else {
        (Cow::Borrowed(text), 0)
    };
    if path.len() > ABS_PATH_MAX || !has_good_names(path.as_bytes()) {
        return Err(Errno::EINVAL);
    }
    Ok(Checked::Node { path, prefix })
}

/// The names in an absolute path, from the root down; none for `/`.
pub fn names(path: &str) -> Names<'_> {
    Names(path.strip_prefix('/').unwrap_or_default())
}

/// The names that are left of a path.
#[derive(Clone, Debug)]
pub struct Names<'a>(&'a str);

impl<'a> Iterator for Names<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.0.is_empty() {
            return None;
        }
        // Names are short: a search that is made for long texts takes longer to begin.
        let end = self.0.bytes().position(|byte| byte == b'/');
        let (name, rest) = match end {
            Some(end) => (&self.0[..end], &self.0[end + 1..]),
            None => (self.0, ""),
        };
        self.0 = rest;
        Some(name)
    }
}

/// The path itself and all above it, up to `/`.
pub fn with_ancestors(path: &str) -> impl Iterator<Item = &str> {
    core::iter::successors(Some(path), |path| parent(path))
}

/// The path one level up; `/` has none.
pub fn parent(path: &str) -> Option<&str> {
    split(path).map(|(parent, _)| parent)
}

/// Parent and name; `/` has neither.
pub fn split(path: &str) -> Option<(&str, &str)> {
    if path == "/" {
        return None;
    }
    // Names are short, as said above.
    let at = path.bytes().rposition(|byte| byte == b'/')?;
    Some((if at == 0 { "/" } else { &path[..at] }, &path[at + 1..]))
}

/// A child's path.
pub fn join(parent: &str, name: &str) -> String {
    let slash = if parent == "/" { "" } else { "/" };
    format!("{parent}{slash}{name}")
}

/// The path one level below `found` on the way to `path`.
pub fn first_below<'p>(found: &str, path: &'p str) -> &'p str {
    let start = if found == "/" { 1 } else { found.len() + 1 };
    let rest = path.get(start..).unwrap_or_default();
    &path[..start + rest.find('/').unwrap_or(rest.len())]
}

/// Whether this is the absolute path of a node.
pub fn is_path(text: &str) -> bool {
    text == "/"
        || text.len() <= ABS_PATH_MAX && text.starts_with('/') && has_good_names(text.as_bytes())
}

/// Whether this is a name that a node may have.
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains('/') && text.bytes().all(is_name_byte_or_slash)
}

/// Whether an absolute path, other than `/`, has only names that may be.
fn has_good_names(path: &[u8]) -> bool {
    let (Some((_, names)), Some((last, before))) = (path.split_first(), path.split_last()) else {
        return false;
    };
    // Without a way out in the middle, so that many bytes are looked at at once; the last block overlaps the one before.
    let bad = match before.last_chunk().zip(names.last_chunk()) {
        Some((before_last, last)) => {
            let blocks = before.as_chunks().0.iter().zip(names.as_chunks().0);
            blocks.fold(bad_block(before_last, last), |bad, (before, block)| {
                bad | bad_block(before, block)
            })
        }
        None => bad_bytes(before, names),
    };
    bad == 0 && *last != b'/'
}

fn bad_block(before: &[u8; 16], block: &[u8; 16]) -> u8 {
    bad_bytes(before, block)
}

/// 0 if all these may stand in names or are slashes, none of which comes behind a slash before it.
#[inline(always)]
fn bad_bytes(before: &[u8], bytes: &[u8]) -> u8 {
    let pairs = before.iter().zip(bytes);
    pairs.fold(0, |bad, (before, byte)| {
        let no_name = (*before == b'/') & (*byte == b'/');
        bad | bad_byte(*byte) | u8::from(no_name)
    })
}

fn is_name_byte_or_slash(byte: u8) -> bool {
    bad_byte(byte) == 0
}

/// 0 for a byte that may stand in a name, and for the slash.
#[inline]
fn bad_byte(byte: u8) -> u8 {
    let letter = (byte | 0x20).wrapping_sub(b'a') < 26;
    // The slash comes before the digits.
    let digit_or_slash = byte.wrapping_sub(b'/') < 11;
    let other = (byte == b'-') | (byte == b'_') | (byte == b'@');
    u8::from(!(letter | digit_or_slash | other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn absolute(raw: &[u8]) -> Result<String, Errno> {
        match check(DomId(7), raw)? {
            Checked::Node { path, .. } => Ok(path.into_owned()),
            Checked::Special(name) => Ok(name.to_owned()),
        }
    }

    #[test]
    fn paths() {
        for (raw, path) in [
            ("/", "/"),
            ("/a", "/a"),
            ("/a/b@c_D-9", "/a/b@c_D-9"),
            ("a", "/local/domain/7/a"),
            ("a/b", "/local/domain/7/a/b"),
            ("@releaseDomain", "@releaseDomain"),
        ] {
            assert_eq!(absolute(raw.as_bytes()).as_deref(), Ok(path));
        }
        for raw in [
            "", "//", "/a/", "a/", "/a//b", "//a", "/a b", "/a.b", "/ä", "/a\n", "@a b",
        ] {
            assert_eq!(absolute(raw.as_bytes()), Err(Errno::EINVAL), "{raw:?}");
        }
        assert_eq!(absolute(b"/\xff"), Err(Errno::EINVAL));
    }

    #[test]
    fn bytes_of_names() {
        for byte in 0..=u8::MAX {
            let may_be = byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte);
            assert_eq!(is_name_byte_or_slash(byte), may_be, "{byte}");
            // Wherever it stands.
            for at in 1..40 {
                let mut path = vec![b'x'; 40];
                (path[0], path[at]) = (b'/', byte);
                let doubled = byte == b'/' && (at == 1 || at == 39);
                assert_eq!(has_good_names(&path), may_be && !doubled, "{byte} at {at}");
            }
        }
    }

    #[test]
    fn lengths() {
        let long = |head: &str, len: usize| format!("{head}{}", "x".repeat(len - head.len()));
        for (path, ok) in [
            (long("/", ABS_PATH_MAX), true),
            (long("/", ABS_PATH_MAX + 1), false),
            (long("x", REL_PATH_MAX), true),
            (long("x", REL_PATH_MAX + 1), false),
            (long("@", SPECIAL_MAX), true),
            (long("@", SPECIAL_MAX + 1), false),
        ] {
            assert_eq!(absolute(path.as_bytes()).is_ok(), ok, "{}", path.len());
        }
    }

    #[test]
    fn parts() {
        assert_eq!(names("/").count(), 0);
        assert_eq!(names("/a/b").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(
            with_ancestors("/a/b").collect::<Vec<_>>(),
            ["/a/b", "/a", "/"]
        );
        assert_eq!(split("/"), None);
        assert_eq!(split("/a"), Some(("/", "a")));
        assert_eq!(split("/a/b"), Some(("/a", "b")));
        assert_eq!(first_below("/", "/a/b"), "/a");
        assert_eq!(first_below("/a", "/a/b/c"), "/a/b");
        assert_eq!(first_below("/a", "/a/b"), "/a/b");
        assert_eq!(join("/", "a"), "/a");
        assert_eq!(join("/a", "b"), "/a/b");
    }

    proptest! {
        #[test]
        fn any_bytes(raw in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(path) = absolute(&raw) {
                prop_assert!(path.len() <= ABS_PATH_MAX);
                // What was accepted stays as it is.
                prop_assert_eq!(absolute(path.as_bytes()), Ok(path));
            }
        }
    }
}
