//! One device's nodes in the store: where its two ends are, their states, and what each has published.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;
use core::str::FromStr;

use xen_hal::{Error, Result, Store, StoreExt, XenbusState};
use xen_sys::{DomId, Errno};

/// Where a device is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The back end has not published its features yet.
    Waiting,
    /// Rings and port are published; the back end has not connected yet.
    Published,
    /// In use.
    Connected,
    /// The back end has ended it. When it is there again, it is connected again.
    Closed,
    /// We have ended it, to connect it again.
    Reopening,
    /// The back end did what it must not do: this.
    Broken(String),
}

impl Phase {
    /// Whether it may yet become [`Connected`](Self::Connected).
    pub fn is_opening(&self) -> bool {
        matches!(self, Phase::Waiting | Phase::Published | Phase::Reopening)
    }
}

/// The guest's end of a device: `device/CLASS/ID`, with the path and domain of the other end.
#[derive(Debug)]
pub struct Device<S: Store> {
    store: S,
    path: String,
    backend: String,
    peer: DomId,
    token: String,
}

/// The ids of this guest's devices of a class (`vbd`, `vif`), in numeric order.
pub fn list(store: &impl Store, class: &str) -> Result<Vec<String>> {
    let mut ids = match store.list(None, &format!("device/{class}")) {
        Ok(ids) => ids,
        Err(error) if error.errno == Errno::ENOENT => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    ids.sort_by_key(|id| (id.parse::<u64>().ok(), id.clone()));
    Ok(ids)
}

impl<S: Store> Device<S> {
    /// Finds the other end and watches its state. Events carry [`token`](Self::token).
    pub fn open(store: S, class: &str, id: &str) -> Result<Self> {
        let path = format!("device/{class}/{id}");
        let backend: String = store.read_parsed(None, &format!("{path}/backend"))?;
        let peer = DomId(store.read_parsed(None, &format!("{path}/backend-id"))?);
        let token = format!("{class}/{id}");
        store.watch(&format!("{backend}/state"), &token)?;
        Ok(Device {
            store,
            path,
            backend,
            peer,
            token,
        })
    }

    /// The token of the watch on the back end's state.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The back end's domain.
    pub fn peer(&self) -> DomId {
        self.peer
    }

    /// The back end's state.
    pub fn backend_state(&self) -> Result<XenbusState> {
        let value = self
            .store
            .read_optional(None, &format!("{}/state", self.backend))?;
        Ok(value.map_or(XenbusState::Unknown, |value| XenbusState::parse(&value)))
    }

    /// A node of ours that the toolstack wrote, if it is there.
    pub fn own(&self, name: &str) -> Result<Option<String>> {
        let value = self
            .store
            .read_optional(None, &format!("{}/{name}", self.path))?;
        Ok(value.and_then(|value| String::from_utf8(value).ok()))
    }

    /// What the back end has published under a name. Nonsense is the peer's error.
    pub fn published<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let path = format!("{}/{name}", self.backend);
        match self.store.read_parsed(None, &path) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.errno == Errno::ENOENT => Ok(None),
            Err(error) if error.errno == Errno::EINVAL => Err(Error::Peer {
                dom: self.peer,
                what: format!("{path} makes no sense"),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`published`](Self::published), but the node must be there.
    pub fn required<T: FromStr>(&self, name: &str) -> Result<T> {
        self.published(name)?.ok_or_else(|| Error::Peer {
            dom: self.peer,
            what: format!("{}/{name} is missing", self.backend),
        })
    }

    /// A feature node: there and 1.
    pub fn offers(&self, name: &str) -> Result<bool> {
        Ok(self.published::<u32>(name)? == Some(1))
    }

    /// Publishes nodes of ours and the new state, in one transaction.
    pub fn publish(&self, nodes: &[(&str, &dyn Display)], state: XenbusState) -> Result<()> {
        self.store.transaction(|store, tx| -> Result<()> {
            for (name, value) in nodes {
                store.write_display(Some(tx), &format!("{}/{name}", self.path), value)?;
            }
            store.write_display(Some(tx), &format!("{}/state", self.path), &state)?;
            Ok(())
        })
    }

    /// Takes nodes of ours back.
    pub fn withdraw(&self, nodes: &[&str]) -> Result<()> {
        for name in nodes {
            self.store
                .rm_if_present(None, &format!("{}/{name}", self.path))?;
        }
        Ok(())
    }

    /// Publishes our state.
    pub fn set_state(&self, state: XenbusState) -> Result<()> {
        let path = format!("{}/state", self.path);
        Ok(self
            .store
            .write(None, &path, state.to_string().as_bytes())?)
    }

    /// Leaves a message where administrators look for it: `error/DEVICE/error`.
    pub fn report(&self, message: &str) -> Result<()> {
        let path = format!("error/{}/error", self.path);
        Ok(self.store.write(None, &path, message.as_bytes())?)
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }
}

impl<S: Store> Drop for Device<S> {
    fn drop(&mut self) {
        // Else the device could not be opened again: there would be such a watch already. Best effort: the
        // store may be what is broken.
        let path = format!("{}/state", self.backend);
        let _ = self.store.unwatch(&path, &self.token);
    }
}

impl<S: Store> core::fmt::Display for Device<S> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.path)
    }
}
