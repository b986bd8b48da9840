//! Settings that dom0 makes while the daemon runs: quotas, for all or for one domain, and the features of a ring.

use std::collections::{BTreeMap, HashMap};

use xen_sys::{DomId, Errno};

use super::acl::Actor;
use super::domains::Domain;
use super::limits::{Limits, QUOTAS, Quota};
use super::{Core, Host};

/// A ring feature (io/xs_wire.h): the guest may have its connection begin afresh (docs/misc/xenstore-ring.txt).
pub const RECONNECTION: u32 = 1;
/// A ring feature: the error field says why a connection was ended.
pub const ERROR: u32 = 2;
/// A ring feature: watches with a depth.
pub const WATCH_DEPTH: u32 = 4;
/// A ring feature: permissions may name every domain (`DOMID_ANY`).
pub const DOMID_ANY: u32 = 8;
/// The ring features that this daemon offers.
pub const FEATURES: u32 = RECONNECTION | ERROR | WATCH_DEPTH | DOMID_ANY;

/// What holds for one actor: its domain's own quotas, else everybody's.
pub(super) fn limits_of<'a>(
    domains: &'a HashMap<DomId, Domain>,
    all: &'a Limits,
    actor: &Actor,
) -> &'a Limits {
    if actor.is_privileged() {
        return all;
    }
    match domains.get(&actor.who.dom) {
        Some(domain) => domain.limits.as_deref().unwrap_or(all),
        None => all,
    }
}

impl Core {
    /// The ring features that an actor has.
    pub(super) fn features(&self, actor: &Actor) -> u32 {
        match self.domains.get(&actor.who.dom) {
            Some(domain) if !actor.is_privileged() => domain.features,
            _ => FEATURES,
        }
    }

    /// The features that a domain's ring shows.
    pub fn ring_features(&self, dom: DomId) -> u32 {
        let known = self.domains.get(&dom).filter(|_| dom != DomId::DOM0);
        known.map_or(FEATURES, |domain| domain.features)
    }

    /// GET_FEATURE: a domain's features, or those of the caller.
    pub(super) fn get_feature(
        &mut self,
        host: &mut dyn Host,
        actor: &Actor,
        dom: Option<DomId>,
    ) -> Result<u32, Errno> {
        match dom {
            None => Ok(self.features(actor)),
            Some(_) if !actor.is_privileged() => Err(Errno::EACCES),
            Some(dom) => {
                let who = self.life(host, dom).ok_or(Errno::ENOENT)?;
                Ok(self.features(&Actor { who, target: None }))
            }
        }
    }

    /// SET_FEATURE for a domain that is yet to be introduced, EBUSY afterwards: it may rely on what it was shown. EINVAL for a
    /// feature that there is not.
    pub(super) fn set_feature(
        &mut self,
        host: &mut dyn Host,
        dom: DomId,
        features: u32,
    ) -> Result<(), Errno> {
        if features & !FEATURES != 0 || dom == DomId::DOM0 {
            return Err(Errno::EINVAL);
        }
        self.life(host, dom).ok_or(Errno::ENOENT)?;
        let domain = self.domains.get_mut(&dom).ok_or(Errno::ENOENT)?;
        if domain.introduced {
            return Err(Errno::EBUSY);
        }
        domain.features = features;
        Ok(())
    }

    /// GET_QUOTA: the names, a default, or what holds for a domain.
    pub(super) fn get_quota(
        &mut self,
        host: &mut dyn Host,
        dom: Option<DomId>,
        name: Option<&[u8]>,
    ) -> Result<String, Errno> {
        let Some(name) = name else {
            return Ok(QUOTAS.each_ref().map(|quota| quota.name).join(" "));
        };
        let name = str::from_utf8(name).map_err(|_| Errno::EINVAL)?;
        let limits = match dom {
            None => &self.limits,
            Some(dom) => {
                self.life(host, dom).ok_or(Errno::ENOENT)?;
                let own = self.domains.get(&dom).and_then(|d| d.limits.as_deref());
                own.unwrap_or(&self.limits)
            }
        };
        let value = limits.quota(name).ok_or(Errno::EINVAL)?;
        Ok(value.to_string())
    }

    /// SET_QUOTA: for all domains that have no value of their own, or for one.
    pub(super) fn set_quota(
        &mut self,
        host: &mut dyn Host,
        dom: Option<DomId>,
        name: &[u8],
        value: u32,
    ) -> Result<(), Errno> {
        let name = str::from_utf8(name).map_err(|_| Errno::EINVAL)?;
        let quota = Quota::find(name).ok_or(Errno::EINVAL)?;
        match dom {
            None => {
                quota.set(&mut self.limits, value);
                let all = &self.limits;
                for domain in self.domains.values_mut() {
                    domain.apply_quotas(all);
                }
            }
            Some(DomId::DOM0) => return Err(Errno::EINVAL),
            Some(dom) => {
                self.life(host, dom).ok_or(Errno::ENOENT)?;
                let domain = self.domains.get_mut(&dom).ok_or(Errno::ENOENT)?;
                domain.quotas.insert(quota.name, value);
                domain.apply_quotas(&self.limits);
            }
        }
        Ok(())
    }
}

/// Quotas of one domain's own, by name.
pub(super) type Quotas = BTreeMap<&'static str, u32>;

impl Domain {
    pub(super) fn apply_quotas(&mut self, all: &Limits) {
        if self.quotas.is_empty() {
            return;
        }
        let mut limits = all.clone();
        for (name, value) in &self.quotas {
            if let Some(quota) = Quota::find(name) {
                quota.set(&mut limits, *value);
            }
        }
        self.limits = Some(Box::new(limits));
    }
}
