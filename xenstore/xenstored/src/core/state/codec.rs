//! A state as bytes, for another daemon of ours: small, and read as fast as a tree can be built.
//!
//! Numbers are written seven bits a byte, the low ones first, with the top bit set in all but the last. A list is its
//! length and its items, an option a list of at most one. A permission list is told where it occurs first, and by its
//! number from then on.
//!
//! Invariant: no bytes make it panic, and what it allocates is bounded by a multiple of their number.

use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use xen_sys::DomId;
use xs_wire::{ABS_PATH_MAX, Access, Header};

use super::diff::{Delta, NodeState};
use super::{
    ConnectionState, DomainState, SpecialAcls, State, TransactionState, TurnState, Version,
    WatchState,
};
use crate::core::acl::{Acl, Actor, DomLife, Entry};
use crate::core::limits::{Limits, QUOTAS};
use crate::core::path;
use crate::core::transaction::Update;
use crate::core::tree::{Builder, Node, Tree};
use crate::core::{ConnId, Identity};

/// Which form of bytes this is; another is not read.
const FORM: u64 = 2;

/// Why bytes are no state: how many came before the trouble, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokenState {
    /// How many.
    pub at: usize,
    /// What it is.
    pub what: &'static str,
}

impl fmt::Display for BrokenState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the state is broken at its byte {}: {}",
            self.at, self.what
        )
    }
}

impl std::error::Error for BrokenState {}

impl State {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.num(FORM);
        to.limits(&self.limits);
        to.acl(&self.introduce_acl);
        to.acl(&self.release_acl);
        to.num(self.last_life.into());
        to.num(self.last_transaction.into());
        to.time(self.now);
        to.tree(&self.tree);
        to.list(&self.domains, Encoder::domain);
        to.list(&self.connections, Encoder::connection);
        to.list(&self.versions, Encoder::version);
        to.list(&self.turns, Encoder::turn);
        to.bytes
    }

    /// The state that these bytes tell of.
    pub fn decode(bytes: &[u8]) -> Result<State> {
        let mut from = Decoder {
            all: bytes,
            at: 0,
            acls: Vec::new(),
        };
        if from.num()? != FORM {
            return Err(from.broken("it is of a form that this daemon does not know"));
        }
        let state = State {
            limits: from.limits()?,
            introduce_acl: from.acl()?,
            release_acl: from.acl()?,
            last_life: from.small()?,
            last_transaction: from.small()?,
            now: from.time()?,
            tree: from.tree()?,
            domains: from.list(Decoder::domain)?,
            connections: from.list(Decoder::connection)?,
            versions: from.list(Decoder::version)?,
            turns: from.list(Decoder::turn)?,
        };
        if from.at < bytes.len() {
            return Err(from.broken("there is more"));
        }
        Ok(state)
    }
}

#[derive(Default)]
struct Encoder {
    bytes: Vec<u8>,
    /// Numbers of permission lists, by where they lie.
    acls: HashMap<usize, u64>,
}

impl Encoder {
    fn num(&mut self, mut value: u64) {
        while value > 0x7f {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn flag(&mut self, value: bool) {
        self.bytes.push(value.into());
    }

    fn string(&mut self, bytes: &[u8]) {
        self.num(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    fn time(&mut self, time: Duration) {
        self.num(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn list<T>(&mut self, list: &[T], item: fn(&mut Encoder, &T)) {
        self.num(list.len() as u64);
        for one in list {
            item(self, one);
        }
    }

    fn option<T>(&mut self, option: &Option<T>, item: fn(&mut Encoder, &T)) {
        self.list(option.as_slice(), item);
    }

    fn limits(&mut self, limits: &Limits) {
        for quota in &QUOTAS {
            self.num(quota.get(limits).into());
        }
    }

    fn life(&mut self, who: &DomLife) {
        self.num(who.dom.0.into());
        self.num(who.life.into());
    }

    fn acl(&mut self, acl: &Acl) {
        let next = self.acls.len() as u64;
        let number = *self.acls.entry(acl.address()).or_insert(next);
        self.num(number);
        if number == next {
            self.list(acl.list(), |to, entry| {
                to.life(&entry.who);
                to.bytes.push(entry.access as u8);
            });
        }
    }

    fn actor(&mut self, actor: &Actor) {
        self.life(&actor.who);
        self.option(&actor.target, Encoder::life);
    }

    fn tree(&mut self, tree: &Tree) {
        self.num(tree.generation());
        self.num(tree.replaced());
        let mut stack = vec![tree.root()];
        while let Some(node) = stack.pop() {
            self.node(node);
            stack.extend(node.children().rev());
        }
    }

    fn node(&mut self, node: &Node) {
        self.string(node.name().as_bytes());
        self.string(node.value());
        self.acl(node.acl());
        self.num(node.children_generation());
        self.num(node.children().len() as u64);
    }

    fn domain(&mut self, domain: &DomainState) {
        self.life(&domain.who);
        self.num(domain.identity.0);
        self.option(&domain.conn, |to, conn| to.num(conn.0));
        self.flag(domain.introduced);
        self.flag(domain.shutdown);
        self.num(domain.features.into());
        self.list(&domain.quotas, |to, (name, value)| {
            to.string(name.as_bytes());
            to.num((*value).into());
        });
        self.option(&domain.special_acls.introduce, Encoder::acl);
        self.option(&domain.special_acls.release, Encoder::acl);
    }

    fn connection(&mut self, connection: &ConnectionState) {
        self.num(connection.id.0);
        self.actor(&connection.actor);
        self.list(&connection.watches, |to, watch| {
            to.string(watch.path.as_bytes());
            to.string(&watch.token);
            to.num(watch.prefix as u64);
            to.option(&watch.depth, |to, depth| to.num((*depth).into()));
        });
        self.option(&connection.contends, |to, node| to.string(node.as_bytes()));
        self.time(connection.no_turn_until);
    }

    fn version(&mut self, version: &Version) {
        self.num(version.generation);
        self.num(version.replaced);
        self.list(&version.undo, |to, delta| {
            to.string(delta.path.as_bytes());
            to.option(&delta.node, |to, node| {
                to.string(&node.value);
                to.acl(&node.acl);
                to.num(node.children_generation);
            });
        });
        self.list(&version.transactions, Encoder::transaction);
    }

    fn transaction(&mut self, transaction: &TransactionState) {
        self.num(transaction.conn.0);
        self.num(transaction.id.into());
        self.actor(&transaction.actor);
        self.flag(transaction.removed);
        self.option(&transaction.void, |to, node| to.string(node.as_bytes()));
        self.flag(transaction.stale);
        self.num(transaction.renewals.into());
        self.list(&transaction.seen, |to, (path, parts)| {
            to.string(path.as_bytes());
            to.bytes.push(*parts);
        });
        self.list(&transaction.updates, Encoder::update);
    }

    fn update(&mut self, update: &Update) {
        let (kind, path) = match update {
            Update::Write(path, _) => (0, path),
            Update::Mkdir(path) => (1, path),
            Update::Rm(path) => (2, path),
            Update::SetPermissions(path, _) => (3, path),
        };
        self.bytes.push(kind);
        self.string(path.as_bytes());
        match update {
            Update::Write(_, value) => self.string(value),
            Update::SetPermissions(_, acl) => self.acl(acl),
            Update::Mkdir(_) | Update::Rm(_) => {}
        }
    }

    fn turn(&mut self, turn: &TurnState) {
        self.string(turn.node.as_bytes());
        self.option(&turn.holder, |to, (conn, tx)| {
            to.num(conn.0);
            to.num((*tx).into());
        });
        self.option(&turn.since, |to, since| to.time(*since));
        self.list(&turn.waiting, |to, (conn, header)| {
            to.num(conn.0);
            to.bytes.extend_from_slice(&header.encode());
        });
    }
}

type Result<T> = std::result::Result<T, BrokenState>;

struct Decoder<'a> {
    all: &'a [u8],
    at: usize,
    acls: Vec<Acl>,
}

impl<'a> Decoder<'a> {
    fn broken(&self, what: &'static str) -> BrokenState {
        BrokenState { at: self.at, what }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let taken = self.all.get(self.at..).and_then(|rest| rest.get(..len));
        let taken = taken.ok_or(self.broken("it ends too early"))?;
        self.at += len;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn num(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.broken("a number is too long"))
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Result<T> {
        let number = self.num()?;
        T::try_from(number).map_err(|_| self.broken("a number is too large"))
    }

    fn flag(&mut self) -> Result<bool> {
        Ok(self.byte()? != 0)
    }

    fn string(&mut self) -> Result<&'a [u8]> {
        let len = self.small()?;
        self.take(len)
    }

    fn text(&mut self) -> Result<&'a str> {
        let bytes = self.string()?;
        str::from_utf8(bytes).map_err(|_| self.broken("a text is not UTF-8"))
    }

    /// The path of a node.
    fn path(&mut self) -> Result<&'a str> {
        let text = self.text()?;
        if !path::is_path(text) {
            return Err(self.broken("a path is none"));
        }
        Ok(text)
    }

    fn time(&mut self) -> Result<Duration> {
        self.num().map(Duration::from_nanos)
    }

    fn list<T>(&mut self, item: fn(&mut Decoder<'a>) -> Result<T>) -> Result<Vec<T>> {
        let len = self.num()?;
        // Grows with what is really there.
        let mut list = Vec::new();
        for _ in 0..len {
            list.push(item(self)?);
        }
        Ok(list)
    }

    fn option<T>(&mut self, item: fn(&mut Decoder<'a>) -> Result<T>) -> Result<Option<T>> {
        match self.byte()? {
            0 => Ok(None),
            1 => item(self).map(Some),
            _ => Err(self.broken("an option has more than one")),
        }
    }

    fn limits(&mut self) -> Result<Limits> {
        let mut limits = Limits::none();
        for quota in &QUOTAS {
            quota.set(&mut limits, self.small()?);
        }
        Ok(limits)
    }

    fn life(&mut self) -> Result<DomLife> {
        Ok(DomLife {
            dom: DomId(self.small()?),
            life: self.small()?,
        })
    }

    fn acl(&mut self) -> Result<Acl> {
        let number: usize = self.small()?;
        if number == self.acls.len() {
            let entries = self.list(|from| {
                let who = from.life()?;
                let access = match from.byte()? {
                    byte if byte == Access::None as u8 => Access::None,
                    byte if byte == Access::Read as u8 => Access::Read,
                    byte if byte == Access::Write as u8 => Access::Write,
                    byte if byte == Access::Both as u8 => Access::Both,
                    _ => return Err(from.broken("an access is none")),
                };
                Ok(Entry { who, access })
            })?;
            let acl = Acl::new(entries).ok_or(self.broken("permissions have no owner"))?;
            self.acls.push(acl);
        }
        let known = self.acls.get(number).cloned();
        known.ok_or(self.broken("permissions are not known"))
    }

    fn actor(&mut self) -> Result<Actor> {
        Ok(Actor {
            who: self.life()?,
            target: self.option(Decoder::life)?,
        })
    }

    fn tree(&mut self) -> Result<Tree> {
        let (generation, replaced) = (self.num()?, self.num()?);
        let mut builder = Builder::default();
        // Of each open node: children to come, its generation, the length of its path.
        let mut open: Vec<(u64, u64, usize)> = Vec::new();
        loop {
            let name = self.text()?;
            let value = self.string()?;
            let above = open.last().map(|(_, _, len)| *len);
            let path_len = above.map_or(0, |len| len + 1 + name.len());
            let is_good = match above {
                None => name.is_empty(),
                Some(_) => path::is_name(name),
            };
            if !is_good || path_len > ABS_PATH_MAX {
                return Err(self.broken("a node's name is none, or its path too long"));
            }
            let acl = self.acl()?;
            builder.open(name, value, acl);
            let children_generation = self.num()?;
            open.push((self.num()?, children_generation, path_len));
            while let Some((0, children_generation, _)) = open.last() {
                let closed = builder.close(*children_generation);
                closed.ok_or(self.broken("names are not in order"))?;
                open.pop();
                if let Some((left, _, _)) = open.last_mut() {
                    *left -= 1;
                }
            }
            if open.is_empty() {
                let tree = builder.finish(generation, replaced);
                return tree.ok_or(self.broken("no tree"));
            }
        }
    }

    fn domain(&mut self) -> Result<DomainState> {
        Ok(DomainState {
            who: self.life()?,
            identity: Identity(self.num()?),
            conn: self.option(|from| from.num().map(ConnId))?,
            introduced: self.flag()?,
            shutdown: self.flag()?,
            features: self.small()?,
            quotas: self.list(|from| Ok((from.text()?.to_owned(), from.small()?)))?,
            special_acls: SpecialAcls {
                introduce: self.option(Decoder::acl)?,
                release: self.option(Decoder::acl)?,
            },
        })
    }

    fn connection(&mut self) -> Result<ConnectionState> {
        Ok(ConnectionState {
            id: ConnId(self.num()?),
            actor: self.actor()?,
            watches: self.list(|from| {
                let path: Rc<str> = from.text()?.into();
                let token = from.string()?.into();
                let prefix = from.small()?;
                if !path.is_char_boundary(prefix) {
                    return Err(from.broken("a watch's prefix is longer than its path"));
                }
                Ok(WatchState {
                    path,
                    token,
                    prefix,
                    depth: from.option(Decoder::small)?,
                })
            })?,
            contends: self.option(|from| from.text().map(Into::into))?,
            no_turn_until: self.time()?,
        })
    }

    fn version(&mut self) -> Result<Version> {
        Ok(Version {
            generation: self.num()?,
            replaced: self.num()?,
            undo: self.list(|from| {
                Ok(Delta {
                    path: from.path()?.into(),
                    node: from.option(|from| {
                        Ok(NodeState {
                            value: from.string()?.into(),
                            acl: from.acl()?,
                            children_generation: from.num()?,
                        })
                    })?,
                })
            })?,
            transactions: self.list(Decoder::transaction)?,
        })
    }

    fn transaction(&mut self) -> Result<TransactionState> {
        Ok(TransactionState {
            conn: ConnId(self.num()?),
            id: self.small()?,
            actor: self.actor()?,
            removed: self.flag()?,
            void: self.option(|from| from.path().map(Into::into))?,
            stale: self.flag()?,
            renewals: self.small()?,
            seen: self.list(|from| Ok((from.path()?.into(), from.byte()?)))?,
            updates: self.list(Decoder::update)?,
        })
    }

    fn update(&mut self) -> Result<Update> {
        let kind = self.byte()?;
        let path = self.path()?.into();
        Ok(match kind {
            0 => Update::Write(path, self.string()?.into()),
            1 => Update::Mkdir(path),
            2 => Update::Rm(path),
            3 => Update::SetPermissions(path, self.acl()?),
            _ => return Err(self.broken("an update is of no kind")),
        })
    }

    fn turn(&mut self) -> Result<TurnState> {
        Ok(TurnState {
            node: self.text()?.into(),
            holder: self.option(|from| Ok((ConnId(from.num()?), from.small()?)))?,
            since: self.option(Decoder::time)?,
            waiting: self.list(|from| {
                let conn = ConnId(from.num()?);
                let mut header = [0; Header::SIZE];
                header.copy_from_slice(from.take(Header::SIZE)?);
                Ok((conn, Header::decode(&header)))
            })?,
        })
    }
}
