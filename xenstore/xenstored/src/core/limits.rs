//! What a guest may make us hold. dom0 is bound by none of these. Defaults are C xenstored's.

/// The named maxima, each per guest unless it says otherwise; 0 lifts one. [`QUOTAS`] has their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nodes owned.
    pub nodes: u32,
    /// Watches.
    pub watches: u32,
    /// Requests taken up whose replies it has not taken yet. A guest with so many is not listened to.
    pub outstanding: u32,
    /// Bytes held for it in all, see [`account`](super::account). What would need more is refused with ENOMEM; a guest for
    /// whom still more events come is cut off, once they and its replies are more than 64 KiB.
    pub memory: u32,
    /// Bytes held from which on the log tells of it.
    pub memory_soft: u32,
    /// Open transactions.
    pub transactions: u32,
    /// Different nodes that one transaction reads or writes, and changes it makes.
    pub transaction_nodes: u32,
    /// Entries of one permission list.
    pub permissions: u32,
    /// Bytes of an absolute path.
    pub path_max: u32,
    /// Bytes of one node: 24, 8 for each permission entry, the value, and the children's names with a NUL each.
    pub node_size: u32,
}

/// What C counts of a node beside its content (`struct xs_tdb_record_hdr`).
const NODE_HEADER: usize = 24;
/// What C counts of a permission entry (`struct xs_permissions`).
const PERMISSION_ENTRY: usize = 8;

impl Default for Limits {
    fn default() -> Self {
        Limits {
            nodes: 1000,
            watches: 128,
            outstanding: 20,
            memory: 5 << 19,
            memory_soft: 2 << 20,
            transactions: 10,
            transaction_nodes: 1024,
            permissions: 5,
            path_max: xs_wire::ABS_PATH_MAX as u32,
            node_size: 2048,
        }
    }
}

/// A quota that can be set, as C xenstored names it.
pub struct Quota {
    /// Its name.
    pub name: &'static str,
    /// What later or earlier releases of C xenstored, or its option `--quota`, call it.
    alias: Option<&'static str>,
    /// What it bounds, in C xenstored's words for its users.
    pub about: &'static str,
    value: fn(&mut Limits) -> &mut u32,
}

/// All of them. What stands behind `soft-` is only warned of.
pub const QUOTAS: [Quota; 10] = [
    quota("nodes", None, "Nodes per domain", |l| &mut l.nodes),
    quota("watches", None, "Watches per domain", |l| &mut l.watches),
    quota(
        "outstanding",
        None,
        "Outstanding requests per domain",
        |l| &mut l.outstanding,
    ),
    quota("memory", None, "Total Xenstore memory per domain", |l| {
        &mut l.memory
    }),
    quota(
        "soft-memory",
        None,
        "Memory per domain from which on the log tells of it",
        |l| &mut l.memory_soft,
    ),
    quota(
        "transactions",
        None,
        "Active transactions per domain",
        |l| &mut l.transactions,
    ),
    quota(
        "transaction-nodes",
        None,
        "Max. number of accessed nodes per transaction",
        |l| &mut l.transaction_nodes,
    ),
    quota(
        "permissions",
        Some("node-permissions"),
        "Max. number of permissions per node",
        |l| &mut l.permissions,
    ),
    quota(
        "path-max",
        Some("path-length"),
        "Max. length of a node path",
        |l| &mut l.path_max,
    ),
    quota("node-size", None, "Max. size of a node", |l| {
        &mut l.node_size
    }),
];

/// What the names of soft quotas begin with.
pub const SOFT: &str = "soft-";

const fn quota(
    name: &'static str,
    alias: Option<&'static str>,
    about: &'static str,
    value: fn(&mut Limits) -> &mut u32,
) -> Quota {
    Quota {
        name,
        alias,
        about,
        value,
    }
}

impl Quota {
    /// The one of this name.
    pub fn find(name: &str) -> Option<&'static Quota> {
        const ALL: &[Quota] = &QUOTAS;
        ALL.iter()
            .find(|quota| quota.name == name || quota.alias == Some(name))
    }

    /// Its value in these limits.
    pub fn get(&self, limits: &Limits) -> u32 {
        *(self.value)(&mut limits.clone())
    }

    /// Sets it.
    pub fn set(&self, limits: &mut Limits, value: u32) {
        *(self.value)(limits) = value;
    }

    /// Whether it is only warned of.
    pub fn is_soft(&self) -> bool {
        self.name.starts_with(SOFT)
    }
}

/// Whether `value` is within a quota.
pub fn within(value: usize, quota: u32) -> bool {
    quota == 0 || value <= quota as usize
}

impl Limits {
    /// No bounds: for what was checked before.
    pub fn none() -> Limits {
        let mut limits = Limits::default();
        for quota in &QUOTAS {
            quota.set(&mut limits, 0);
        }
        limits
    }

    /// The value of the quota of this name.
    pub fn quota(&self, name: &str) -> Option<u32> {
        Quota::find(name).map(|quota| quota.get(self))
    }

    /// Whether a node of these sizes, in entries and bytes, is allowed.
    pub fn node_fits(&self, permissions: usize, value: usize, names: usize) -> bool {
        let size = NODE_HEADER + PERMISSION_ENTRY * permissions + value + names;
        within(size + 1, self.node_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values() {
        let mut limits = Limits::default();
        for (n, quota) in (1..).zip(&QUOTAS) {
            assert_eq!(Quota::find(quota.name).map(|q| q.name), Some(quota.name));
            quota.set(&mut limits, n);
        }
        for (n, quota) in (1..).zip(&QUOTAS) {
            assert_eq!(quota.get(&limits), n, "{}", quota.name);
        }
        assert_eq!(
            limits.quota("node-permissions"),
            limits.quota("permissions")
        );
        assert_eq!(limits.quota("x"), None);
        assert!(within(5, 5) && !within(6, 5) && within(usize::MAX, 0));
        assert!(Limits::none().node_fits(9999, 9999, 9999));
    }
}
