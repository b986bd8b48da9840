//! Domains: introduced, released, shut down, dead, and what is left of them.

use std::collections::HashMap;

use xen_sys::{DomId, Errno, Port};

use super::acl::{Acl, Actor, DomLife};
use super::held::Usage;
use super::limits::Limits;
use super::ops::Ops;
use super::path::{INTRODUCE_DOMAIN, RELEASE_DOMAIN, home};
use super::settings::{FEATURES, Quotas};
use super::stats::Counters;
use super::tree::walk;
use super::{Client, ConnId, Core, DomainReport, DomainState, Host, Identity};

/// A domain that is connected or that some node's permissions name.
#[derive(Debug)]
pub(super) struct Domain {
    /// Tells it from others of the same number.
    pub life: u32,
    /// What the world tells it by.
    pub identity: Identity,
    /// Its connection, once introduced.
    pub conn: Option<ConnId>,
    /// Whether it is introduced; its connection may have been cut off all the same.
    pub introduced: bool,
    /// Whether its shutdown was told about.
    pub shutdown: bool,
    /// The features of its ring.
    pub features: u32,
    /// Its own quotas.
    pub quotas: Quotas,
    /// What it may use, if it has quotas of its own.
    pub limits: Option<Box<Limits>>,
    /// Who is told of it.
    pub special_acls: SpecialAcls,
    /// What it has asked for.
    pub counters: Box<Counters>,
    /// The most that it has held.
    pub most: Usage,
    /// Whether it holds more than the soft quota, which was told about.
    pub over_soft: bool,
    /// How often it came to.
    pub times_over_soft: u32,
}

/// Who is told of one domain's introduction and end, where that was set for it alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialAcls {
    /// The permissions of `@introduceDomain/N`.
    pub introduce: Option<Acl>,
    /// Those of `@releaseDomain/N`.
    pub release: Option<Acl>,
}

impl Core {
    /// The domain that has this number now; `None` if there is none. If it is not the one that was known by the number,
    /// that one has died, and is told of if it was introduced.
    pub(super) fn life(&mut self, host: &mut dyn Host, dom: DomId) -> Option<DomLife> {
        if dom == DomId::DOM0 {
            return Some(DomLife::DOM0);
        }
        if !dom.is_ordinary() {
            return None;
        }
        let now = host.domain_identity(dom);
        if let Some(domain) = self.domains.get_mut(&dom)
            && let Some(now) = now
        {
            if domain.identity.differs(now) {
                let introduced = domain.introduced;
                self.end_life(host, dom);
                if introduced {
                    self.released(host, &[dom]);
                }
            } else if domain.identity == Identity::UNKNOWN {
                domain.identity = now;
            }
        }
        if !self.domains.contains_key(&dom) {
            let identity = now?;
            // More than 2^32 domains do not fit the life of a host.
            self.last_life += 1;
            let domain = Domain {
                life: self.last_life,
                identity,
                conn: None,
                introduced: false,
                shutdown: false,
                features: FEATURES,
                quotas: Quotas::new(),
                limits: None,
                special_acls: SpecialAcls::default(),
                counters: Box::default(),
                most: Usage::default(),
                over_soft: false,
                times_over_soft: 0,
            };
            self.domains.insert(dom, domain);
        }
        let life = self.domains.get(&dom)?.life;
        Some(DomLife { dom, life })
    }

    /// INTRODUCE. A domain that is introduced already gets its port bound anew and begins afresh.
    pub(super) fn introduce(
        &mut self,
        host: &mut dyn Host,
        dom: DomId,
        frame: u64,
        port: Port,
    ) -> Result<(), Errno> {
        if port.0 == 0 || dom == DomId::DOM0 || !dom.is_ordinary() {
            return Err(Errno::EINVAL);
        }
        let who = self.life(host, dom).ok_or(Errno::ENOENT)?;
        let connected = self.domains.get(&dom).and_then(|domain| domain.conn);
        if let Some(conn) = connected {
            host.rebind(conn, dom, port)?;
            self.restart(conn);
            return Ok(());
        }
        let actor = Actor { who, target: None };
        let conn = host.connect(dom, frame, port, self.features(&actor))?;
        self.conns.insert(conn, Client::new(actor));
        if let Some(domain) = self.domains.get_mut(&dom) {
            domain.conn = Some(conn);
            domain.introduced = true;
            domain.shutdown = false;
        }
        Ok(())
    }

    /// Tells that a domain was introduced.
    pub(super) fn introduced(&self, host: &mut dyn Host, dom: DomId) {
        self.fire_special(host, INTRODUCE_DOMAIN, &[dom]);
    }

    /// RELEASE: forgets a domain as if it were dead.
    pub(super) fn release(&mut self, host: &mut dyn Host, dom: DomId) -> Result<(), Errno> {
        if dom == DomId::DOM0 {
            return Err(Errno::EINVAL);
        }
        if !self.is_introduced(dom) {
            return Err(Errno::ENOENT);
        }
        self.end_life(host, dom);
        Ok(())
    }

    /// Tells that domains have gone or shut down.
    pub(super) fn released(&mut self, host: &mut dyn Host, doms: &[DomId]) {
        self.fire_special(host, RELEASE_DOMAIN, doms);
        self.departed.clear();
    }

    /// Whether a domain was introduced and not yet released.
    pub(super) fn is_introduced(&self, dom: DomId) -> bool {
        dom == DomId::DOM0
            || self
                .domains
                .get(&dom)
                .is_some_and(|domain| domain.introduced)
    }

    /// RESUME: a shutdown to come is told about again.
    pub(super) fn resume(&mut self, dom: DomId) -> Result<(), Errno> {
        match self.domains.get_mut(&dom) {
            Some(domain) if domain.introduced => {
                domain.shutdown = false;
                Ok(())
            }
            _ => Err(Errno::ENOENT),
        }
    }

    /// SET_TARGET: `dom` gets the rights of `target` beside its own.
    pub(super) fn set_target(&mut self, dom: DomId, target: DomId) -> Result<(), Errno> {
        if dom == DomId::DOM0 || target == DomId::DOM0 {
            return Err(Errno::EINVAL);
        }
        let life = |of: DomId| match self.domains.get(&of) {
            Some(domain) if domain.introduced => Ok((domain.life, domain.conn)),
            _ => Err(Errno::ENOENT),
        };
        let (_, conn) = life(dom)?;
        let (target_life, _) = life(target)?;
        let conn = conn.ok_or(Errno::ENOTCONN)?;
        self.client(conn)?.actor.target = Some(DomLife {
            dom: target,
            life: target_life,
        });
        Ok(())
    }

    /// Some domain has died or shut down (`VIRQ_DOM_EXC`): finds out which, cleans up, tells once.
    pub fn domains_changed(&mut self, host: &mut dyn Host) {
        let Some(states) = host.domain_states() else {
            return;
        };
        let states: HashMap<DomId, DomainReport> =
            states.into_iter().map(|now| (now.dom, now)).collect();
        let mut dead = Vec::new();
        let mut told = Vec::new();
        for (dom, domain) in &mut self.domains {
            let now = states
                .get(dom)
                .filter(|now| !domain.identity.differs(now.identity));
            match now.map_or(DomainState::Dying, |now| now.state) {
                DomainState::Running => domain.shutdown = false,
                DomainState::Shutdown => {
                    if domain.introduced && !domain.shutdown {
                        told.push(*dom);
                    }
                    domain.shutdown = true;
                }
                DomainState::Dying => {
                    if domain.introduced {
                        told.push(*dom);
                    }
                    dead.push(*dom);
                }
            }
        }
        dead.sort_by_key(|dom| dom.0);
        for dom in dead {
            self.end_life(host, dom);
        }
        told.sort_by_key(|dom| dom.0);
        if !told.is_empty() {
            self.released(host, &told);
        }
        self.renew_transactions();
        self.give_turns(host);
    }

    /// A domain's connection, its nodes and its rights go (XSA-419, XSA-322).
    fn end_life(&mut self, host: &mut dyn Host, dom: DomId) {
        let Some(domain) = self.domains.remove(&dom) else {
            return;
        };
        if let Some(conn) = domain.conn {
            self.restart(conn);
            self.conns.remove(&conn);
            host.disconnect(conn);
        }
        let who = DomLife {
            dom,
            life: domain.life,
        };
        for client in self.conns.values_mut() {
            if client.actor.target == Some(who) {
                client.actor.target = None;
            }
        }
        if domain.introduced && domain.special_acls.release.is_some() {
            self.departed.insert(dom, domain.special_acls);
        }
        self.purge(host, who);
        self.owned.forget(who);
    }

    /// Removes the nodes that a domain owns, with all below them; looks at its home first, where nearly all are.
    fn purge(&mut self, host: &mut dyn Host, who: DomLife) {
        for top in [home(who.dom), "/".to_owned()] {
            if self.owned.of_domain(who).nodes == 0 {
                return;
            }
            let mut paths = Vec::new();
            if let Some(node) = self.tree.get(&top) {
                walk(&top, node, &mut |path, node, _| {
                    let owned = node.acl().owner() == who;
                    if owned && path != "/" {
                        paths.push(path.to_owned());
                    }
                    !owned || path == "/"
                });
            }
            let mut changes = Vec::new();
            if top == "/" && self.tree.root().acl().owner() == who {
                // The root stays, and is dom0's.
                let acl = self.tree.root().acl().owned_by_dom0();
                let _ = self
                    .ops(Actor::DOM0, 0, &mut changes)
                    .set_permissions("/", acl);
            }
            for path in paths {
                let mut ops: Ops<'_> = self.ops(Actor::DOM0, 0, &mut changes);
                // The path was just found, and it is not the root.
                let _ = ops.remove(&path);
            }
            self.fire(host, &changes);
        }
    }
}
