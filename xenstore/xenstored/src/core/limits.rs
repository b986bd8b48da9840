//! What a guest may make us hold. dom0 is bound by none of these. Defaults are C xenstored's.

/// The named maxima, each per guest unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nodes owned.
    pub nodes: u32,
    /// Bytes of one node: 24, 8 for each permission entry, the value, and the children's names with a NUL each.
    pub node_size: usize,
    /// Watches.
    pub watches: u32,
    /// Open transactions.
    pub transactions: u32,
    /// Different nodes that one transaction reads or writes, and changes it makes.
    pub transaction_nodes: usize,
    /// Bytes of values that one transaction writes.
    pub transaction_bytes: usize,
    /// Entries of one permission list.
    pub permissions: usize,
    /// Bytes of replies and events that wait to be taken. Beyond it no request is taken up, and a guest for whom
    /// still more events come is cut off.
    pub queued_bytes: usize,
}

/// What C counts of a node beside its content (`struct xs_tdb_record_hdr`).
const NODE_HEADER: usize = 24;
/// What C counts of a permission entry (`struct xs_permissions`).
const PERMISSION_ENTRY: usize = 8;

impl Default for Limits {
    fn default() -> Self {
        Limits {
            nodes: 1000,
            node_size: 2048,
            watches: 128,
            transactions: 10,
            transaction_nodes: 1024,
            transaction_bytes: 256 << 10,
            permissions: 5,
            queued_bytes: 2 << 20,
        }
    }
}

/// The names of the quotas that can be set, which are C xenstored's.
pub const QUOTAS: [&str; 6] = [
    "nodes",
    "node-size",
    "watches",
    "transactions",
    "transaction-nodes",
    "permissions",
];

impl Limits {
    /// No bounds: for what was checked before.
    pub fn none() -> Limits {
        Limits {
            nodes: u32::MAX,
            node_size: usize::MAX,
            watches: u32::MAX,
            transactions: u32::MAX,
            transaction_nodes: usize::MAX,
            transaction_bytes: usize::MAX,
            permissions: usize::MAX,
            queued_bytes: usize::MAX,
        }
    }

    /// The value of one of [`QUOTAS`].
    pub fn quota(&self, name: &str) -> Option<u32> {
        let size = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        Some(match name {
            "nodes" => self.nodes,
            "node-size" => size(self.node_size),
            "watches" => self.watches,
            "transactions" => self.transactions,
            "transaction-nodes" => size(self.transaction_nodes),
            "permissions" => size(self.permissions),
            _ => return None,
        })
    }

    /// Sets one of [`QUOTAS`]; `None` if there is none of this name.
    pub fn set_quota(&mut self, name: &str, value: u32) -> Option<()> {
        match name {
            "nodes" => self.nodes = value,
            "node-size" => self.node_size = value as usize,
            "watches" => self.watches = value,
            "transactions" => self.transactions = value,
            "transaction-nodes" => self.transaction_nodes = value as usize,
            "permissions" => self.permissions = value as usize,
            _ => return None,
        }
        Some(())
    }

    /// Whether a node of these sizes, in entries and bytes, is allowed.
    pub fn node_fits(&self, permissions: usize, value: usize, names: usize) -> bool {
        NODE_HEADER + PERMISSION_ENTRY * permissions + value + names < self.node_size
    }
}
