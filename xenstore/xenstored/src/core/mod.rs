//! The store without I/O: a connection and a request go in, replies, events and wishes to the world come out.
//!
//! Invariant: does no I/O, takes no lock, looks at no clock; the same calls give the same results.
//! Invariant: no request of a guest panics, and what it makes us hold is bounded by [`Limits`].
//! Invariant: a request takes effect as a whole or not at all.
#![forbid(unsafe_code)]

pub mod account;
pub mod acl;
mod conns;
pub mod control;
mod domains;
mod hash;
pub mod held;
pub mod limits;
pub mod old_trees;
pub mod ops;
pub mod path;
mod requests;
pub mod settings;
pub mod state;
pub mod stats;
pub mod transaction;
pub mod tree;
pub mod turns;
pub mod watch;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use xen_sys::{DomId, Errno, Port};
use xs_wire::{Access, Header, Op};

use acl::{Acl, Actor, DomLife};
pub use conns::ConnMap;
use control::TraceCommand;
use domains::{Domain, SpecialAcls};
use hash::Seeded;
use limits::Limits;
use old_trees::OldTrees;
use ops::{Change, Ops, Owned};
use path::{INTRODUCE_DOMAIN, Special};
use stats::Counters;
use transaction::Transaction;
use tree::Tree;
use turns::{PENALTY, Turns};
use watch::{Watch, Watches};

/// One client's connection; numbers are not used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// What a domain is up to, as far as the store cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainState {
    /// It lives.
    Running,
    /// It has shut down and waits for the toolstack.
    Shutdown,
    /// It is being torn down or is gone.
    Dying,
}

/// Which of the domains of one number it is: two with different numbers here are not the same domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity(pub u64);

impl Identity {
    /// The world cannot tell.
    pub const UNKNOWN: Identity = Identity(0);

    /// Whether it is sure that these are two domains.
    pub fn differs(self, other: Identity) -> bool {
        self != other && self != Self::UNKNOWN && other != Self::UNKNOWN
    }
}

/// What the world says of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainReport {
    /// Its number.
    pub dom: DomId,
    /// Which domain of that number.
    pub identity: Identity,
    /// How it is.
    pub state: DomainState,
}

/// A watch has fired for a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// The path that changed.
    pub path: Rc<str>,
    /// Bytes to leave out at its front.
    pub skip: usize,
    /// The watch's token.
    pub token: Rc<[u8]>,
}

impl Event {
    /// The path as the client is told.
    pub fn shown_path(&self) -> &str {
        self.path.get(self.skip..).unwrap_or_default()
    }
}

/// What is kept for a connection outside of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffered {
    /// Bytes received and not taken up, replies and events not sent, as [`account`] counts them.
    pub bytes: usize,
    /// Replies that are not taken.
    pub replies: usize,
    /// Events that were queued since it began.
    pub events: u64,
}

/// The world, as the core asks for it.
pub trait Host {
    /// Which domain has this number now, connected or not; `None` if none has.
    fn domain_identity(&mut self, dom: DomId) -> Option<Identity>;
    /// Every domain that exists; `None` if that cannot be found out now.
    fn domain_states(&mut self) -> Option<Vec<DomainReport>>;
    /// Maps a domain's ring, which is to have these features, and binds its port; the connection that requests will
    /// come from.
    fn connect(
        &mut self,
        dom: DomId,
        frame: u64,
        port: Port,
        features: u32,
    ) -> Result<ConnId, Errno>;
    /// Binds a connected domain's port anew.
    fn rebind(&mut self, conn: ConnId, dom: DomId, port: Port) -> Result<(), Errno>;
    /// Gives up a domain's connection; no request may come from it any more.
    fn disconnect(&mut self, conn: ConnId);
    /// Queues the reply to a request.
    fn reply(&mut self, conn: ConnId, op: Op, request: &Header, body: &[u8]);
    /// Queues an event, unless more than `most` bytes would then wait for a guest: it is cut off then.
    fn event(&mut self, conn: ConnId, event: Event, most: usize);
    /// What waits at a guest's connection, in bytes as [`account`] counts.
    fn waiting_bytes(&mut self, conn: ConnId) -> usize;
    /// What waits at a connection, for showing it only.
    fn buffered(&self, conn: ConnId) -> Buffered;
    /// A step of a live update (`CONTROL live-update`, with these words behind it); its text, or `None` if the
    /// request is answered later.
    fn live_update(
        &mut self,
        _conn: ConnId,
        _request: &Header,
        _words: &[&[u8]],
    ) -> Result<Option<String>, Errno> {
        Err(Errno::EINVAL)
    }
    /// Shows or changes what goes to the access log; the text for who asks.
    fn trace(&mut self, _command: TraceCommand<'_>) -> Result<String, Errno> {
        Err(Errno::ENOSYS)
    }
    /// Appends a report to a file.
    fn write_report(&mut self, _path: &str, _text: &str) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
    /// Shows a line in the daemon's log.
    fn log(&mut self, line: &str);
}

/// The store.
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    tree: Tree,
    owned: Owned,
    conns: ConnMap<Client>,
    domains: HashMap<DomId, Domain>,
    watches: Watches,
    turns: Turns,
    introduce_acl: Acl,
    release_acl: Acl,
    /// The permissions of domains whose death is not told yet.
    departed: HashMap<DomId, SpecialAcls>,
    old_trees: OldTrees,
    last_life: u32,
    last_transaction: u32,
    /// The most that any guest has held.
    most: held::Usage,
    /// What dom0's clients have asked for.
    counters: Counters,
}

/// What is kept of a connection.
#[derive(Debug)]
struct Client {
    actor: Actor,
    /// The paths of its watches, with how many there are on each.
    watched: HashMap<Rc<str>, u32, Seeded>,
    watch_count: u32,
    /// What its watches are counted as.
    watch_bytes: usize,
    transactions: HashMap<u32, Transaction, Seeded>,
    /// The node at which its next transaction is to wait for its turn.
    contends: Option<Rc<str>>,
    /// Until when it gets no turn.
    no_turn_until: Duration,
}

impl Core {
    /// A store with nothing but the nodes that every store has.
    pub fn new(limits: Limits) -> Core {
        let acl = Acl::dom0(Access::None);
        let mut tree = Tree::new(acl.clone());
        tree.insert("/", "tool", b"", acl.clone());
        tree.insert("/tool", "xenstored", b"", acl.clone());
        Core {
            limits,
            tree,
            owned: Owned::default(),
            conns: ConnMap::default(),
            domains: HashMap::new(),
            watches: Watches::default(),
            turns: Turns::default(),
            introduce_acl: acl.clone(),
            release_acl: acl,
            departed: HashMap::new(),
            old_trees: OldTrees::default(),
            last_life: 0,
            last_transaction: 0,
            most: held::Usage::default(),
            counters: Counters::default(),
        }
    }

    /// A new connection of dom0's: a socket client, or its kernel's ring.
    pub fn attach_dom0(&mut self, conn: ConnId) {
        self.conns.insert(conn, Client::new(Actor::DOM0));
    }

    /// A connection has ended: its watches and transactions go with it.
    pub fn detach(&mut self, conn: ConnId) {
        self.reset(conn);
        self.turns.reset(conn, true);
        self.conns.remove(&conn);
        for domain in self.domains.values_mut() {
            if domain.conn == Some(conn) {
                domain.conn = None;
            }
        }
    }

    /// A connection begins afresh: its watches and transactions go, and the requests that wait for a turn.
    pub fn restart(&mut self, conn: ConnId) {
        self.reset(conn);
        self.turns.reset(conn, true);
    }

    /// Whether transactions wait for the end of another: the time is to be told to
    /// [`pass_time`](Self::pass_time) again and again then.
    pub fn is_waited_for(&self) -> bool {
        self.turns.is_waited_for()
    }

    /// Tells the time since some start: who has kept others waiting for too long loses its turn. Its transaction
    /// stays open.
    pub fn pass_time(&mut self, host: &mut dyn Host, now: Duration) {
        for conn in self.turns.pass_time(now) {
            if let Some(client) = self.conns.get_mut(&conn)
                && !client.actor.is_privileged()
            {
                client.no_turn_until = now + PENALTY;
            }
        }
        self.give_turns(host);
    }

    /// How much a connection may let wait before it is not listened to; guests beyond it are cut off.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How many transactions are open.
    pub fn open_transactions(&self) -> usize {
        self.conns
            .values()
            .map(|client| client.transactions.len())
            .sum()
    }

    /// How many transactions a connection has open.
    pub fn transactions_of(&self, conn: ConnId) -> usize {
        self.conns
            .get(&conn)
            .map_or(0, |client| client.transactions.len())
    }

    /// The tree, for looking at.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    fn client(&mut self, conn: ConnId) -> Result<&mut Client, Errno> {
        self.conns.get_mut(&conn).ok_or(Errno::ENOTCONN)
    }

    fn actor(&self, conn: ConnId) -> Result<Actor, Errno> {
        self.conns
            .get(&conn)
            .map(|client| client.actor)
            .ok_or(Errno::ENOTCONN)
    }

    /// The live tree to work on.
    fn ops<'a>(&'a mut self, actor: Actor, beside: usize, changes: &'a mut Vec<Change>) -> Ops<'a> {
        Ops {
            tree: &mut self.tree,
            actor,
            limits: settings::limits_of(&self.domains, &self.limits, &actor),
            live: None,
            beside,
            owned: &mut self.owned,
            changes,
            reads: None,
        }
    }

    /// Drops a connection's watches and transactions.
    fn reset(&mut self, conn: ConnId) {
        if let Some(client) = self.conns.get_mut(&conn) {
            for path in client.watched.keys() {
                self.watches.remove_all(path, conn);
            }
            client.watched.clear();
            client.watch_count = 0;
            client.watch_bytes = 0;
            client.transactions.clear();
            client.contends = None;
        }
        self.turns.reset(conn, false);
    }

    /// Tells the watches what has changed: each whose owner may read the node or its parent, before or after.
    fn fire(&self, host: &mut dyn Host, changes: &[Change]) {
        for change in changes {
            let watches = self.watches.matching(&change.path, change.exact);
            self.tell(host, change, watches);
        }
    }

    /// Tells these watches of a change, those whose owners may know of it.
    fn tell<'a>(
        &self,
        host: &mut dyn Host,
        change: &Change,
        watches: impl Iterator<Item = &'a Watch>,
    ) {
        let mut told: Vec<(ConnId, Event)> = Vec::new();
        let most = |conn: ConnId| match self.conns.get(&conn) {
            Some(client) => self.most_waiting(client),
            None => 0,
        };
        for watch in watches {
            let Some(client) = self.conns.get(&watch.conn) else {
                continue;
            };
            let readable = |acl: &Acl| acl.allows(&client.actor, acl::Right::Read);
            if change.readable_by.iter().any(readable) {
                let event = Event {
                    path: change.path.clone(),
                    skip: watch.prefix,
                    token: watch.token.clone(),
                };
                // Two watches of one client, on this path and one above, may have the same token.
                let told_event = (watch.conn, event);
                if !told.contains(&told_event) {
                    told.push(told_event);
                }
            }
        }
        for (conn, event) in told {
            host.event(conn, event, most(conn));
        }
    }

    /// Tells of domains: a watch on the special name once, one with a depth or on `NAME/DOMAIN` of each domain.
    fn fire_special(&self, host: &mut dyn Host, name: &str, doms: &[DomId]) {
        let change = |path: String, acl: &Acl| Change {
            path: path.into(),
            exact: false,
            readable_by: vec![acl.clone()],
        };
        let general = self.special_acl(name, None);
        let by_domain = |watch: &&Watch| watch.depth.is_some_and(|depth| depth > 0);
        let on_name = self.watches.on(name);
        let on_name = on_name.filter(|watch| !by_domain(watch));
        let on_root = self.watches.on("/");
        let on_root = on_root.filter(|watch| watch.depth != Some(0));
        let change_of_all = change(name.to_owned(), general);
        self.tell(host, &change_of_all, on_name.chain(on_root));
        for dom in doms {
            let change = change(format!("{name}/{dom}"), self.special_acl(name, Some(*dom)));
            let of_one = self.watches.on(&change.path);
            let of_each = self.watches.on(name).filter(by_domain);
            self.tell(host, &change, of_one.chain(of_each));
        }
    }

    /// Who is told of all domains, or of this one; a domain without permissions of its own has those of all.
    fn special_acl(&self, name: &str, dom: Option<DomId>) -> &Acl {
        let of_domain = dom.and_then(|dom| match self.domains.get(&dom) {
            Some(domain) => Some(&domain.special_acls),
            None => self.departed.get(&dom),
        });
        let (own, all) = match name {
            INTRODUCE_DOMAIN => (of_domain.map(|own| &own.introduce), &self.introduce_acl),
            _ => (of_domain.map(|own| &own.release), &self.release_acl),
        };
        own.and_then(Option::as_ref).unwrap_or(all)
    }

    /// Sets them. ENOENT if there is no such domain.
    fn set_special_acl(
        &mut self,
        host: &mut dyn Host,
        special: Special,
        acl: Acl,
    ) -> Result<(), Errno> {
        let Special { name, dom } = special;
        let Some(dom) = dom else {
            match name {
                INTRODUCE_DOMAIN => self.introduce_acl = acl,
                _ => self.release_acl = acl,
            }
            return Ok(());
        };
        self.life(host, dom).ok_or(Errno::ENOENT)?;
        let domain = self.domains.get_mut(&dom).ok_or(Errno::EINVAL)?;
        match name {
            INTRODUCE_DOMAIN => domain.special_acls.introduce = Some(acl),
            _ => domain.special_acls.release = Some(acl),
        }
        Ok(())
    }

    fn is_alive(&self, who: DomLife) -> bool {
        who == DomLife::DOM0
            || who == DomLife::ANY
            || self
                .domains
                .get(&who.dom)
                .is_some_and(|domain| domain.life == who.life)
    }
}

impl Client {
    fn new(actor: Actor) -> Client {
        Client {
            actor,
            watched: HashMap::default(),
            watch_count: 0,
            watch_bytes: 0,
            transactions: HashMap::default(),
            contends: None,
            no_turn_until: Duration::ZERO,
        }
    }
}
