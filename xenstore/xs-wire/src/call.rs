//! Whole operations over anything that can carry one request and bring its reply, waiting for it.
//! dom0's blocking client and the guest's are both made of this.

use alloc::string::String;
use alloc::vec::Vec;
use core::num::NonZeroU32;

use xen_sys::{DomId, Errno, Port};

use crate::request::{Request, number, parse_permissions, split_word, words};
use crate::types::{Permission, StoreError, TxId};

/// How often a listing in pieces begins anew because the node changed meanwhile.
const MAX_LIST_RESTARTS: usize = 100;

/// Sends a request and waits for its reply.
pub trait Exchange {
    /// The reply's payload.
    fn exchange(&self, tx: Option<TxId>, request: &Request<'_>) -> Result<Vec<u8>, StoreError>;
}

impl<X: Exchange + ?Sized> Exchange for &X {
    fn exchange(&self, tx: Option<TxId>, request: &Request<'_>) -> Result<Vec<u8>, StoreError> {
        (**self).exchange(tx, request)
    }
}

/// Reads a value.
pub fn read(
    x: &(impl Exchange + ?Sized),
    tx: Option<TxId>,
    path: &str,
) -> Result<Vec<u8>, StoreError> {
    x.exchange(tx, &Request::Read(path.as_bytes()))
}

/// Writes a value, making the node and its parents if absent.
pub fn write(
    x: &(impl Exchange + ?Sized),
    tx: Option<TxId>,
    path: &str,
    value: &[u8],
) -> Result<(), StoreError> {
    acknowledged(x, tx, &Request::Write(path.as_bytes(), value))
}

/// Makes an empty node and its parents if absent.
pub fn mkdir(x: &(impl Exchange + ?Sized), tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
    acknowledged(x, tx, &Request::Mkdir(path.as_bytes()))
}

/// Removes a node and all below it.
pub fn rm(x: &(impl Exchange + ?Sized), tx: Option<TxId>, path: &str) -> Result<(), StoreError> {
    acknowledged(x, tx, &Request::Rm(path.as_bytes()))
}

/// The names of a node's children; in pieces if they do not fit one message.
pub fn list(
    x: &(impl Exchange + ?Sized),
    tx: Option<TxId>,
    path: &str,
) -> Result<Vec<String>, StoreError> {
    let mut listing = Listing::new(path);
    loop {
        let reply = x.exchange(tx, &listing.request());
        if let Some(names) = listing.take(reply)? {
            return Ok(names);
        }
    }
}

/// A listing on its way, without I/O: one request after the other until the names are there.
#[derive(Debug)]
pub struct Listing<'a> {
    path: &'a str,
    /// The names so far, and the state of the node that they are of; `None` while one message may do.
    pieces: Option<(Vec<u8>, Option<Vec<u8>>)>,
    restarts: usize,
}

impl<'a> Listing<'a> {
    /// The listing of a node's children.
    pub fn new(path: &'a str) -> Listing<'a> {
        Listing {
            path,
            pieces: None,
            restarts: 0,
        }
    }

    /// What to ask next.
    pub fn request(&self) -> Request<'a> {
        let path = self.path.as_bytes();
        match &self.pieces {
            None => Request::Directory(path),
            Some((whole, _)) => Request::DirectoryPart(path, whole.len() as u64),
        }
    }

    /// Takes the reply; the names once they are complete.
    pub fn take(
        &mut self,
        reply: Result<Vec<u8>, StoreError>,
    ) -> Result<Option<Vec<String>>, StoreError> {
        let request = self.request();
        let Some((whole, generation)) = &mut self.pieces else {
            return match reply {
                Ok(body) => names_in(&body).map(Some).ok_or_else(|| nonsense(&request)),
                Err(error) if error.errno == Errno::E2BIG => {
                    self.pieces = Some((Vec::new(), None));
                    Ok(None)
                }
                Err(error) => Err(error),
            };
        };
        let body = reply?;
        let (now, mut piece) = split_word(&body).ok_or_else(|| nonsense(&request))?;
        if *generation.get_or_insert_with(|| now.to_vec()) != now {
            self.pieces = Some((Vec::new(), None));
            self.restarts += 1;
            return if self.restarts < MAX_LIST_RESTARTS {
                Ok(None)
            } else {
                Err(StoreError {
                    errno: Errno::EAGAIN,
                    ..nonsense(&request)
                })
            };
        }
        // An empty name marks the end.
        let last = piece == [0] || piece.ends_with(&[0, 0]);
        if last {
            piece = &piece[..piece.len() - 1];
        } else if piece.is_empty() {
            return Err(nonsense(&request));
        }
        whole.extend_from_slice(piece);
        if !last {
            return Ok(None);
        }
        names_in(whole).map(Some).ok_or_else(|| nonsense(&request))
    }
}

/// A node's permission list.
pub fn permissions(
    x: &(impl Exchange + ?Sized),
    tx: Option<TxId>,
    path: &str,
) -> Result<Vec<Permission>, StoreError> {
    let request = Request::GetPerms(path.as_bytes());
    let body = x.exchange(tx, &request)?;
    parse_permissions(&body).ok_or_else(|| nonsense(&request))
}

/// Replaces a node's permission list.
pub fn set_permissions(
    x: &(impl Exchange + ?Sized),
    tx: Option<TxId>,
    path: &str,
    list: &[Permission],
) -> Result<(), StoreError> {
    acknowledged(x, tx, &Request::SetPerms(path.as_bytes(), list.to_vec()))
}

/// Starts a transaction.
pub fn start(x: &(impl Exchange + ?Sized)) -> Result<TxId, StoreError> {
    let request = Request::TransactionStart;
    let body = x.exchange(None, &request)?;
    parse_tx(&body).ok_or_else(|| nonsense(&request))
}

/// Ends a transaction; a commit that conflicts is EAGAIN.
pub fn end(x: &(impl Exchange + ?Sized), tx: TxId, commit: bool) -> Result<(), StoreError> {
    acknowledged(x, Some(tx), &Request::TransactionEnd(commit))
}

/// Sets a watch.
pub fn watch(x: &(impl Exchange + ?Sized), path: &str, token: &str) -> Result<(), StoreError> {
    acknowledged(
        x,
        None,
        &Request::Watch(path.as_bytes(), token.as_bytes(), None),
    )
}

/// Removes a watch.
pub fn unwatch(x: &(impl Exchange + ?Sized), path: &str, token: &str) -> Result<(), StoreError> {
    acknowledged(
        x,
        None,
        &Request::Unwatch(path.as_bytes(), token.as_bytes()),
    )
}

/// Removes all watches and transactions of the caller.
pub fn reset_watches(x: &(impl Exchange + ?Sized)) -> Result<(), StoreError> {
    acknowledged(x, None, &Request::ResetWatches)
}

/// Connects a domain's ring to the daemon: the ring's machine frame and the domain's event channel port.
pub fn introduce(
    x: &(impl Exchange + ?Sized),
    dom: DomId,
    frame: u64,
    port: Port,
) -> Result<(), StoreError> {
    acknowledged(x, None, &Request::Introduce(dom, frame, port))
}

/// Makes the daemon forget a domain.
pub fn release(x: &(impl Exchange + ?Sized), dom: DomId) -> Result<(), StoreError> {
    acknowledged(x, None, &Request::Release(dom))
}

/// Tells the daemon that a domain runs again after it had shut down.
pub fn resume(x: &(impl Exchange + ?Sized), dom: DomId) -> Result<(), StoreError> {
    acknowledged(x, None, &Request::Resume(dom))
}

/// Gives `dom` the rights of `target` (a stub domain those of its guest).
pub fn set_target(
    x: &(impl Exchange + ?Sized),
    dom: DomId,
    target: DomId,
) -> Result<(), StoreError> {
    acknowledged(x, None, &Request::SetTarget(dom, target))
}

/// A domain's home directory.
pub fn domain_path(x: &(impl Exchange + ?Sized), dom: DomId) -> Result<String, StoreError> {
    let request = Request::GetDomainPath(dom);
    let body = x.exchange(None, &request)?;
    split_word(&body)
        .and_then(|(path, _)| core::str::from_utf8(path).ok())
        .map(String::from)
        .ok_or_else(|| nonsense(&request))
}

/// Whether a domain is connected.
pub fn is_introduced(x: &(impl Exchange + ?Sized), dom: DomId) -> Result<bool, StoreError> {
    let request = Request::IsDomainIntroduced(dom);
    match &x.exchange(None, &request)?[..] {
        b"T\0" => Ok(true),
        b"F\0" => Ok(false),
        _ => Err(nonsense(&request)),
    }
}

/// Gives the daemon a command; returns its text.
pub fn control(x: &(impl Exchange + ?Sized), command: &[&str]) -> Result<String, StoreError> {
    let request = Request::Control(command.iter().map(|word| word.as_bytes()).collect());
    let body = x.exchange(None, &request)?;
    let text = body.strip_suffix(&[0]).unwrap_or(&body);
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// The transaction number in the reply to `TRANSACTION_START`.
pub fn parse_tx(body: &[u8]) -> Option<TxId> {
    let (word, _) = split_word(body)?;
    let number = u32::try_from(number(word).ok()?).ok()?;
    NonZeroU32::new(number).map(TxId)
}

fn acknowledged(
    x: &(impl Exchange + ?Sized),
    tx: Option<TxId>,
    request: &Request<'_>,
) -> Result<(), StoreError> {
    // Success is said by the message's kind; "OK" in the payload adds nothing.
    x.exchange(tx, request).map(drop)
}

/// The names in the payload of a `DIRECTORY` reply.
fn names_in(body: &[u8]) -> Option<Vec<String>> {
    words(body)?
        .map(|word| core::str::from_utf8(word).ok().map(String::from))
        .collect()
}

/// The daemon's reply does not parse.
fn nonsense(request: &Request<'_>) -> StoreError {
    StoreError {
        op: request.op().name(),
        object: request.object(),
        errno: Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use core::cell::RefCell;

    /// Answers with prepared replies and notes the offsets asked for.
    struct Script(RefCell<Vec<Result<Vec<u8>, Errno>>>, RefCell<Vec<u64>>);

    impl Exchange for Script {
        fn exchange(&self, _: Option<TxId>, request: &Request<'_>) -> Result<Vec<u8>, StoreError> {
            if let Request::DirectoryPart(_, offset) = request {
                self.1.borrow_mut().push(*offset);
            }
            self.0.borrow_mut().remove(0).map_err(|errno| StoreError {
                errno,
                ..nonsense(request)
            })
        }
    }

    fn listing(replies: Vec<Result<Vec<u8>, Errno>>) -> (Result<Vec<String>, Errno>, Vec<u64>) {
        let script = Script(RefCell::new(replies), RefCell::default());
        let result = list(&script, None, "/a").map_err(|error| error.errno);
        assert!(script.0.borrow().is_empty());
        (result, script.1.into_inner())
    }

    #[test]
    fn listings() {
        let names = |names: &[&str]| Ok(names.iter().map(|name| String::from(*name)).collect());
        let big = || Err(Errno::E2BIG);
        assert_eq!(listing(vec![Ok(b"".to_vec())]), (names(&[]), vec![]));
        assert_eq!(
            listing(vec![Ok(b"a\0b\0".to_vec())]),
            (names(&["a", "b"]), vec![])
        );
        assert_eq!(
            listing(vec![
                big(),
                Ok(b"7\0a\0bc\0".to_vec()),
                Ok(b"7\0d\0\0".to_vec())
            ]),
            (names(&["a", "bc", "d"]), vec![0, 5])
        );
        assert_eq!(
            listing(vec![big(), Ok(b"7\0a\0".to_vec()), Ok(b"7\0\0".to_vec())]),
            (names(&["a"]), vec![0, 2])
        );
        assert_eq!(
            listing(vec![
                big(),
                Ok(b"7\0a\0".to_vec()),
                Ok(b"8\0x\0".to_vec()),
                Ok(b"8\0b\0\0".to_vec())
            ]),
            (names(&["b"]), vec![0, 2, 0])
        );
        assert_eq!(listing(vec![big(), Ok(b"7\0".to_vec())]).0, Err(Errno::EIO));
        assert_eq!(listing(vec![Err(Errno::ENOENT)]).0, Err(Errno::ENOENT));
    }
}
