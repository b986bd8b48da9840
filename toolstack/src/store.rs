//! What the toolstack needs of the store daemon beyond reading and writing, and what it finds out by it.

use std::time::{Duration, Instant};

use xen_hal::{Store, StoreExt, StoreLink, StoreOp, TxId, WatchEvent, XenbusState};
use xen_sys::{DomId, Mfn, Port};
use xs_client::Connection;
use xs_wire::{Request, StoreError};

use crate::error::{Error, Kind, Result};
use crate::index::{self, Answer};
use crate::{interrupt, nodes};

/// The store as a toolstack uses it.
pub trait StoreControl: Store {
    /// Does several things as [`Store::batch`], and then connects a domain's ring to the daemon: of all this one
    /// answer is waited for. The last result is that of the connection.
    fn batch_and_introduce(
        &self,
        ops: &[StoreOp<'_>],
        dom: DomId,
        ring: Mfn,
        port: Port,
    ) -> Vec<Result<Vec<u8>, StoreError>>;
    /// Sets watches with one token and then reads nodes, `None` if absent: of all this one answer is waited for.
    ///
    /// # Errors
    /// The first that was refused.
    fn watch_and_read(
        &self,
        watches: &[String],
        token: &str,
        paths: &[String],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        for path in watches {
            self.watch(path, token)?;
        }
        let read = |path: &String| self.read_optional(None, path);
        paths.iter().map(read).collect()
    }
    /// Removes watches, if they are there. No answer is waited for.
    fn unwatch_all(&self, watches: &[String], token: &str) {
        for path in watches {
            let _ = self.unwatch(path, token);
        }
    }
    /// Waits for a watch event, at most so long.
    ///
    /// # Errors
    /// The daemon has gone.
    fn wait_event(&self, timeout: Duration) -> Result<Option<WatchEvent>, StoreError>;
}

impl StoreControl for Connection {
    fn batch_and_introduce(
        &self,
        ops: &[StoreOp<'_>],
        dom: DomId,
        ring: Mfn,
        port: Port,
    ) -> Vec<Result<Vec<u8>, StoreError>> {
        let mut requests: Vec<_> = ops.iter().map(StoreOp::request).collect();
        requests.push(Request::Introduce(dom, ring.0, port));
        self.exchange_all(None, &requests)
    }

    fn watch_and_read(
        &self,
        watches: &[String],
        token: &str,
        paths: &[String],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let token = token.as_bytes();
        let mut requests: Vec<_> = watches
            .iter()
            .map(|path| Request::Watch(path.as_bytes(), token, None))
            .collect();
        requests.extend(paths.iter().map(|path| Request::Read(path.as_bytes())));
        let mut results = self.exchange_all(None, &requests);
        let values = results.split_off(watches.len());
        if let Some(error) = results.into_iter().find_map(Result::err) {
            return Err(error);
        }
        values.into_iter().map(optional).collect()
    }

    fn unwatch_all(&self, watches: &[String], token: &str) {
        for path in watches {
            // Nothing hangs on it: what comes of it is not looked at.
            let _ = self.submit(None, &Request::Unwatch(path.as_bytes(), token.as_bytes()));
        }
    }

    fn wait_event(&self, timeout: Duration) -> Result<Option<WatchEvent>, StoreError> {
        interrupt::wait(timeout, |time| Connection::wait_event(self, Some(time)))
    }
}

/// A text node, `None` if there is none.
///
/// # Errors
/// The store's.
pub fn text(
    store: &impl Store,
    tx: Option<TxId>,
    path: &str,
) -> Result<Option<String>, StoreError> {
    let value = store.read_optional(tx, path)?;
    Ok(value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// The names below a node; none if there is no such node.
///
/// # Errors
/// The store's.
pub fn children(
    store: &impl Store,
    tx: Option<TxId>,
    path: &str,
) -> Result<Vec<String>, StoreError> {
    match store.list(tx, path) {
        Err(error) if error.errno == xen_sys::Errno::ENOENT => Ok(Vec::new()),
        result => result,
    }
}

/// A guest's name.
///
/// # Errors
/// The store's.
pub fn name_of(store: &impl Store, dom: DomId) -> Result<Option<String>, StoreError> {
    text(store, None, &format!("{}/name", nodes::home(dom)))
}

/// The names of many guests.
///
/// # Errors
/// The store's.
pub fn names_of(store: &impl Store, doms: &[DomId]) -> Result<Vec<Option<String>>, StoreError> {
    let paths: Vec<_> = doms
        .iter()
        .map(|dom| format!("{}/name", nodes::home(*dom)))
        .collect();
    texts(store, None, &paths)
}

/// Many text nodes, each `None` if there is none.
///
/// # Errors
/// The store's.
pub fn texts(
    store: &impl Store,
    tx: Option<TxId>,
    paths: &[String],
) -> Result<Vec<Option<String>>, StoreError> {
    let ops: Vec<_> = paths.iter().map(|path| StoreOp::Read(path)).collect();
    store
        .batch(tx, &ops)
        .into_iter()
        .map(|result| {
            let value = optional(result)?;
            Ok(value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        })
        .collect()
}

/// A node's value, if there is such a node.
fn optional(result: Result<Vec<u8>, StoreError>) -> Result<Option<Vec<u8>>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.errno == xen_sys::Errno::ENOENT => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes many nodes, whether they are there or not.
///
/// # Errors
/// The first that resists.
pub fn remove_all(
    store: &impl Store,
    tx: Option<TxId>,
    paths: &[String],
) -> Result<(), StoreError> {
    let ops: Vec<_> = paths.iter().map(|path| StoreOp::Rm(path)).collect();
    let resists = |error: &StoreError| error.errno != xen_sys::Errno::ENOENT;
    let results = store.batch(tx, &ops).into_iter();
    results
        .filter_map(Result::err)
        .find(resists)
        .map_or(Ok(()), Err)
}

/// A word means no guest that exists.
pub fn no_such_domain(word: &str) -> Error {
    Error::new(
        "find the domain",
        word,
        "it is an invalid domain identifier",
    )
    .kind(Kind::NoSuchDomain)
    .hint("`xlrs list` shows those that exist")
}

/// The guest that is meant by a name, or by a number if it is made of digits.
///
/// # Errors
/// There is none, or the store cannot be asked.
pub fn find_domain(store: &impl Store, word: &str) -> Result<DomId> {
    let unknown = || no_such_domain(word);
    if word.bytes().all(|b| b.is_ascii_digit()) {
        let dom = word.parse().map(DomId).map_err(|_| unknown())?;
        return if dom.is_ordinary() {
            Ok(dom)
        } else {
            Err(unknown())
        };
    }
    find_by_name(store, word)?.ok_or_else(unknown)
}

/// The guest with this name.
///
/// # Errors
/// The store cannot be asked.
pub fn find_by_name(store: &impl Store, name: &str) -> Result<Option<DomId>> {
    let found = || match index::by_name(store, name)? {
        Answer::Known(dom) => Ok(dom),
        Answer::Unknown => find_among_all(store, name),
    };
    found().map_err(Error::store("look for the name", name))
}

/// The same by a look at every guest.
///
/// # Errors
/// The store's.
pub fn find_among_all(store: &impl Store, name: &str) -> Result<Option<DomId>, StoreError> {
    let doms: Vec<DomId> = children(store, None, "/local/domain")?
        .iter()
        .filter_map(|child| child.parse().ok().map(DomId))
        .collect();
    let names = names_of(store, &doms)?;
    let at = names
        .iter()
        .position(|found| found.as_deref() == Some(name));
    Ok(at.map(|at| doms[at]))
}

/// A back end that is waited for.
#[derive(Clone, Debug)]
pub struct Awaited {
    /// Its directory.
    pub path: String,
    /// What it is, for messages.
    pub what: String,
}

/// What a look at a back end tells.
pub enum Look {
    /// It is where it shall be.
    Done,
    /// Not yet.
    Waiting,
    /// It will never be.
    Failed,
}

/// Waits until every back end is where `judge` wants it.
///
/// # Errors
/// Names those that were late or have failed, with their state and their own words.
pub fn wait_backends(
    store: &impl StoreControl,
    mut late: Vec<Awaited>,
    timeout: Duration,
    judge: impl Fn(Option<XenbusState>) -> Look,
) -> Result<()> {
    const TOKEN: &str = "xlrs-wait";
    if late.is_empty() {
        return Ok(());
    }
    let deadline = Instant::now() + timeout;
    // Nothing else of a back end is of interest, and a back end writes much.
    let states: Vec<String> = late.iter().map(|item| state_of(&item.path)).collect();
    let look = |late: &mut Vec<Awaited>,
                watches: &[String],
                paths: &[String]|
     -> Result<bool, StoreError> {
        let values = store.watch_and_read(watches, TOKEN, paths)?;
        for (path, value) in paths.iter().zip(values) {
            match judge(value.map(|value| XenbusState::parse(&value))) {
                Look::Done => late.retain(|item| state_of(&item.path) != *path),
                Look::Waiting => {}
                Look::Failed => return Ok(true),
            }
        }
        Ok(late.is_empty())
    };
    let mut run = || -> Result<(), StoreError> {
        let mut over = look(&mut late, &states, &states)?;
        while !over {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(event) = store.wait_event(left)? else {
                return Ok(());
            };
            let mut paths = vec![event.path];
            while let Some(event) = store.next_event()? {
                if !paths.contains(&event.path) {
                    paths.push(event.path);
                }
            }
            paths.retain(|path| late.iter().any(|item| state_of(&item.path) == *path));
            if !paths.is_empty() {
                over = look(&mut late, &[], &paths)?;
            }
        }
        Ok(())
    };
    let result = run();
    store.unwatch_all(&states, TOKEN);
    result.map_err(Error::store("wait for the back ends", ""))?;
    if late.is_empty() {
        return Ok(());
    }
    interrupt::check()?;
    Err(late_error(store, &late, timeout))
}

/// Where a back end says its state.
fn state_of(backend: &str) -> String {
    format!("{backend}/state")
}

fn late_error(store: &impl Store, late: &[Awaited], timeout: Duration) -> Error {
    let mut whats = Vec::new();
    let mut failed = false;
    for item in late {
        let state = store
            .read_optional(None, &format!("{}/state", item.path))
            .ok()
            .flatten()
            .map_or(XenbusState::Unknown, |value| XenbusState::parse(&value));
        failed |= matches!(state, XenbusState::Closing | XenbusState::Closed);
        let mut what = format!("{} is in state {state} ({state:?})", item.what);
        // xenbus drivers say here what troubles them.
        let said = item
            .path
            .replacen("/local/domain/0/", "/local/domain/0/error/", 1);
        if let Ok(Some(said)) = text(store, None, &format!("{said}/error")) {
            what = format!("{what}: {said}");
        }
        whats.push(what);
    }
    let cause = match failed {
        true => whats.join("; "),
        false => format!(
            "{} s have passed and {}",
            timeout.as_secs(),
            whats.join("; ")
        ),
    };
    let places: Vec<_> = late.iter().map(|item| item.path.as_str()).collect();
    Error::new("wait for the back end", places.join(", "), cause)
        .kind(Kind::TimedOut)
        .hint("`xlrs host status` tells whether the back ends run")
}
