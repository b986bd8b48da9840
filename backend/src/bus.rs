//! The backend's side of the xenbus handshake, for all devices of one class.

use std::collections::{BTreeMap, BTreeSet};

use xen_hal::{Error, Result, Store, StoreError, StoreExt, XenbusState};
use xen_sys::{DomId, Errno};

use crate::{DeviceId, Node, Site};

/// What a class of devices does at each step of the handshake.
pub trait Driver {
    /// The class as it stands in the store, such as `"vbd"`.
    const CLASS: &'static str;
    /// Other directories in which toolstacks declare devices of this class. A front end has one back end, so
    /// a device is in one of them.
    const ALSO: &'static [&'static str] = &[];
    /// What exists from state 2 on: an open disk, a TAP device.
    type Device;
    /// What exists in state 4. Dropping it stops its thread, unmaps its rings and closes its port.
    type Connection;

    /// Whether [`open`](Self::open) can be called and will not take long: what takes long begins here, in the
    /// background. Asked again whenever [`Bus::check`] is called.
    fn prepare(&mut self, site: &Site<'_>) -> Result<bool> {
        let _ = site;
        Ok(true)
    }

    /// Forgets what [`prepare`](Self::prepare) has begun: the device is not wanted any more.
    fn cancel(&mut self, id: DeviceId) {
        let _ = id;
    }

    /// Something that the toolstack wrote has changed while the device is connected.
    fn changed(&mut self, site: &Site<'_>, device: &mut Self::Device) -> Result<Change> {
        let _ = (site, device);
        Ok(Change::default())
    }

    /// Devices of which [`changed`](Self::changed) is to be asked again. Called with [`Bus::check`].
    fn noticed(&mut self) -> Vec<DeviceId> {
        Vec::new()
    }

    /// Reads the toolstack's nodes and gets the device ready; also says what to publish with state 2.
    fn open(&mut self, site: &Site<'_>) -> Result<(Self::Device, Vec<Node>)>;

    /// Reads the front end's nodes, maps its rings and starts serving; also says what to publish with
    /// state 4. `None` if something else has to happen first; called again when a node changes.
    fn connect(
        &mut self,
        site: &Site<'_>,
        device: &mut Self::Device,
    ) -> Result<Option<(Self::Connection, Vec<Node>)>>;

    /// Why a connection stopped serving, if it did.
    fn failure(&self, connection: &Self::Connection) -> Option<Error>;

    /// Asks a connection to end; true once it has, and may be dropped without waiting. Asked again
    /// whenever [`Bus::check`] is called: a device that hangs must not hold up the others.
    fn stop(&self, connection: &Self::Connection) -> bool {
        let _ = connection;
        true
    }

    /// The same for a connection that another will go on with ([`Change::reconnect`]): the front end is not
    /// to notice.
    fn pause(&self, connection: &Self::Connection) -> bool {
        self.stop(connection)
    }

    /// Whoever serves the connections has ended, with all of them: the daemon is to start over. Nothing is
    /// reported as a failure from then on.
    fn over(&self) -> bool {
        false
    }

    /// What to publish with state 6 when the toolstack takes the device away.
    fn farewell(&self) -> Vec<Node> {
        Vec::new()
    }

    /// Gets rid of the device: the guest has let go of it. Not called when the daemon merely exits.
    fn close(&mut self, id: DeviceId, device: Self::Device);
}

/// What follows from something that has changed under a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// What to publish now.
    pub nodes: Vec<Node>,
    /// The state is written again, so that the front end looks.
    pub tell_front: bool,
    /// The connection is to end, and [`Driver::connect`] to make another, as if this process had been followed
    /// by the next.
    pub reconnect: bool,
}

/// All devices of one class.
pub struct Bus<D: Driver> {
    driver: D,
    /// The directories of its devices.
    classes: Vec<&'static str>,
    /// The directory of all back ends, and that of messages about them.
    root: String,
    error_root: String,
    /// Which class's directory a device is in; all others are in the first one.
    elsewhere: BTreeMap<Key, &'static str>,
    devices: BTreeMap<Key, Entry<D>>,
    dirty: BTreeSet<Key>,
    rescan: bool,
    log: Box<dyn Fn(&str)>,
}

/// A device's name in an order that makes runs repeat.
type Key = (u16, u32);

struct Entry<D: Driver> {
    front: String,
    watched: bool,
    device: Option<D::Device>,
    connection: Option<D::Connection>,
    /// [`Driver::prepare`] is not done yet.
    preparing: bool,
    /// The connection was asked to end. Nothing else is done before it has.
    stopping: Option<End>,
    /// [`Driver::farewell`] was published since the device was last opened.
    farewell: bool,
    /// It failed, and the front end has not let go since: not tried again before it does.
    failed: bool,
    /// There may be a message in the error directory.
    reported: bool,
}

/// Why a connection ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The front end lets go, or something failed.
    Stop,
    /// Another goes on with it.
    Pause,
}

/// Most store events taken before the devices they name are looked at (XSA-349: a flood costs one look).
const EVENTS_PER_DRAIN: usize = 1024;

/// The nodes of a device that are looked at when they change, and the device itself.
const WATCHED: [&str; 7] = [
    "",
    "state",
    "online",
    "frontend",
    "params",
    "next-params",
    "hotplug-status",
];

/// Begins the tokens of the watches on classes; the class follows.
const BACK_TOKEN: &str = "back/";

impl<D: Driver> Bus<D> {
    /// A bus whose devices live below `own`'s `backend/CLASS`. `log` takes one line at a time.
    pub fn new(driver: D, own: DomId, log: impl Fn(&str) + 'static) -> Self {
        Bus {
            driver,
            classes: std::iter::once(D::CLASS)
                .chain(D::ALSO.iter().copied())
                .collect(),
            root: format!("/local/domain/{own}/backend"),
            error_root: format!("/local/domain/{own}/error/backend"),
            elsewhere: BTreeMap::new(),
            devices: BTreeMap::new(),
            dirty: BTreeSet::new(),
            rescan: false,
            log: Box::new(log),
        }
    }

    /// The same with the devices of one of the driver's directories only: others are somebody else's.
    pub fn only(mut self, class: &str) -> Self {
        self.classes.retain(|known| *known == class);
        self
    }

    /// Sets the watch that tells of devices. Devices that exist already are found by the first step.
    pub fn start(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        self.rescan = true;
        for class in &self.classes {
            let token = format!("{BACK_TOKEN}{class}");
            store.watch(&format!("{}/{class}", self.root), &token)?;
        }
        Ok(())
    }

    /// Takes store events and moves the devices they name; true if there may be more to do at once.
    /// An error means that the store itself is lost: a device's own errors end that device only.
    pub fn step(&mut self, store: &dyn Store) -> Result<bool, StoreError> {
        let mut more = self.drain(store)?;
        if std::mem::take(&mut self.rescan) {
            self.scan(store)?;
        }
        for key in std::mem::take(&mut self.dirty) {
            self.tend(store, key)?;
            // Events come along with the replies: guests that write without end would otherwise fill the
            // client's queue while many devices are looked at, and that ends the connection.
            self.drain(store)?;
            more = true;
        }
        Ok(more)
    }

    /// Takes store events, up to a limit, and notes what they name; false if there was none.
    fn drain(&mut self, store: &dyn Store) -> Result<bool, StoreError> {
        let mut events = 0;
        while events < EVENTS_PER_DRAIN
            && let Some(event) = store.next_event()?
        {
            self.sort(&event.path, &event.token);
            events += 1;
        }
        Ok(events > 0)
    }

    /// Ends devices whose connection reports a failure, and goes on with those whose connection was
    /// asked to end.
    pub fn check(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        let noticed = self.driver.noticed();
        self.dirty.extend(noticed.into_iter().map(key));
        let waiting = |entry: &Entry<D>| entry.stopping.is_some() || entry.preparing;
        let waiting = self.devices.iter().filter(|(_, entry)| waiting(entry));
        let waiting: Vec<Key> = waiting.map(|(&key, _)| key).collect();
        for key in waiting {
            self.tend(store, key)?;
        }
        let failures: Vec<(Key, Error)> = self
            .devices
            .iter()
            .filter_map(|(&key, entry)| {
                let connection = entry
                    .connection
                    .as_ref()
                    .filter(|_| entry.stopping.is_none())?;
                let error = self.driver.failure(connection)?;
                Some((key, error))
            })
            .collect();
        for (key, error) in failures {
            self.fail(store, key, &error)?;
        }
        Ok(())
    }

    /// The connections, for whoever steps them by hand.
    pub fn connections_mut(&mut self) -> impl Iterator<Item = (DeviceId, &mut D::Connection)> {
        self.devices
            .iter_mut()
            .filter_map(|(&key, entry)| Some((id(key), entry.connection.as_mut()?)))
    }

    /// How many devices are known, and how many of them are connected.
    pub fn counts(&self) -> (usize, usize) {
        let connected = self
            .devices
            .values()
            .filter(|entry| entry.connection.is_some());
        (self.devices.len(), connected.count())
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    fn sort(&mut self, path: &str, token: &str) {
        let named = token.strip_prefix(BACK_TOKEN);
        let mut classes = self.classes.iter().copied();
        let Some(class) = named.and_then(|named| classes.find(|class| *class == named)) else {
            // The token of a front end's watch is its device's name.
            if let Some((id, "")) = DeviceId::parse(token) {
                self.dirty.insert(key(id));
            }
            return;
        };
        let root = format!("{}/{class}", self.root);
        let below = path.strip_prefix(root.as_str()).unwrap_or("");
        match DeviceId::parse(below.trim_start_matches('/')) {
            Some((id, node)) if WATCHED.contains(&node) => self.seen(id, class),
            // What we publish ourselves, and what only scripts read.
            Some(_) => {}
            None => self.rescan = true,
        }
    }

    fn scan(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        self.dirty.extend(self.devices.keys());
        for class in self.classes.clone() {
            let root = format!("{}/{class}", self.root);
            for dom in list(store, &root)? {
                for index in list(store, &format!("{root}/{dom}"))? {
                    if let Some((id, "")) = DeviceId::parse(&format!("{dom}/{index}")) {
                        self.seen(id, class);
                    }
                }
            }
        }
        Ok(())
    }

    /// Something happened to a device in the directory of a class. It stays where it was found first.
    fn seen(&mut self, id: DeviceId, class: &'static str) {
        let key = key(id);
        if !self.devices.contains_key(&key) {
            match class == D::CLASS {
                true => self.elsewhere.remove(&key),
                false => self.elsewhere.insert(key, class),
            };
        }
        self.dirty.insert(key);
    }

    /// Looks at one device and does what its two states ask for.
    fn tend(&mut self, store: &dyn Store, key: Key) -> Result<(), StoreError> {
        match self.advance(store, key) {
            Ok(()) => Ok(()),
            Err(Error::Store(error)) if is_lost(&error) => Err(error),
            Err(error) => self.fail(store, key, &error),
        }
    }

    fn advance(&mut self, store: &dyn Store, key: Key) -> Result<()> {
        use XenbusState::*;
        let back = self.back(key);
        let Some(own) = store.read_optional(None, &format!("{back}/state"))? else {
            return self.forget(store, key);
        };
        let own = XenbusState::parse(&own);
        let front = store.read_optional(None, &format!("{back}/frontend"))?;
        let Some(front) = front
            .and_then(|path| String::from_utf8(path).ok())
            .filter(|path| path.starts_with('/'))
        else {
            return Ok(());
        };
        let online = store
            .read_optional(None, &format!("{back}/online"))?
            .is_some_and(|value| value != b"0");
        self.follow(store, key, &front)?;
        let stopping = self.devices.get(&key).and_then(|entry| entry.stopping);
        if let Some(how) = stopping
            && !self.end(key, how)?
        {
            return Ok(());
        }
        // A directory in its first state was made anew: what is open was opened for the one before it.
        let stale = |entry: &Entry<D>| entry.device.is_some() || entry.failed;
        if own == Initialising && self.devices.get(&key).is_some_and(stale) && !self.release(key) {
            return Ok(());
        }
        let peer = store
            .read_optional(None, &format!("{front}/state"))?
            .map_or(Unknown, |value| XenbusState::parse(&value));

        let site = Site {
            store,
            id: id(key),
            back: &back,
            front: &front,
            state: own,
        };
        let failed = self.devices.get(&key).is_some_and(|entry| entry.failed);
        let leaving = matches!(own, Closing | Closed);
        match peer {
            // No front end yet, or none any more.
            Unknown if own == Initialising => Ok(()),
            Unknown | Closed => self.leave(store, key, own, online),
            Closing => {
                if !self.disconnect(key) {
                    return Ok(());
                }
                let next = if own == Closed { Closed } else { Closing };
                self.switch(store, key, own, next, &[])
            }
            // The toolstack takes the device away and no front end uses it.
            Initialising | InitWait if leaving && !online => self.leave(store, key, own, online),
            _ if failed => Ok(()),
            Initialising => {
                // A front end that starts over: nothing of the old connection is of use.
                if !self.disconnect(key) {
                    return Ok(());
                }
                match self.open(&site)? {
                    Some(nodes) => self.switch(store, key, own, InitWait, &nodes),
                    None => Ok(()),
                }
            }
            Initialised | Connected if !leaving || (own == Closed && online) => {
                self.connect(&site, key)
            }
            _ => Ok(()),
        }
    }

    /// Lets go of a device that no front end uses.
    fn leave(&mut self, store: &dyn Store, key: Key, own: XenbusState, online: bool) -> Result<()> {
        if !self.release(key) {
            return Ok(());
        }
        let mut nodes = Vec::new();
        if let Some(entry) = self.devices.get_mut(&key).filter(|entry| !entry.farewell)
            && !online
        {
            entry.farewell = true;
            nodes = self.driver.farewell();
        }
        self.switch(store, key, own, XenbusState::Closed, &nodes)
    }

    /// Opens the device if that is still to be done; what is to be published. `None` if it is not ready for
    /// that: [`check`](Self::check) goes on with it.
    fn open(&mut self, site: &Site<'_>) -> Result<Option<Vec<Node>>> {
        let entry = self
            .devices
            .get_mut(&key(site.id))
            .expect("followed before it is opened");
        if entry.device.is_some() {
            return Ok(Some(Vec::new()));
        }
        entry.preparing = false;
        entry.preparing = !self.driver.prepare(site)?;
        if entry.preparing {
            return Ok(None);
        }
        let (device, nodes) = self.driver.open(site)?;
        entry.device = Some(device);
        entry.farewell = false;
        self.say(site.id, "open");
        Ok(Some(nodes))
    }

    fn connect(&mut self, site: &Site<'_>, key: Key) -> Result<()> {
        let Some(mut nodes) = self.open(site)? else {
            return Ok(());
        };
        let entry = self
            .devices
            .get_mut(&key)
            .expect("followed before it is opened");
        if entry.connection.is_none() {
            let device = entry.device.as_mut().expect("opened above");
            match self.driver.connect(site, device)? {
                None => {
                    // Whoever has to act first may wait for our features.
                    return if site.state == XenbusState::Initialising {
                        self.switch(site.store, key, site.state, XenbusState::InitWait, &nodes)
                    } else {
                        Ok(())
                    };
                }
                Some((connection, more)) => {
                    entry.connection = Some(connection);
                    nodes.extend(more);
                }
            }
            let how = if site.state == XenbusState::Connected {
                "connected again to a running guest"
            } else {
                "connected"
            };
            self.say(site.id, how);
        } else if site.state == XenbusState::Connected {
            let device = entry.device.as_mut().expect("opened above");
            let change = self.driver.changed(site, device)?;
            nodes.extend(change.nodes);
            if change.tell_front {
                nodes.push(("state", site.state.to_string()));
            }
            if change.reconnect {
                self.switch(site.store, key, site.state, site.state, &nodes)?;
                // Else it is gone on with when the connection has ended.
                return match self.end(key, End::Pause)? {
                    true => self.connect(site, key),
                    false => Ok(()),
                };
            }
        }
        self.switch(site.store, key, site.state, XenbusState::Connected, &nodes)
    }

    /// Publishes nodes and the new state in one transaction, unless the directory has gone meanwhile
    /// (writing would bring it back to life).
    fn switch(
        &self,
        store: &dyn Store,
        key: Key,
        old: XenbusState,
        new: XenbusState,
        nodes: &[Node],
    ) -> Result<()> {
        if old == new && nodes.is_empty() {
            return Ok(());
        }
        let back = self.back(key);
        let state = format!("{back}/state");
        store.transaction(|store, tx| {
            if store.read_optional(Some(tx), &state)?.is_none() {
                return Ok(());
            }
            for (name, value) in nodes {
                store.write(Some(tx), &format!("{back}/{name}"), value.as_bytes())?;
            }
            if old != new {
                store.write_display(Some(tx), &state, &new)?;
            }
            Ok::<(), Error>(())
        })
    }

    /// Ends a device that failed: says so where xenbus drivers do, and asks the front end to let go.
    fn fail(&mut self, store: &dyn Store, key: Key, error: &Error) -> Result<(), StoreError> {
        self.say(id(key), &format!("failed: {error}"));
        self.disconnect(key);
        if let Some(entry) = self.devices.get_mut(&key) {
            entry.failed = true;
            entry.reported = true;
        }
        let result = self.report(store, key, error);
        match result {
            Err(Error::Store(error)) if is_lost(&error) => Err(error),
            Err(error) => {
                self.say(id(key), &format!("cannot report it: {error}"));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn report(&self, store: &dyn Store, key: Key, error: &Error) -> Result<()> {
        let state = format!("{}/state", self.back(key));
        let Some(own) = store.read_optional(None, &state)? else {
            return Ok(());
        };
        let text = format!("{} {error}", errno(error).0);
        store.write(
            None,
            &format!("{}/error", self.message(key)),
            text.as_bytes(),
        )?;
        let own = XenbusState::parse(&own);
        if own == XenbusState::Closed {
            return Ok(());
        }
        self.switch(store, key, own, XenbusState::Closing, &[])
    }

    /// Watches the front end's state.
    fn follow(&mut self, store: &dyn Store, key: Key, front: &str) -> Result<(), StoreError> {
        let entry = self.devices.entry(key).or_insert_with(|| Entry {
            front: String::new(),
            watched: false,
            device: None,
            connection: None,
            preparing: false,
            stopping: None,
            farewell: false,
            failed: false,
            reported: false,
        });
        if entry.watched && entry.front == front {
            return Ok(());
        }
        let token = id(key).to_string();
        if std::mem::take(&mut entry.watched) {
            match store.unwatch(&format!("{}/state", entry.front), &token) {
                // The store dropped the watch together with the node's domain.
                Err(error) if error.errno == Errno::ENOENT => {}
                other => other?,
            }
        }
        entry.front = front.to_string();
        store.watch(&format!("{front}/state"), &token)?;
        entry.watched = true;
        Ok(())
    }

    /// Ends the connection, if there is one; false if that takes longer, and [`check`](Self::check) will
    /// go on with it.
    fn disconnect(&mut self, key: Key) -> bool {
        self.end(key, End::Stop).unwrap_or(true)
    }

    /// The same for either reason. An error says that a connection failed while it was to be paused: there is
    /// nothing to go on with.
    fn end(&mut self, key: Key, how: End) -> Result<bool> {
        let Some(entry) = self.devices.get_mut(&key) else {
            return Ok(true);
        };
        let Some(connection) = &entry.connection else {
            entry.stopping = None;
            return Ok(true);
        };
        entry.stopping = Some(how);
        let (ended, what) = match how {
            End::Stop => (self.driver.stop(connection), "disconnected"),
            End::Pause => (self.driver.pause(connection), "paused"),
        };
        if !ended {
            return Ok(false);
        }
        let failure = match how {
            End::Stop => None,
            End::Pause => self.driver.failure(connection),
        };
        entry.connection = None;
        entry.stopping = None;
        self.say(id(key), what);
        failure.map_or(Ok(true), Err)
    }

    /// The front end has let go: nothing of the device is kept, and an old failure is forgiven. False if
    /// its connection has not ended yet.
    fn release(&mut self, key: Key) -> bool {
        if !self.disconnect(key) {
            return false;
        }
        if let Some(entry) = self.devices.get_mut(&key) {
            entry.failed = false;
            if std::mem::take(&mut entry.preparing) {
                self.driver.cancel(id(key));
            }
            if let Some(device) = entry.device.take() {
                self.driver.close(id(key), device);
                self.say(id(key), "closed");
            }
        }
        true
    }

    /// The backend's directory has gone.
    fn forget(&mut self, store: &dyn Store, key: Key) -> Result<()> {
        if !self.release(key) {
            return Ok(());
        }
        let Some(entry) = self.devices.remove(&key) else {
            self.elsewhere.remove(&key);
            return Ok(());
        };
        if entry.watched {
            let path = format!("{}/state", entry.front);
            match store.unwatch(&path, &id(key).to_string()) {
                // The store dropped the watch together with the node's domain.
                Err(error) if error.errno == Errno::ENOENT => {}
                other => other?,
            }
        }
        if entry.reported {
            self.take_report_back(store, key)?;
        }
        self.say(id(key), "forgotten");
        self.elsewhere.remove(&key);
        Ok(())
    }

    /// Removes a device's message, and the directories above it if they are empty then.
    fn take_report_back(&self, store: &dyn Store, key: Key) -> Result<()> {
        let mut path = self.message(key);
        let top = self.error_root.find("/error/").map_or(0, |at| at + 6);
        while path.len() >= top {
            store.rm_if_present(None, &path)?;
            let Some((above, _)) = path.rsplit_once('/') else {
                break;
            };
            path = above.to_string();
            if !list(store, &path)?.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn back(&self, key: Key) -> String {
        format!("{}/{}/{}", self.root, self.class(key), id(key))
    }

    /// The directory of a message about it.
    fn message(&self, key: Key) -> String {
        format!("{}/{}/{}", self.error_root, self.class(key), id(key))
    }

    fn class(&self, key: Key) -> &'static str {
        self.elsewhere.get(&key).copied().unwrap_or(D::CLASS)
    }

    fn say(&self, id: DeviceId, what: &str) {
        (self.log)(&format!("{}/{id}: {what}", self.class(key(id))));
    }
}

fn key(id: DeviceId) -> Key {
    (id.dom.0, id.index)
}

fn id((dom, index): Key) -> DeviceId {
    DeviceId {
        dom: DomId(dom),
        index,
    }
}

fn list(store: &dyn Store, path: &str) -> Result<Vec<String>, StoreError> {
    match store.list(None, path) {
        Err(error) if error.errno == Errno::ENOENT => Ok(Vec::new()),
        other => other,
    }
}

/// Whether an error speaks of the connection to the store rather than of one request: those that a socket
/// or ring gives. Whatever else a store answers is about what it was asked.
fn is_lost(error: &StoreError) -> bool {
    const OF_THE_CONNECTION: [Errno; 8] = [
        Errno::EIO,
        // The client gives a connection up when an answer is overdue.
        Errno::ETIMEDOUT,
        Errno::ENOTCONN,
        Errno::EPIPE,
        // ECONNRESET, which Xen's tables do not have.
        Errno(104),
        Errno::ECONNREFUSED,
        Errno::EBADF,
        Errno::ENODEV,
    ];
    OF_THE_CONNECTION.contains(&error.errno)
}

/// The number that goes in front of a message in an `error` node.
fn errno(error: &Error) -> Errno {
    match error {
        Error::Event { errno, .. }
        | Error::Hypercall { errno, .. }
        | Error::System { errno, .. } => *errno,
        Error::Store(error) => error.errno,
        _ => Errno::EINVAL,
    }
}
