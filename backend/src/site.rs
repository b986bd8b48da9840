//! One device's place in the store: its name, its two directories, and careful reading of both.

use core::fmt;
use core::str::FromStr;

use xen_hal::{Error, Result, Store, StoreExt, XenbusState};
use xen_sys::DomId;

/// A device's name within its class: whose it is and which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId {
    /// The front end's domain.
    pub dom: DomId,
    /// The device's number: `virtual-device` of a disk, the handle of a network interface.
    pub index: u32,
}

impl DeviceId {
    /// Parses the `D/I` part of a backend path; what follows it is returned too.
    pub fn parse(path: &str) -> Option<(DeviceId, &str)> {
        let (dom, rest) = path.split_once('/')?;
        let (index, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let id = DeviceId {
            dom: DomId(decimal(dom)?),
            index: decimal(index)?,
        };
        id.dom.is_ordinary().then_some((id, rest))
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.dom, self.index)
    }
}

/// A node that a backend publishes below its directory: name and value.
pub type Node = (&'static str, String);

/// Longest value taken from a front end's node, in bytes; the longest legal one is a number or a short word.
const MAX_FRONT_VALUE: usize = 64;

/// What a driver sees of a device: the store, where it stands, how far it is.
pub struct Site<'a> {
    /// The store.
    pub store: &'a dyn Store,
    /// The device.
    pub id: DeviceId,
    /// The backend's directory, `/local/domain/B/backend/CLASS/D/I`.
    pub back: &'a str,
    /// The front end's directory, as the toolstack wrote it.
    pub front: &'a str,
    /// The backend's state as it stands in the store.
    pub state: XenbusState,
}

impl Site<'_> {
    /// A node of the backend's directory (the toolstack's word), `None` if absent.
    pub fn back(&self, node: &str) -> Result<Option<String>> {
        let path = format!("{}/{node}", self.back);
        let Some(value) = self.store.read_optional(None, &path)? else {
            return Ok(None);
        };
        match String::from_utf8(value) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(self.peer(DomId::DOM0, format!("{path} is not UTF-8"))),
        }
    }

    /// A node of the backend's directory that must be there.
    pub fn back_required(&self, node: &str) -> Result<String> {
        self.back(node)?
            .ok_or_else(|| self.peer(DomId::DOM0, format!("{}/{node} is missing", self.back)))
    }

    /// Whether a 0/1 node of the backend's directory is set; `default` if it is absent.
    pub fn back_flag(&self, node: &str, default: bool) -> Result<bool> {
        Ok(self.back(node)?.map_or(default, |value| value != "0"))
    }

    /// A node of the front end's directory (the guest's word), `None` if absent. Long values are refused.
    pub fn front(&self, node: &str) -> Result<Option<String>> {
        let path = format!("{}/{node}", self.front);
        let Some(value) = self.store.read_optional(None, &path)? else {
            return Ok(None);
        };
        match String::from_utf8(value) {
            Ok(text) if text.len() <= MAX_FRONT_VALUE => Ok(Some(text)),
            Ok(text) => {
                Err(self.guest(format!("{path}: {} bytes is no sensible value", text.len())))
            }
            Err(_) => Err(self.guest(format!("{path} is not UTF-8"))),
        }
    }

    /// A decimal number in the front end's directory, `None` if absent.
    pub fn front_number<T: FromStr>(&self, node: &str) -> Result<Option<T>> {
        match self.front(node)? {
            None => Ok(None),
            Some(text) => decimal(&text).map(Some).ok_or_else(|| {
                self.guest(format!(
                    "{}/{node} is {text:?}, not a number in range",
                    self.front
                ))
            }),
        }
    }

    /// A decimal number that the front end must have published.
    pub fn front_required<T: FromStr>(&self, node: &str) -> Result<T> {
        self.front_number(node)?
            .ok_or_else(|| self.guest(format!("{}/{node} is missing", self.front)))
    }

    /// The guest said something that makes no sense.
    pub fn guest(&self, what: String) -> Error {
        self.peer(self.id.dom, what)
    }

    fn peer(&self, dom: DomId, what: String) -> Error {
        Error::Peer { dom, what }
    }
}

/// A number in plain decimal digits; unlike `str::parse` it takes no sign.
fn decimal<T: FromStr>(text: &str) -> Option<T> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names() {
        let id = |dom, index| DeviceId {
            dom: DomId(dom),
            index,
        };
        for (path, expected) in [
            ("1/51712", Some((id(1, 51712), ""))),
            ("1/51712/state", Some((id(1, 51712), "state"))),
            ("1/0/queue-0/x", Some((id(1, 0), "queue-0/x"))),
            ("1", None),
            ("", None),
            ("+1/2", None),
            ("-1/2", None),
            ("70000/2", None),
            ("32752/0", None),
            ("1/4294967296", None),
            ("a/b", None),
        ] {
            assert_eq!(DeviceId::parse(path), expected, "{path}");
        }
    }
}
