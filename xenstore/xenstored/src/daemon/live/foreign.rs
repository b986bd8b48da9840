//! The store in C xenstored's words, both ways. What they cannot say: lives of domains beyond whether an entry is stale,
//! what open transactions have seen, whose turn it is.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use xen_sys::DomId;
use xs_stream::{DomainData, Node, Permission, Quota, Quotas, Watch, Writer};

use crate::core::acl::{Acl, Actor, DomLife, Entry};
use crate::core::limits::{self, Limits, QUOTAS};
use crate::core::path::{self, Checked, INTRODUCE_DOMAIN, RELEASE_DOMAIN};
use crate::core::settings;
use crate::core::state::{ConnectionState, DomainState, State, WatchState};
use crate::core::tree::Tree;
use crate::core::{ConnId, Identity};
use xs_wire::Access;

/// The life of a domain that is gone, in a stale entry; no living one has it.
const GONE: u32 = 0;

/// C's names of quotas that are called otherwise here.
const RENAMED: [(&str, &str); 1] = [("permissions", "node-permissions")];

/// Writes what is no connection: quotas, special names, nodes, domains' quotas. Watches come with their connections.
pub fn write(state: &State, to: &mut Writer) {
    let quota = |quota: &limits::Quota| Quota {
        name: c_name(quota.name).as_bytes(),
        value: quota.get(&state.limits),
    };
    to.global_quota(&QUOTAS.iter().map(quota).collect::<Vec<_>>());
    let lives: HashMap<DomId, u32> = state
        .domains
        .iter()
        .map(|d| (d.who.dom, d.who.life))
        .collect();
    let is_stale = |who: DomLife| {
        who != DomLife::DOM0 && who != DomLife::ANY && lives.get(&who.dom) != Some(&who.life)
    };
    let permission = |entry: &Entry| Permission {
        dom: entry.who.dom,
        access: entry.access,
        stale: is_stale(entry.who),
    };
    for (name, acl) in [
        (RELEASE_DOMAIN, &state.release_acl),
        (INTRODUCE_DOMAIN, &state.introduce_acl),
    ] {
        to.node(name.as_bytes(), b"", acl.list().iter().map(permission));
    }
    state.tree.walk(&mut |path, node, _| {
        let entries = node.acl().list().iter();
        to.node(path.as_bytes(), node.value(), entries.map(permission));
        true
    });
    for domain in state.domains.iter().filter(|domain| domain.introduced) {
        let quota = |(name, value): &'_ (String, u32)| (c_name(name).to_owned(), *value);
        let quotas: Vec<(String, u32)> = domain.quotas.iter().map(quota).collect();
        let quotas: Vec<Quota<'_>> = quotas
            .iter()
            .map(|(name, value)| Quota {
                name: name.as_bytes(),
                value: *value,
            })
            .collect();
        to.domain(domain.who.dom, domain.features, &quotas);
    }
}

/// Writes a connection's watches. A depth is left out, so that there are events too many rather than too few: C's own
/// two ends do not agree on how it is told.
pub fn write_watches(number: u32, connection: &ConnectionState, to: &mut Writer) {
    for watch in &connection.watches {
        to.watch(&Watch {
            conn: number,
            path: watch
                .path
                .get(watch.prefix..)
                .unwrap_or_default()
                .as_bytes(),
            token: &watch.token,
            depth: None,
        });
    }
}

fn c_name(name: &str) -> &str {
    let other = RENAMED.iter().find(|(ours, _)| *ours == name);
    other.map_or(name, |(_, theirs)| theirs)
}

/// A quota of C's as ours, if it is one of ours.
fn quota(quota: &Quota<'_>) -> Option<(&'static str, u32)> {
    let name = str::from_utf8(quota.name).ok()?;
    let known = limits::Quota::find(name)?;
    Some((known.name, quota.value))
}

/// Makes a store of C's records, as they come.
#[derive(Debug)]
pub struct Reader {
    state: State,
    domains: HashMap<DomId, DomainState>,
    /// Lists that were met, so that nodes share them.
    acls: HashMap<Vec<u8>, Acl>,
}

impl Reader {
    /// An empty store; `limits` hold until others are told.
    pub fn new(limits: Limits) -> Reader {
        let acl = Acl::dom0(Access::None);
        Reader {
            state: State {
                limits,
                tree: Tree::new(acl.clone()),
                introduce_acl: acl.clone(),
                release_acl: acl,
                last_life: GONE,
                last_transaction: 0,
                now: Duration::ZERO,
                domains: Vec::new(),
                connections: Vec::new(),
                versions: Vec::new(),
                turns: Vec::new(),
            },
            domains: HashMap::new(),
            acls: HashMap::new(),
        }
    }

    /// A connection: a domain's, or dom0's through a socket.
    pub fn connection(&mut self, id: ConnId, dom: DomId, target: Option<DomId>) {
        let who = self.life(dom);
        if let Some(domain) = self.domains.get_mut(&dom) {
            (domain.conn, domain.introduced) = (Some(id), true);
            // What its ring shows until something else is told: C of 4.17 has no features.
            domain.features = 0;
        }
        let target = target.map(|dom| self.life(dom));
        self.state.connections.push(ConnectionState {
            id,
            actor: Actor { who, target },
            watches: Vec::new(),
            contends: None,
            no_turn_until: Duration::ZERO,
        });
    }

    /// A watch of a connection that was told.
    pub fn watch(&mut self, conn: ConnId, watch: &Watch<'_>) -> Result<(), String> {
        let known = |of: &&mut ConnectionState| of.id == conn;
        // Watches follow their connection.
        let owner = self.state.connections.iter_mut().rev().find(known);
        let owner = owner.ok_or("a watch is nobody's")?;
        let (path, prefix): (Rc<str>, usize) = match path::check(owner.actor.who.dom, watch.path) {
            Ok(Checked::Node { path, prefix }) => (path.into(), prefix),
            Ok(Checked::Special(name)) => (name.into(), 0),
            Err(_) => {
                let path = String::from_utf8_lossy(watch.path).into_owned();
                return Err(format!("a watch is on {path:?}"));
            }
        };
        owner.watches.push(WatchState {
            path,
            token: watch.token.into(),
            prefix,
            depth: watch.depth.map(u32::from),
        });
        Ok(())
    }

    /// A node or a special name.
    pub fn node(&mut self, node: &Node<'_>) -> Result<(), String> {
        let shown = || String::from_utf8_lossy(node.path).into_owned();
        let acl = self.acl(node)?;
        match str::from_utf8(node.path) {
            Ok("/") => {
                self.state.tree.set_value("/", node.value);
                self.state.tree.set_acl("/", acl);
            }
            Ok(RELEASE_DOMAIN) => self.state.release_acl = acl,
            Ok(INTRODUCE_DOMAIN) => self.state.introduce_acl = acl,
            Ok(name) if name.starts_with('@') => {}
            Ok(path) if path::is_path(path) => {
                let tree = &mut self.state.tree;
                let (parent, name) = path::split(path).unwrap_or(("/", path));
                if tree.get(parent).is_none() {
                    return Err(format!("node {path} comes before the one above it"));
                }
                tree.insert(parent, name, node.value, acl);
            }
            _ => return Err(format!("a node is called {:?}", shown())),
        }
        Ok(())
    }

    /// Quotas that hold for all.
    pub fn global_quota(&mut self, quotas: &Quotas<'_>) {
        for (name, value) in quotas.iter().filter_map(|q| quota(&q)) {
            if let Some(quota) = limits::Quota::find(name) {
                quota.set(&mut self.state.limits, value);
            }
        }
    }

    /// What belongs to a domain.
    pub fn domain(&mut self, data: &DomainData<'_>) {
        self.life(data.dom);
        let all = &self.state.limits;
        if let Some(domain) = self.domains.get_mut(&data.dom) {
            if let Some(features) = data.features {
                domain.features = features & settings::FEATURES;
            }
            // C tells all of them, also those that are everybody's.
            let own = data.quotas.iter().filter_map(|q| quota(&q));
            let own = own.filter(|(name, value)| all.quota(name) != Some(*value));
            domain.quotas = own.map(|(name, value)| (name.to_owned(), value)).collect();
        }
    }

    /// The store.
    pub fn finish(mut self) -> State {
        self.state.domains = self.domains.into_values().collect();
        self.state.domains.sort_by_key(|domain| domain.who.dom.0);
        self.state
    }

    fn acl(&mut self, node: &Node<'_>) -> Result<Acl, String> {
        let key: Vec<u8> = node
            .permissions()
            .flat_map(|p| {
                let [low, high] = p.dom.0.to_le_bytes();
                [p.access as u8, p.stale.into(), low, high]
            })
            .collect();
        if let Some(acl) = self.acls.get(&key) {
            return Ok(acl.clone());
        }
        let entries = node.permissions().map(|permission| Entry {
            who: match permission.stale {
                true if permission.dom != DomId::DOM0 => DomLife {
                    dom: permission.dom,
                    life: GONE,
                },
                _ => self.life(permission.dom),
            },
            access: permission.access,
        });
        let acl = Acl::new(entries.collect()).ok_or("a node has no owner")?;
        self.acls.insert(key, acl.clone());
        Ok(acl)
    }

    /// The domain of this number, which lives.
    fn life(&mut self, dom: DomId) -> DomLife {
        if dom == DomId::DOM0 {
            return DomLife::DOM0;
        }
        if dom == DomLife::ANY.dom {
            return DomLife::ANY;
        }
        let last = &mut self.state.last_life;
        let domain = self.domains.entry(dom).or_insert_with(|| {
            *last += 1;
            DomainState {
                who: DomLife { dom, life: *last },
                identity: Identity::UNKNOWN,
                conn: None,
                introduced: false,
                shutdown: false,
                features: settings::FEATURES,
                quotas: Vec::new(),
                special_acls: Default::default(),
            }
        });
        domain.who
    }
}
