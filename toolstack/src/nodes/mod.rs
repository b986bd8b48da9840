//! The store nodes of a guest, as libxl lays them out, so that stock tools see one of their own.
//! Nothing is written here: what is to be written is a value that can be looked at and tested.

mod devices;

use std::collections::{BTreeMap, BTreeSet};

use xen_hal::{Permission, Store, StoreOp, TxId};
use xen_sys::{DomId, Mfn, Port};
use xs_wire::{Access, StoreError};

use crate::config::DomainConfig;
use crate::uuid;

pub use devices::{Nic, PhysicalDevice, disk, nic};

/// A node to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its absolute path.
    pub path: String,
    /// Its value.
    pub value: String,
    /// Its permissions, if not those of the node above it.
    pub permissions: Option<Vec<Permission>>,
}

/// Nodes to be written, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes(pub Vec<Node>);

impl Nodes {
    fn put(&mut self, path: impl Into<String>, value: impl Into<String>) {
        self.0.push(Node {
            path: path.into(),
            value: value.into(),
            permissions: None,
        });
    }

    fn dir(&mut self, path: impl Into<String>, permissions: &[Permission]) {
        self.0.push(Node {
            path: path.into(),
            value: String::new(),
            permissions: Some(permissions.to_vec()),
        });
    }

    /// Adds other nodes behind these.
    pub fn extend(&mut self, other: Nodes) {
        self.0.extend(other.0);
    }

    /// The same effect with fewer requests: permissions that a node inherits are not set again, and a
    /// folder without permissions of its own is made by what is written below it.
    pub fn compact(self) -> Nodes {
        let mut known: BTreeMap<String, Vec<Permission>> = BTreeMap::new();
        let mut kept: Vec<Node> = Vec::new();
        let mut all = self.0;
        for node in &mut all {
            let inherited = above(&node.path).find_map(|path| known.get(path));
            if node.permissions.is_some() && node.permissions.as_ref() == inherited {
                node.permissions = None;
            }
            if let Some(own) = &node.permissions {
                known.insert(node.path.clone(), own.clone());
            }
        }
        let folders: BTreeSet<String> = all
            .iter()
            .flat_map(|node| above(&node.path).map(String::from))
            .collect();
        for node in all {
            let implied = node.value.is_empty() && node.permissions.is_none();
            if !(implied && folders.contains(&node.path)) {
                kept.push(node);
            }
        }
        Nodes(kept)
    }

    /// Writes all of them.
    ///
    /// # Errors
    /// The first that the store refuses.
    pub fn write(&self, store: &impl Store, tx: Option<TxId>) -> Result<(), StoreError> {
        let mut ops = Vec::with_capacity(self.0.len() * 2);
        for node in &self.0 {
            ops.push(StoreOp::Write(&node.path, node.value.as_bytes()));
            if let Some(permissions) = &node.permissions {
                ops.push(StoreOp::SetPermissions(&node.path, permissions));
            }
        }
        let results = store.batch(tx, &ops);
        results
            .into_iter()
            .find_map(Result::err)
            .map_or(Ok(()), Err)
    }
}

/// The paths above a path, the nearest first.
fn above(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rsplit_once('/').map(|(up, _)| up))
        .skip(1)
        .filter(|path| !path.is_empty())
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
    format!("/local/domain/0/backend/{kind}/{dom}/{device}")
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

    n.dir(&*home, &reads);
    n.dir(&*vm, &reads);
    n.dir(&*libxl, &dom0_only);
    n.dir(format!("{libxl}/device"), &dom0_only);
    for sub in ["cpu", "memory", "device", "control"] {
        n.dir(format!("{home}/{sub}"), &reads);
    }
    for sub in [
        "device/suspend/event-channel",
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
    let (seconds, centiseconds) = facts.now;
    n.put(
        format!("{vm}/start_time"),
        format!("{seconds}.{centiseconds:02}"),
    );
    n.extend(console(facts));
    n
}

fn console(facts: &Facts<'_>) -> Nodes {
    let dom = facts.dom;
    let front = frontend("console", dom, 0);
    let back = backend("console", dom, 0);
    let pairs = vec![
        ("frontend", front.clone()),
        ("frontend-id", dom.to_string()),
        ("online", "1".into()),
        ("state", "1".into()),
        ("protocol", "vt100".into()),
    ];
    let mut n = both_backends("console", dom, 0, &front, &back, pairs);
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
