//! How much each domain makes us hold, put together: nodes, watches, transactions, and what waits at its connection.

use xen_sys::DomId;

use super::acl::{Actor, DomLife};
use super::limits::{QUOTAS, Quota, within};
use super::settings::limits_of;
use super::transaction::Transaction;
use super::{Client, ConnId, Core, Host, account};

/// What may wait for a guest whatever else is held for it, in bytes.
pub const ALWAYS_WAITING: usize = 64 << 10;
/// What may wait for dom0's clients, and for guests without a quota, in bytes.
pub const MOST_WAITING: usize = 64 << 20;

/// What is held for a domain, by the names of [`QUOTAS`] as far as these are amounts: `nodes`, `watches`, `outstanding`,
/// `memory`, `transactions`; of the others, the largest that it had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By the quotas' order; soft ones are not used.
    values: [u32; QUOTAS.len()],
}

impl Usage {
    /// The amount for a quota.
    pub fn get(&self, name: &str) -> u32 {
        position(name).map_or(0, |at| self.values[at])
    }

    /// Sets it.
    pub fn set(&mut self, name: &str, value: usize) {
        if let Some(at) = position(name) {
            self.values[at] = u32::try_from(value).unwrap_or(u32::MAX);
        }
    }

    /// Takes the larger of each.
    pub fn raise(&mut self, other: &Usage) {
        for (mine, theirs) in self.values.iter_mut().zip(other.values) {
            *mine = (*mine).max(theirs);
        }
    }
}

fn position(name: &str) -> Option<usize> {
    QUOTAS.iter().position(|quota: &Quota| quota.name == name)
}

impl Core {
    /// What is held for a connection's domain beside its nodes; of `except`, a transaction that is being worked on, without
    /// the nodes that it makes.
    pub(super) fn beside(
        &self,
        host: &mut dyn Host,
        conn: ConnId,
        actor: &Actor,
        except: u32,
    ) -> usize {
        match self.conns.get(&conn) {
            Some(client) if !actor.is_privileged() => {
                client.bytes(except) + host.waiting_bytes(conn)
            }
            _ => 0,
        }
    }

    /// Whether so much more may be held for a guest.
    pub(super) fn has_room(
        &self,
        host: &mut dyn Host,
        conn: ConnId,
        actor: &Actor,
        more: usize,
    ) -> bool {
        if actor.is_privileged() {
            return true;
        }
        let limits = limits_of(&self.domains, &self.limits, actor);
        let nodes = self.owned.of_domain(actor.who).bytes.max(0) as usize;
        let held = nodes + self.beside(host, conn, actor, 0) + more;
        within(held, limits.memory)
    }

    /// How many bytes may wait for a client.
    pub(super) fn most_waiting(&self, client: &Client) -> usize {
        if client.actor.is_privileged() {
            return MOST_WAITING;
        }
        let limits = limits_of(&self.domains, &self.limits, &client.actor);
        if limits.memory == 0 {
            return MOST_WAITING;
        }
        let nodes = self.owned.of_domain(client.actor.who).bytes.max(0) as usize;
        let held = nodes + client.bytes(0);
        (limits.memory as usize)
            .saturating_sub(held)
            .max(ALWAYS_WAITING)
    }

    /// How many replies may wait at a connection before it is not listened to.
    pub fn most_outstanding(&self, conn: ConnId) -> usize {
        let Some(client) = self.conns.get(&conn) else {
            return usize::MAX;
        };
        let limits = limits_of(&self.domains, &self.limits, &client.actor);
        match limits.outstanding {
            0 => usize::MAX,
            _ if client.actor.is_privileged() => usize::MAX,
            most => most as usize,
        }
    }

    /// What is held for a domain now.
    pub fn usage(&self, host: &dyn Host, dom: DomId) -> Option<Usage> {
        let domain = self.domains.get(&dom)?;
        let who = DomLife {
            dom,
            life: domain.life,
        };
        let owned = self.owned.of_domain(who);
        let mut usage = Usage::default();
        usage.set("nodes", owned.nodes.max(0) as usize);
        let mut bytes = owned.bytes.max(0) as usize;
        if let Some(conn) = domain.conn
            && let Some(client) = self.conns.get(&conn)
        {
            let open = client.transactions.values();
            usage.set("watches", client.watch_count as usize);
            usage.set("transactions", open.len());
            usage.set(
                "transaction-nodes",
                open.map(Transaction::nodes).max().unwrap_or(0),
            );
            let buffered = host.buffered(conn);
            usage.set("outstanding", buffered.replies);
            bytes += client.bytes(0) + buffered.bytes;
        }
        usage.set("memory", bytes);
        Some(usage)
    }

    /// Takes note of what a guest holds after a request, and tells of one that comes to hold much.
    pub(super) fn note_usage(&mut self, host: &mut dyn Host, actor: &Actor) {
        let dom = actor.who.dom;
        let Some(usage) = self.usage(host, dom) else {
            return;
        };
        self.most.raise(&usage);
        let soft = limits_of(&self.domains, &self.limits, actor).memory_soft;
        let hard = limits_of(&self.domains, &self.limits, actor).memory;
        let Some(domain) = self.domains.get_mut(&dom) else {
            return;
        };
        domain.most.raise(&usage);
        let held = usage.get("memory");
        let is_over = soft != 0 && held > soft;
        if is_over && !domain.over_soft {
            domain.times_over_soft = domain.times_over_soft.saturating_add(1);
            // A guest that does it over and over does not fill the log.
            if domain.times_over_soft.is_power_of_two() {
                host.log(&format!(
                    "domain {dom} makes the store hold {held} bytes, more than the soft quota of {soft} (of {hard})"
                ));
            }
        }
        domain.over_soft = is_over;
    }

    /// Whether all is counted that is there; else what is not.
    pub(super) fn check_counts(&self) -> Result<(), String> {
        let owned = super::Owned::of(&self.tree);
        if owned != self.owned {
            return Err(format!("nodes counted {:?}, found {owned:?}", self.owned));
        }
        let mut watches = super::ConnMap::<(u32, usize)>::default();
        for (path, watch) in self.watches.iter() {
            let (count, bytes) = watches.or_default(watch.conn);
            *count += 1;
            *bytes += account::watch(path, &watch.token);
        }
        for (conn, client) in self.conns.iter() {
            let found = watches.remove(conn).unwrap_or_default();
            let counted = (client.watch_count, client.watch_bytes);
            if found != counted {
                return Err(format!(
                    "{conn:?}: watches counted {counted:?}, found {found:?}"
                ));
            }
            if !client.transactions.values().all(Transaction::is_counted) {
                return Err(format!("{conn:?}: a transaction is not counted right"));
            }
        }
        match watches.iter().next() {
            Some((conn, found)) => Err(format!("{conn:?} is gone, but has watches: {found:?}")),
            None => Ok(()),
        }
    }
}

impl Client {
    /// What its watches and transactions are counted as, with the nodes that these make but for those of `except`.
    fn bytes(&self, except: u32) -> usize {
        let transactions = self.transactions.iter().map(|(id, transaction)| {
            let made = if *id == except {
                0
            } else {
                transaction.growth()
            };
            made + transaction.bytes()
        });
        self.watch_bytes + transactions.sum::<usize>()
    }
}
