//! All that a store is, in plain values: for a new daemon to go on where this one stopped, after a live update or a death.
//!
//! The tree is handed over as a copy, which costs nothing; older trees, which open transactions still see, are told as
//! what to change in the next newer one. So a state is made in the time that it takes to look at connections,
//! watches and what has changed since transactions began, whatever the number of nodes.
//!
//! Invariant: `Core::import(core.export())` answers every request as `core` does.

pub mod codec;
pub mod diff;

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use xen_sys::DomId;
use xs_wire::Header;

use super::acl::{Acl, Actor, DomLife};
pub use super::domains::SpecialAcls;

use super::domains::Domain;
use super::held::Usage;
use super::limits::{Limits, Quota};
use super::old_trees::OldTrees;
use super::ops::Owned;
use super::settings::Quotas;
use super::stats::Counters;
use super::transaction::{Transaction, Update};
use super::tree::Tree;
use super::turns::{Turns, Waiting};
use super::watch::{Watch, Watches};
use super::{Client, ConnId, ConnMap, Core, Identity, account};
use diff::Delta;

/// A store as values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// What holds for guests that have no value of their own.
    pub limits: Limits,
    /// All nodes.
    pub tree: Tree,
    /// The permissions of `@introduceDomain`.
    pub introduce_acl: Acl,
    /// Those of `@releaseDomain`.
    pub release_acl: Acl,
    /// The last number given to a domain's life.
    pub last_life: u32,
    /// The last number given to a transaction.
    pub last_transaction: u32,
    /// The time as last told to the store.
    pub now: Duration,
    /// The domains that are known, by number.
    pub domains: Vec<DomainState>,
    /// The connections, by number.
    pub connections: Vec<ConnectionState>,
    /// The trees that open transactions began with, the newest first.
    pub versions: Vec<Version>,
    /// Who takes turns, by node.
    pub turns: Vec<TurnState>,
}

/// A domain that is introduced or named in permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainState {
    /// Which it is.
    pub who: DomLife,
    /// What the world tells it by.
    pub identity: Identity,
    /// Its connection.
    pub conn: Option<ConnId>,
    /// Whether it is introduced.
    pub introduced: bool,
    /// Whether its shutdown was told about.
    pub shutdown: bool,
    /// The features of its ring.
    pub features: u32,
    /// Quotas of its own, by name.
    pub quotas: Vec<(String, u32)>,
    /// Who is told of it, if that was set for it alone.
    pub special_acls: SpecialAcls,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionState {
    /// Its number.
    pub id: ConnId,
    /// Whose it is.
    pub actor: Actor,
    /// Its watches, by path, in the order in which they are told.
    pub watches: Vec<WatchState>,
    /// The node at which its next transaction is to wait for its turn.
    pub contends: Option<Rc<str>>,
    /// Until when it gets no turn, in the time of [`State::now`].
    pub no_turn_until: Duration,
}

/// A watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchState {
    /// The absolute path, or the special name.
    pub path: Rc<str>,
    /// What comes back with each event.
    pub token: Rc<[u8]>,
    /// Bytes of the path that events leave out, because it was set on a relative one.
    pub prefix: usize,
    /// How many levels below count; all if `None`.
    pub depth: Option<u32>,
}

/// A tree that transactions began with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its generation.
    pub generation: u64,
    /// What was replaced until then ([`Tree::replaced`]).
    pub replaced: u64,
    /// What to change in the version before it in the list, or in the live tree for the first, to have it.
    pub undo: Vec<Delta>,
    /// The transactions that began with it.
    pub transactions: Vec<TransactionState>,
}

/// An open transaction. Its own copy of the tree is that of its start with its updates made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionState {
    /// Whose it is.
    pub conn: ConnId,
    /// Its number.
    pub id: u32,
    /// Who makes its changes: the connection's actor at its start.
    pub actor: Actor,
    /// Whether it has removed something.
    pub removed: bool,
    /// The node that is not as it was seen, so that it cannot be committed any more.
    pub void: Option<Rc<str>>,
    /// Whether it has gone on from a newer tree and not looked at it since.
    pub stale: bool,
    /// How often it has gone on from a newer tree.
    pub renewals: u32,
    /// The paths that it has seen, in order, and which parts of them (`READ_*`).
    pub seen: Vec<(Box<str>, u8)>,
    /// What it has changed, in that order.
    pub updates: Vec<Update>,
}

/// Who takes turns at a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnState {
    /// The node.
    pub node: Rc<str>,
    /// Whose turn it is, and with which transaction.
    pub holder: Option<(ConnId, u32)>,
    /// When the holder's time began to run.
    pub since: Option<Duration>,
    /// Who waits for it, with the TRANSACTION_START that is not answered yet, the next first.
    pub waiting: Vec<(ConnId, Header)>,
}

impl Core {
    /// The whole store as values.
    pub fn export(&self) -> State {
        let mut watches: ConnMap<Vec<WatchState>> = ConnMap::default();
        for (path, watch) in self.watches.iter() {
            let list = watches.or_default(watch.conn);
            list.push(WatchState {
                path: path.clone(),
                token: watch.token.clone(),
                prefix: watch.prefix,
                depth: watch.depth,
            });
        }
        let connection = |(id, client): (&ConnId, &Client)| {
            let mut watches = watches.remove(id).unwrap_or_default();
            // Those on one path stay in their order.
            watches.sort_by(|a, b| a.path.cmp(&b.path));
            ConnectionState {
                id: *id,
                actor: client.actor,
                watches,
                contends: client.contends.clone(),
                no_turn_until: client.no_turn_until,
            }
        };
        let mut connections: Vec<_> = self.conns.iter().map(connection).collect();
        connections.sort_by_key(|connection| connection.id);
        let mut domains: Vec<_> = self.domains.iter().map(domain_state).collect();
        domains.sort_by_key(|domain| domain.who.dom.0);
        State {
            limits: self.limits.clone(),
            tree: self.tree.clone(),
            introduce_acl: self.introduce_acl.clone(),
            release_acl: self.release_acl.clone(),
            last_life: self.last_life,
            last_transaction: self.last_transaction,
            now: self.turns.now(),
            domains,
            connections,
            versions: self.versions(),
            turns: self.turns.export(),
        }
    }

    /// The store that these values tell of. What belongs to connections or domains that are not among them is left out.
    pub fn import(state: State) -> Core {
        let mut watches = Watches::default();
        let mut conns = ConnMap::default();
        for connection in state.connections {
            conns.insert(connection.id, client(connection, &mut watches));
        }
        let mut older = state.tree.clone();
        for version in state.versions {
            diff::apply(&mut older, &version.undo);
            older.set_generation(version.generation);
            older.set_replaced(version.replaced);
            for transaction in version.transactions {
                if let Some(client) = conns.get_mut(&transaction.conn) {
                    let id = transaction.id;
                    let transaction = Transaction::import(transaction, &older);
                    client.transactions.insert(id, transaction);
                }
            }
        }
        let mut turns = Turns::starting_at(state.now);
        for turn in state.turns {
            if let Some((conn, tx)) = turn.holder
                && conns.contains_key(&conn)
            {
                turns.take(turn.node.clone(), conn, tx);
                turns.set_since(&turn.node, turn.since);
            }
            for (conn, header) in turn.waiting {
                if let Some(client) = conns.get(&conn) {
                    let privileged = client.actor.is_privileged();
                    let who = Waiting {
                        conn,
                        header,
                        privileged,
                    };
                    turns.line_up(turn.node.clone(), who);
                }
            }
            turns.pass_on(turn.node);
        }
        let domains = state.domains.into_iter();
        let domains = domains.map(|domain| (domain.who.dom, domain_of(domain, &state.limits)));
        Core {
            domains: domains.collect(),
            limits: state.limits,
            owned: Owned::of(&state.tree),
            tree: state.tree,
            conns,
            watches,
            turns,
            introduce_acl: state.introduce_acl,
            release_acl: state.release_acl,
            departed: HashMap::new(),
            old_trees: OldTrees::default(),
            last_life: state.last_life,
            last_transaction: state.last_transaction,
            most: Usage::default(),
            counters: Counters::default(),
        }
    }

    /// The time as last told.
    pub fn now(&self) -> Duration {
        self.turns.now()
    }

    /// The trees of the open transactions, and these.
    fn versions(&self) -> Vec<Version> {
        let mut trees: HashMap<u64, (&Tree, Vec<TransactionState>)> = HashMap::new();
        for (conn, client) in self.conns.iter() {
            for (id, transaction) in &client.transactions {
                let then = transaction.then();
                let (_, list) = trees.entry(then.generation()).or_insert((then, Vec::new()));
                list.push(transaction.export(*conn, *id));
            }
        }
        let mut trees: Vec<_> = trees.into_iter().collect();
        trees.sort_by_key(|(generation, _)| core::cmp::Reverse(*generation));
        let mut newer = &self.tree;
        let mut versions = Vec::new();
        for (generation, (tree, mut transactions)) in trees {
            transactions.sort_by_key(|transaction| (transaction.conn, transaction.id));
            versions.push(Version {
                generation,
                replaced: tree.replaced(),
                undo: diff::between(newer, tree),
                transactions,
            });
            newer = tree;
        }
        versions
    }
}

fn domain_state((dom, domain): (&DomId, &Domain)) -> DomainState {
    let quotas = domain.quotas.iter();
    DomainState {
        who: DomLife {
            dom: *dom,
            life: domain.life,
        },
        identity: domain.identity,
        conn: domain.conn,
        introduced: domain.introduced,
        shutdown: domain.shutdown,
        features: domain.features,
        quotas: quotas
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect(),
        special_acls: domain.special_acls.clone(),
    }
}

fn domain_of(state: DomainState, all: &Limits) -> Domain {
    let known = |name: &str| Quota::find(name).map(|quota| quota.name);
    let quotas = state.quotas.into_iter();
    let quotas: Quotas = quotas
        .filter_map(|(name, value)| Some((known(&name)?, value)))
        .collect();
    let mut domain = Domain {
        life: state.who.life,
        identity: state.identity,
        conn: state.conn,
        introduced: state.introduced,
        shutdown: state.shutdown,
        features: state.features,
        quotas,
        limits: None,
        special_acls: state.special_acls,
        counters: Box::default(),
        most: Usage::default(),
        over_soft: false,
        times_over_soft: 0,
    };
    domain.apply_quotas(all);
    domain
}

fn client(state: ConnectionState, watches: &mut Watches) -> Client {
    let mut client = Client::new(state.actor);
    client.contends = state.contends;
    client.no_turn_until = state.no_turn_until;
    for watch in state.watches {
        let added_token = watch.token.clone();
        let added = Watch {
            conn: state.id,
            token: watch.token,
            prefix: watch.prefix,
            depth: watch.depth,
        };
        if watches.add(&watch.path, added) {
            client.watch_count += 1;
            client.watch_bytes += account::watch(&watch.path, &added_token);
            *client.watched.entry(watch.path).or_default() += 1;
        }
    }
    client
}
