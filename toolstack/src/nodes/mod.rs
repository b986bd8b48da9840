//! The store nodes of a guest, as libxl lays them out, so that stock tools see one of their own.
//! Nothing is written here: what is to be written is a value that can be looked at and tested.

mod devices;

use xen_hal::{Permission, Store, StoreOp, TxId};
use xen_sys::{DomId, Mfn, Port};
use xs_wire::{Access, StoreError};

use crate::config::DomainConfig;
use crate::uuid;

pub use devices::{Nic, PhysicalDevice, disk, nic};

/// Where back ends in dom0 have their directories.
const BACKENDS: &str = "/local/domain/0/backend/";

/// A node to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its absolute path.
    pub path: String,
    /// Its value.
    pub value: String,
    /// Its permissions, if not those of the node above it.
    pub permissions: Option<Vec<Permission>>,
    /// Whether it is there already, by what was written at or below it: only its permissions are set.
    pub made: bool,
}

/// Nodes to be written, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes(pub Vec<Node>);

impl Nodes {
    /// Adds a node.
    pub fn put(&mut self, path: impl Into<String>, value: impl Into<String>) {
        self.0.push(Node {
            path: path.into(),
            value: value.into(),
            permissions: None,
            made: false,
        });
    }

    fn dir(&mut self, path: impl Into<String>, permissions: &[Permission]) {
        self.0.push(Node {
            path: path.into(),
            value: String::new(),
            permissions: Some(permissions.to_vec()),
            made: false,
        });
    }

    /// Adds other nodes behind these.
    pub fn extend(&mut self, other: Nodes) {
        self.0.extend(other.0);
    }

    /// Those of back ends in dom0, and the others.
    pub fn split_backends(self) -> (Nodes, Nodes) {
        let is_backend = |node: &Node| node.path.starts_with(BACKENDS);
        let (backends, others) = self.0.into_iter().partition(is_backend);
        (Nodes(backends), Nodes(others))
    }

    /// The same effect with fewer requests: permissions that a node inherits are not set again, and a
    /// folder without permissions of its own is made by what is written below it.
    pub fn compact(self) -> Nodes {
        let mut all = self.0;
        // Nodes that differ from what is above them: few, so a look at each is quicker than a tree.
        let mut marked: Vec<usize> = Vec::new();
        for at in 0..all.len() {
            let (before, node) = (&all[..at], &all[at]);
            let Some(own) = &node.permissions else {
                continue;
            };
            // A later mark counts more than an earlier one of the same path.
            let nearest = marked
                .iter()
                .map(|&mark| &before[mark])
                .filter(|mark| is_at_or_below(&node.path, &mark.path))
                .max_by_key(|mark| mark.path.len());
            let made = before
                .iter()
                .any(|other| is_at_or_below(&other.path, &node.path));
            let same = nearest.is_some_and(|mark| mark.permissions.as_ref() == Some(own));
            // What was made already may have inherited something else.
            if same && !made {
                all[at].permissions = None;
            } else {
                all[at].made = made && node.value.is_empty();
                marked.push(at);
            }
        }
        let implied = |node: &Node| {
            let plain = node.value.is_empty() && node.permissions.is_none();
            let above = |other: &Node| {
                other.path.len() > node.path.len() && is_at_or_below(&other.path, &node.path)
            };
            plain && all.iter().any(above)
        };
        let implied: Vec<bool> = all.iter().map(implied).collect();
        let mut implied = implied.into_iter();
        all.retain(|_| implied.next() == Some(false));
        Nodes(all)
    }

    /// Writes all of them.
    ///
    /// # Errors
    /// The first that the store refuses.
    pub fn write(&self, store: &impl Store, tx: Option<TxId>) -> Result<(), StoreError> {
        let results = store.batch(tx, &self.ops());
        results
            .into_iter()
            .find_map(Result::err)
            .map_or(Ok(()), Err)
    }

    /// What writes all of them.
    pub fn ops(&self) -> Vec<StoreOp<'_>> {
        let mut ops = Vec::with_capacity(self.0.len() * 2);
        for node in &self.0 {
            if !node.made {
                ops.push(StoreOp::Write(&node.path, node.value.as_bytes()));
            }
            if let Some(permissions) = &node.permissions {
                ops.push(StoreOp::SetPermissions(&node.path, permissions));
            }
        }
        ops
    }
}

/// Whether a path is `top` or leads below it.
fn is_at_or_below(path: &str, top: &str) -> bool {
    match path.strip_prefix(top) {
        Some(rest) => rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

/// `/local/domain/D`
pub fn home(dom: DomId) -> String {
    format!("/local/domain/{dom}")
}

/// `/libxl/D`
pub fn libxl(dom: DomId) -> String {
    format!("/libxl/{dom}")
}

/// `/vm/UUID`
pub fn vm(uuid: &[u8; 16]) -> String {
    format!("/vm/{}", uuid::format(uuid))
}

/// A back end's directory in dom0.
pub fn backend(kind: &str, dom: DomId, device: u32) -> String {
    format!("{BACKENDS}{kind}/{dom}/{device}")
}

/// A front end's directory in the guest.
pub fn frontend(kind: &str, dom: DomId, device: u32) -> String {
    match kind {
        "console" => format!("{}/console", home(dom)),
        _ => format!("{}/device/{kind}/{device}", home(dom)),
    }
}

/// What the builder knows of a guest when it is declared.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Its number.
    pub dom: DomId,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its configuration.
    pub config: &'a DomainConfig,
    /// The store's ring and port.
    pub store: (Mfn, Port),
    /// The console's ring and port.
    pub console: (Mfn, Port),
    /// Seconds since 1970.
    pub now: (u64, u32),
}

/// Only dom0 writes, the guest reads.
fn dom0_owns(dom: DomId) -> [Permission; 2] {
    [
        Permission::owner(DomId::DOM0),
        Permission::new(dom, Access::Read),
    ]
}

/// The guest writes, dom0 reads.
fn guest_owns(dom: DomId) -> [Permission; 2] {
    [
        Permission::owner(dom),
        Permission::new(DomId::DOM0, Access::Read),
    ]
}

/// The guest itself: its home, `/vm/UUID` and `/libxl/D`, its console.
pub fn guest(facts: &Facts<'_>) -> Nodes {
    let Facts {
        dom, uuid, config, ..
    } = facts;
    let (home, vm, libxl) = (home(*dom), vm(uuid), libxl(*dom));
    let reads = dom0_owns(*dom);
    let dom0_only = [Permission::owner(DomId::DOM0)];
    let its_own = [Permission::owner(*dom)];
    let mut n = Nodes::default();

    // The guest does not run yet, so its home may be its own until what it shall have has inherited that.
    n.dir(&*home, &its_own);
    for sub in [
        "control/shutdown",
        "control/feature-poweroff",
        "control/feature-reboot",
        "control/feature-suspend",
        "control/sysrq",
        "data",
        "drivers",
        "feature",
        "attr",
        "error",
    ] {
        n.dir(format!("{home}/{sub}"), &its_own);
    }
    n.dir(format!("{home}/control"), &reads);
    n.dir(&*home, &reads);
    n.dir(&*vm, &reads);
    n.dir(&*libxl, &dom0_only);
    n.dir(format!("{libxl}/device"), &dom0_only);
    for sub in ["cpu", "memory", "device"] {
        n.dir(format!("{home}/{sub}"), &reads);
    }
    let suspend = "device/suspend/event-channel";
    n.dir(format!("{home}/{suspend}"), &its_own);
    n.put(format!("{home}/vm"), &*vm);
    n.put(format!("{home}/name"), &*config.name);
    n.put(format!("{vm}/uuid"), uuid::format(uuid));
    n.put(format!("{vm}/name"), &*config.name);
    for feature in ["multiprocessor-suspend", "xs_reset_watches"] {
        n.put(format!("{home}/control/platform-feature-{feature}"), "1");
    }
    n.put(format!("{libxl}/type"), "pv");
    n.put(format!("{libxl}/dm-version"), "qemu_xen");
    n.put(
        format!("{home}/memory/static-max"),
        config.max_memory_kib.to_string(),
    );
    n.put(
        format!("{home}/memory/target"),
        config.memory_kib.to_string(),
    );
    n.put(format!("{home}/memory/videoram"), "0");
    n.put(format!("{home}/domid"), dom.to_string());
    n.put(format!("{home}/store/port"), facts.store.1.to_string());
    n.put(format!("{home}/store/ring-ref"), facts.store.0.to_string());
    for cpu in 0..config.max_vcpus {
        let state = if cpu < config.vcpus {
            "online"
        } else {
            "offline"
        };
        n.put(format!("{home}/cpu/{cpu}/availability"), state);
    }
    n.put(format!("{vm}/image/ostype"), "linux");
    n.put(
        format!("{vm}/image/kernel"),
        config.kernel.display().to_string(),
    );
    if let Some(ramdisk) = &config.ramdisk {
        n.put(format!("{vm}/image/ramdisk"), ramdisk.display().to_string());
    }
    n.put(format!("{vm}/image/cmdline"), &*config.cmdline);
    n.put(format!("{vm}/start_time"), start_time(facts.now));
    n.extend(console(facts));
    n
}

/// What is other in a guest that was made of a shell.
pub fn renamed(dom: DomId, uuid: &[u8; 16], config: &DomainConfig, now: (u64, u32)) -> Nodes {
    let (home, vm) = (home(dom), vm(uuid));
    let mut n = Nodes::default();
    n.put(format!("{home}/name"), &*config.name);
    n.put(format!("{vm}/name"), &*config.name);
    n.put(format!("{vm}/image/cmdline"), &*config.cmdline);
    n.put(format!("{vm}/start_time"), start_time(now));
    n
}

fn start_time((seconds, centiseconds): (u64, u32)) -> String {
    format!("{seconds}.{centiseconds:02}")
}

/// The console. Its back end is the console daemon, which looks at nothing but the front end; what libxl
/// writes below dom0's `backend/console` only makes dom0's kernel add a device that no driver wants, for a
/// quarter of a create's time, so that folder is named but not made.
fn console(facts: &Facts<'_>) -> Nodes {
    let dom = facts.dom;
    let front = frontend("console", dom, 0);
    let back = backend("console", dom, 0);
    let copy = format!("{}/device/console/0", libxl(dom));
    let mut n = Nodes::default();
    n.dir(&*copy, &[Permission::owner(DomId::DOM0)]);
    n.put(format!("{copy}/frontend"), &*front);
    n.put(format!("{copy}/backend"), &*back);
    n.put(format!("{copy}/frontend-id"), dom.to_string());
    n.put(format!("{copy}/online"), "1");
    n.put(format!("{copy}/state"), "1");
    n.put(format!("{copy}/protocol"), "vt100");
    n.dir(&*front, &dom0_owns(dom));
    n.put(format!("{front}/backend"), back);
    n.put(format!("{front}/backend-id"), "0");
    n.put(format!("{front}/limit"), "1048576");
    n.put(format!("{front}/type"), "xenconsoled");
    n.put(format!("{front}/output"), "pty");
    n.put(format!("{front}/tty"), "");
    n.put(format!("{front}/port"), facts.console.1.to_string());
    n.put(format!("{front}/ring-ref"), facts.console.0.to_string());
    n
}

/// A back end's directory, and the copy of it that a back end in a driver domain cannot change.
fn both_backends(
    kind: &str,
    dom: DomId,
    device: u32,
    front: &str,
    back: &str,
    pairs: Vec<(&str, String)>,
) -> Nodes {
    let copy = format!("{}/device/{kind}/{device}", libxl(dom));
    let mut n = Nodes::default();
    n.dir(&*copy, &[Permission::owner(DomId::DOM0)]);
    n.put(format!("{copy}/frontend"), front);
    n.put(format!("{copy}/backend"), back);
    n.dir(back, &dom0_owns(dom));
    for (key, value) in pairs {
        if key != "frontend" {
            n.put(format!("{copy}/{key}"), &*value);
        }
        n.put(format!("{back}/{key}"), value);
    }
    n
}

#[cfg(test)]
mod tests;
