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
        .map(|result| match result {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.errno == xen_sys::Errno::ENOENT => Ok(None),
            Err(error) => Err(error),
        })
        .collect()
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

/// The guest that is meant by a name, or by a number if it is made of digits.
///
/// # Errors
/// There is none, or the store cannot be asked.
pub fn find_domain(store: &impl Store, word: &str) -> Result<DomId> {
    let unknown = || {
        Error::new(
            "find the domain",
            word,
            "it is an invalid domain identifier",
        )
        .kind(Kind::NoSuchDomain)
        .hint("`xlrs list` shows those that exist")
    };
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
    let mut watches: Vec<String> = Vec::new();
    for item in &late {
        // One watch for all devices of a kind.
        let above = item.path.rsplit_once('/').map_or("", |(above, _)| above);
        if !watches.iter().any(|watch| watch == above) {
            watches.push(above.to_string());
        }
    }
    let mut run = || -> Result<(), StoreError> {
        for watch in &watches {
            store.watch(watch, TOKEN)?;
        }
        let mut look_at = late
            .iter()
            .map(|item| item.path.clone())
            .collect::<Vec<_>>();
        loop {
            let mut gone = Vec::new();
            for item in late.iter().filter(|item| look_at.contains(&item.path)) {
                let state = store
                    .read_optional(None, &format!("{}/state", item.path))?
                    .map(|value| XenbusState::parse(&value));
                match judge(state) {
                    Look::Done => gone.push(item.path.clone()),
                    Look::Waiting => {}
                    Look::Failed => return Ok(()),
                }
            }
            late.retain(|item| !gone.contains(&item.path));
            if late.is_empty() {
                return Ok(());
            }
            look_at.clear();
            while look_at.is_empty() {
                let left = deadline.saturating_duration_since(Instant::now());
                let Some(event) = store.wait_event(left)? else {
                    return Ok(());
                };
                take_event(event, &late, &mut look_at);
                while let Some(event) = store.next_event()? {
                    take_event(event, &late, &mut look_at);
                }
            }
        }
    };
    let result = run();
    for watch in &watches {
        // Nothing hangs on it: the connection ends soon.
        let _ = store.unwatch(watch, TOKEN);
    }
    result.map_err(Error::store("wait for the back ends", ""))?;
    if late.is_empty() {
        return Ok(());
    }
    interrupt::check()?;
    Err(late_error(store, &late, timeout))
}

/// Notes which back ends an event may be about.
fn take_event(event: WatchEvent, late: &[Awaited], look_at: &mut Vec<String>) {
    for item in late {
        let about = event.path == item.path
            || event.path.strip_prefix(&item.path) == Some("/state")
            || item.path.starts_with(&format!("{}/", event.path));
        if about && !look_at.contains(&item.path) {
            look_at.push(item.path.clone());
        }
    }
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
