//! Requests, in the form that clients build and the daemon parses.

use alloc::vec::Vec;
use core::fmt::Display;

use xen_sys::{DomId, Errno, Port};

use crate::op::{Op, PAYLOAD_MAX};
use crate::types::Permission;

/// A request. Paths and tokens are as they stand on the wire, without the NUL; a path is not yet checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Words for the daemon: command and arguments.
    Control(Vec<&'a [u8]>),
    /// Lists the children of a node.
    Directory(&'a [u8]),
    /// Lists the children of a node from this offset, in bytes, in the list.
    DirectoryPart(&'a [u8], u64),
    /// Reads a value.
    Read(&'a [u8]),
    /// Reads a permission list.
    GetPerms(&'a [u8]),
    /// Sets a watch: path and token; with a depth, only nodes so many levels below count.
    Watch(&'a [u8], &'a [u8], Option<u32>),
    /// Removes the watch with this path and token.
    Unwatch(&'a [u8], &'a [u8]),
    /// Removes all watches and transactions of the caller.
    ResetWatches,
    /// Starts a transaction.
    TransactionStart,
    /// Ends a transaction: `true` commits.
    TransactionEnd(bool),
    /// Connects a domain: its number, its ring's frame, its event channel port.
    Introduce(DomId, u64, Port),
    /// Forgets a domain.
    Release(DomId),
    /// Names a domain's home directory.
    GetDomainPath(DomId),
    /// Asks whether a domain is connected.
    IsDomainIntroduced(DomId),
    /// A domain runs again.
    Resume(DomId),
    /// Gives the first domain the rights of the second.
    SetTarget(DomId, DomId),
    /// Writes a value.
    Write(&'a [u8], &'a [u8]),
    /// Makes a node.
    Mkdir(&'a [u8]),
    /// Removes a node and all below.
    Rm(&'a [u8]),
    /// Replaces a permission list.
    SetPerms(&'a [u8], Vec<Permission>),
    /// Asks for the ring features of a domain, or those that the daemon knows.
    GetFeature(Option<DomId>),
    /// Sets the ring features of a domain.
    SetFeature(DomId, u32),
    /// Asks for the quota of this name: a domain's, or everybody's. Without a name, for all names.
    GetQuota(Option<DomId>, Option<&'a [u8]>),
    /// Sets the quota of this name: a domain's, or everybody's.
    SetQuota(Option<DomId>, &'a [u8], u32),
}

impl<'a> Request<'a> {
    /// The operation.
    pub fn op(&self) -> Op {
        match self {
            Request::Control(_) => Op::Control,
            Request::Directory(_) => Op::Directory,
            Request::DirectoryPart(..) => Op::DirectoryPart,
            Request::Read(_) => Op::Read,
            Request::GetPerms(_) => Op::GetPerms,
            Request::Watch(..) => Op::Watch,
            Request::Unwatch(..) => Op::Unwatch,
            Request::ResetWatches => Op::ResetWatches,
            Request::TransactionStart => Op::TransactionStart,
            Request::TransactionEnd(_) => Op::TransactionEnd,
            Request::Introduce(..) => Op::Introduce,
            Request::Release(_) => Op::Release,
            Request::GetDomainPath(_) => Op::GetDomainPath,
            Request::IsDomainIntroduced(_) => Op::IsDomainIntroduced,
            Request::Resume(_) => Op::Resume,
            Request::SetTarget(..) => Op::SetTarget,
            Request::Write(..) => Op::Write,
            Request::Mkdir(_) => Op::Mkdir,
            Request::Rm(_) => Op::Rm,
            Request::SetPerms(..) => Op::SetPerms,
            Request::GetFeature(_) => Op::GetFeature,
            Request::SetFeature(..) => Op::SetFeature,
            Request::GetQuota(..) => Op::GetQuota,
            Request::SetQuota(..) => Op::SetQuota,
        }
    }

    /// The path or other thing that the request is about, for error messages.
    pub fn object(&self) -> alloc::string::String {
        let text = |bytes: &[u8]| alloc::string::String::from_utf8_lossy(bytes).into_owned();
        match self {
            Request::Control(words) => words.first().map(|word| text(word)).unwrap_or_default(),
            Request::Directory(path)
            | Request::DirectoryPart(path, _)
            | Request::Read(path)
            | Request::GetPerms(path)
            | Request::Watch(path, ..)
            | Request::Unwatch(path, _)
            | Request::Write(path, _)
            | Request::Mkdir(path)
            | Request::Rm(path)
            | Request::SetPerms(path, _) => text(path),
            Request::Introduce(dom, ..)
            | Request::Release(dom)
            | Request::GetDomainPath(dom)
            | Request::IsDomainIntroduced(dom)
            | Request::Resume(dom)
            | Request::SetTarget(dom, _)
            | Request::GetFeature(Some(dom))
            | Request::SetFeature(dom, _) => alloc::format!("domain {dom}"),
            Request::GetQuota(_, name) => name.map(text).unwrap_or_default(),
            Request::SetQuota(_, name, _) => text(name),
            Request::GetFeature(None) => alloc::string::String::new(),
            Request::ResetWatches | Request::TransactionStart | Request::TransactionEnd(_) => {
                alloc::string::String::new()
            }
        }
    }

    /// Appends the payload to `out`. E2BIG if it exceeds [`PAYLOAD_MAX`], EINVAL if a word contains a NUL;
    /// `out` is unchanged then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), Errno> {
        let start = out.len();
        let result = self.append(out).and_then(|()| {
            if out.len() - start > PAYLOAD_MAX {
                return Err(Errno::E2BIG);
            }
            Ok(())
        });
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    fn append(&self, out: &mut Vec<u8>) -> Result<(), Errno> {
        match self {
            Request::Control(words) => words.iter().try_for_each(|word| push_word(out, word)),
            Request::Directory(path)
            | Request::Read(path)
            | Request::GetPerms(path)
            | Request::Mkdir(path)
            | Request::Rm(path) => push_word(out, path),
            Request::DirectoryPart(path, offset) => {
                push_word(out, path)?;
                push_display(out, offset);
                Ok(())
            }
            Request::Watch(path, token, depth) => {
                push_word(out, path)?;
                push_word(out, token)?;
                if let Some(depth) = depth {
                    push_display(out, depth);
                }
                Ok(())
            }
            Request::Unwatch(path, token) => {
                push_word(out, path)?;
                push_word(out, token)
            }
            Request::ResetWatches | Request::TransactionStart => push_word(out, b""),
            Request::TransactionEnd(commit) => push_word(out, if *commit { b"T" } else { b"F" }),
            Request::Introduce(dom, frame, port) => {
                push_display(out, dom);
                push_display(out, frame);
                push_display(out, port);
                Ok(())
            }
            Request::Release(dom)
            | Request::GetDomainPath(dom)
            | Request::IsDomainIntroduced(dom)
            | Request::Resume(dom) => {
                push_display(out, dom);
                Ok(())
            }
            Request::SetTarget(dom, target) => {
                push_display(out, dom);
                push_display(out, target);
                Ok(())
            }
            Request::Write(path, value) => {
                push_word(out, path)?;
                out.extend_from_slice(value);
                Ok(())
            }
            Request::SetPerms(path, list) => {
                push_word(out, path)?;
                encode_permissions(list, out);
                Ok(())
            }
            Request::GetFeature(None) | Request::GetQuota(_, None) => push_word(out, b""),
            Request::GetFeature(Some(dom)) => {
                push_display(out, dom);
                Ok(())
            }
            Request::SetFeature(dom, value) => {
                push_display(out, dom);
                push_display(out, value);
                Ok(())
            }
            Request::GetQuota(dom, Some(name)) => {
                if let Some(dom) = dom {
                    push_display(out, dom);
                }
                push_word(out, name)
            }
            Request::SetQuota(dom, name, value) => {
                if let Some(dom) = dom {
                    push_display(out, dom);
                }
                push_word(out, name)?;
                push_display(out, value);
                Ok(())
            }
        }
    }

    /// Parses a payload; EINVAL if it does not fit the operation, ENOSYS for what no client may send or
    /// this crate does not know.
    pub fn parse(op: Op, body: &'a [u8]) -> Result<Request<'a>, Errno> {
        Ok(match op {
            Op::Control => Request::Control(words(body).ok_or(Errno::EINVAL)?.collect()),
            Op::Directory => Request::Directory(one(body)?),
            Op::Read => Request::Read(one(body)?),
            Op::GetPerms => Request::GetPerms(one(body)?),
            Op::Mkdir => Request::Mkdir(one(body)?),
            Op::Rm => Request::Rm(one(body)?),
            Op::DirectoryPart => {
                let [path, offset] = exactly(body)?;
                Request::DirectoryPart(path, number(offset)?)
            }
            Op::Watch => {
                if let Ok([path, token]) = exactly(body) {
                    Request::Watch(path, token, None)
                } else {
                    let [path, token, depth] = exactly(body)?;
                    let depth = u32::try_from(number(depth)?).map_err(|_| Errno::EINVAL)?;
                    Request::Watch(path, token, Some(depth))
                }
            }
            Op::Unwatch => {
                let [path, token] = exactly(body)?;
                Request::Unwatch(path, token)
            }
            // Clients differ in what they send with these two: an empty string, or nothing.
            Op::ResetWatches => Request::ResetWatches,
            Op::TransactionStart => Request::TransactionStart,
            Op::TransactionEnd => match one(body)? {
                b"T" => Request::TransactionEnd(true),
                b"F" => Request::TransactionEnd(false),
                _ => return Err(Errno::EINVAL),
            },
            Op::Introduce => {
                let [dom, frame, port] = exactly(body)?;
                let port = u32::try_from(number(port)?).map_err(|_| Errno::EINVAL)?;
                Request::Introduce(domain(dom)?, number(frame)?, Port(port))
            }
            Op::Release => Request::Release(domain(one(body)?)?),
            Op::GetDomainPath => Request::GetDomainPath(domain(one(body)?)?),
            Op::IsDomainIntroduced => Request::IsDomainIntroduced(domain(one(body)?)?),
            Op::Resume => Request::Resume(domain(one(body)?)?),
            Op::SetTarget => {
                let [dom, target] = exactly(body)?;
                Request::SetTarget(domain(dom)?, domain(target)?)
            }
            Op::Write => {
                let (path, value) = split_word(body).ok_or(Errno::EINVAL)?;
                Request::Write(path, value)
            }
            Op::SetPerms => {
                let (path, list) = split_word(body).ok_or(Errno::EINVAL)?;
                let list = parse_permissions(list).ok_or(Errno::EINVAL)?;
                if list.is_empty() {
                    return Err(Errno::EINVAL);
                }
                Request::SetPerms(path, list)
            }
            Op::GetFeature if matches!(body, b"" | b"\0") => Request::GetFeature(None),
            Op::GetFeature => Request::GetFeature(Some(domain(one(body)?)?)),
            Op::SetFeature => {
                let [dom, value] = exactly(body)?;
                Request::SetFeature(domain(dom)?, small(value)?)
            }
            Op::GetQuota if matches!(body, b"" | b"\0") => Request::GetQuota(None, None),
            Op::GetQuota => match exactly(body) {
                Ok([name]) => Request::GetQuota(None, Some(name)),
                Err(_) => {
                    let [dom, name] = exactly(body)?;
                    Request::GetQuota(Some(domain(dom)?), Some(name))
                }
            },
            Op::SetQuota => match exactly(body) {
                Ok([name, value]) => Request::SetQuota(None, name, small(value)?),
                Err(_) => {
                    let [dom, name, value] = exactly(body)?;
                    Request::SetQuota(Some(domain(dom)?), name, small(value)?)
                }
            },
            Op::WatchEvent | Op::Error => return Err(Errno::ENOSYS),
        })
    }
}

/// The NUL-terminated words of a payload; `None` if the last one is not terminated.
pub fn words(body: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let inner = match body.split_last() {
        None => None,
        Some((0, inner)) => Some(inner),
        Some(_) => return None,
    };
    Some(
        inner
            .into_iter()
            .flat_map(|inner| inner.split(|byte| *byte == 0)),
    )
}

/// Cuts a payload after its first NUL.
pub fn split_word(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let word = core::ffi::CStr::from_bytes_until_nul(body).ok()?.to_bytes();
    Some((word, &body[word.len() + 1..]))
}

/// Parses a permission list as it stands on the wire: words such as `n0`, `r7`.
pub fn parse_permissions(body: &[u8]) -> Option<Vec<Permission>> {
    words(body)?.map(Permission::parse).collect()
}

/// Appends a permission list.
pub fn encode_permissions(list: &[Permission], out: &mut Vec<u8>) {
    for entry in list {
        push_display(out, entry);
    }
}

/// Parses a decimal number of digits only.
pub fn number(word: &[u8]) -> Result<u64, Errno> {
    if word.is_empty() || !word.iter().all(u8::is_ascii_digit) {
        return Err(Errno::EINVAL);
    }
    core::str::from_utf8(word)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or(Errno::EINVAL)
}

fn domain(word: &[u8]) -> Result<DomId, Errno> {
    u16::try_from(number(word)?)
        .map(DomId)
        .map_err(|_| Errno::EINVAL)
}

fn small(word: &[u8]) -> Result<u32, Errno> {
    u32::try_from(number(word)?).map_err(|_| Errno::EINVAL)
}

fn one(body: &[u8]) -> Result<&[u8], Errno> {
    match body.split_last() {
        Some((0, word)) if !word.contains(&0) => Ok(word),
        _ => Err(Errno::EINVAL),
    }
}

fn exactly<const N: usize>(body: &[u8]) -> Result<[&[u8]; N], Errno> {
    let mut words = words(body).ok_or(Errno::EINVAL)?;
    let mut result = [&[][..]; N];
    for slot in &mut result {
        *slot = words.next().ok_or(Errno::EINVAL)?;
    }
    match words.next() {
        None => Ok(result),
        Some(_) => Err(Errno::EINVAL),
    }
}

fn push_word(out: &mut Vec<u8>, word: &[u8]) -> Result<(), Errno> {
    if word.contains(&0) {
        return Err(Errno::EINVAL);
    }
    out.extend_from_slice(word);
    out.push(0);
    Ok(())
}

fn push_display(out: &mut Vec<u8>, value: impl Display) {
    struct Bytes<'a>(&'a mut Vec<u8>);
    impl core::fmt::Write for Bytes<'_> {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            self.0.extend_from_slice(text.as_bytes());
            Ok(())
        }
    }
    use core::fmt::Write;
    // Writing to memory cannot fail.
    let _ = write!(Bytes(out), "{value}\0");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Access;
    use alloc::vec;
    use proptest::prelude::*;

    fn encoded(request: &Request<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        request.encode(&mut out).unwrap();
        out
    }

    #[test]
    fn bodies() {
        let dom = DomId(7);
        for (request, body) in [
            (Request::Read(b"/a"), &b"/a\0"[..]),
            (Request::Write(b"/a", b"x\0y"), b"/a\0x\0y"),
            (Request::Write(b"/a", b""), b"/a\0"),
            (Request::Watch(b"a", b"tok", None), b"a\0tok\0"),
            (Request::Watch(b"a", b"", Some(2)), b"a\0\x002\0"),
            (Request::TransactionStart, b"\0"),
            (Request::TransactionEnd(true), b"T\0"),
            (
                Request::Introduce(dom, 1 << 33, Port(3)),
                b"7\08589934592\x003\0",
            ),
            (Request::SetTarget(dom, DomId(1)), b"7\x001\0"),
            (
                Request::SetPerms(
                    b"/a",
                    vec![Permission::owner(dom), Permission::new(dom, Access::Both)],
                ),
                b"/a\0n7\0b7\0",
            ),
            (Request::DirectoryPart(b"/", 12), b"/\x0012\0"),
            (
                Request::Control(vec![&b"print"[..], b"hello"]),
                b"print\0hello\0",
            ),
        ] {
            assert_eq!(encoded(&request), body, "{request:?}");
            assert_eq!(Request::parse(request.op(), body), Ok(request));
        }
    }

    #[test]
    fn malformed() {
        for (op, body) in [
            (Op::Read, &b""[..]),
            (Op::Read, b"/a"),
            (Op::Read, b"/a\0b\0"),
            (Op::Write, b"/a"),
            (Op::Watch, b"/a\0"),
            (Op::Watch, b"/a\0t\0-1\0"),
            (Op::TransactionEnd, b"X\0"),
            (Op::Introduce, b"1\x002\0"),
            (Op::Introduce, b"-1\x002\x003\0"),
            (Op::Introduce, b"65536\x002\x003\0"),
            (Op::Release, b"\0"),
            (Op::Release, b"+1\0"),
            (Op::SetPerms, b"/a\0"),
            (Op::SetPerms, b"/a\0x1\0"),
            (Op::SetPerms, b"/a\0n\0"),
            (Op::DirectoryPart, b"/a\0"),
            (Op::DirectoryPart, b"/a\x0099999999999999999999999\0"),
        ] {
            assert_eq!(
                Request::parse(op, body),
                Err(Errno::EINVAL),
                "{op:?} {body:?}"
            );
        }
        assert_eq!(Request::parse(Op::WatchEvent, b"a\0"), Err(Errno::ENOSYS));
    }

    #[test]
    fn limits() {
        let mut out = vec![1];
        let path = [b'a'; PAYLOAD_MAX];
        assert_eq!(Request::Read(&path).encode(&mut out), Err(Errno::E2BIG));
        assert_eq!(Request::Read(b"a\0b").encode(&mut out), Err(Errno::EINVAL));
        assert_eq!(out, [1], "nothing is left of a failed request");
        assert_eq!(Request::Read(&path[1..]).encode(&mut out), Ok(()));
    }

    proptest! {
        #[test]
        fn parse_takes_any_bytes(op in proptest::sample::select(Op::ALL), body in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>(), b'0'..=b'9'], 0..40)) {
            // What parses must be the same after a round trip.
            if let Ok(request) = Request::parse(op, &body) {
                let again = encoded(&request);
                prop_assert_eq!(Request::parse(op, &again), Ok(request));
            }
        }
    }
}
