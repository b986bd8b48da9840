//! Settings that dom0 makes while the daemon runs: quotas, for all or for one domain, and the features of a ring.

use std::collections::{BTreeMap, HashMap};

use xen_sys::{DomId, Errno};

use super::acl::Actor;
use super::domains::Domain;
use super::limits::{Limits, QUOTAS};
use super::{Core, Host};

/// The ring features that this daemon offers: the error field (2) and watches with a depth (4).
pub const FEATURES: u32 = 2 | 4;

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
    /// GET_FEATURE: a domain's features, or all that there are.
    pub(super) fn get_feature(&self, dom: Option<DomId>) -> Result<u32, Errno> {
        match dom {
            None => Ok(FEATURES),
            Some(dom) => match self.domains.get(&dom) {
                Some(domain) if domain.introduced => Ok(domain.features),
                _ => Err(Errno::ENOENT),
            },
        }
    }

    /// SET_FEATURE, also for a domain that is yet to be introduced. EINVAL for a feature that there is not.
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
        domain.features = features;
        if let Some(conn) = domain.conn {
            host.set_features(conn, features);
        }
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
            return Ok(QUOTAS.join(" "));
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
        let known = QUOTAS.iter().find(|known| **known == name);
        let name = *known.ok_or(Errno::EINVAL)?;
        match dom {
            None => {
                self.limits.set_quota(name, value);
                let all = &self.limits;
                for domain in self.domains.values_mut() {
                    domain.apply_quotas(all);
                }
            }
            Some(DomId::DOM0) => return Err(Errno::EINVAL),
            Some(dom) => {
                self.life(host, dom).ok_or(Errno::ENOENT)?;
                let domain = self.domains.get_mut(&dom).ok_or(Errno::ENOENT)?;
                domain.quotas.insert(name, value);
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
            limits.set_quota(name, *value);
        }
        self.limits = Some(Box::new(limits));
    }
}
