//! The store nodes of disks and network cards.

use xen_sys::DomId;

use super::{Node, Nodes, backend, both_backends, dom0_owns, frontend, guest_owns};
use crate::config::{DiskConfig, NicConfig};
use crate::hotplug;

/// How a disk reaches the kernel's back end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhysicalDevice {
    /// The block device's node.
    pub path: String,
    /// Its major and minor number.
    pub number: (u32, u32),
}

/// A disk. `physical` is there for the kernel's back end; a back end of ours opens `params` itself.
pub fn disk(dom: DomId, disk: &DiskConfig, physical: Option<&PhysicalDevice>) -> Nodes {
    let (front, back) = (
        frontend("vbd", dom, disk.number),
        backend("vbd", dom, disk.number),
    );
    let flag = |on: bool| if on { "1" } else { "0" }.to_string();
    let kind = if disk.cdrom { "cdrom" } else { "disk" };
    // A stock xl that removes the guest runs it. Our loop devices go away by themselves, at which the
    // stock script would stumble.
    let script = match (hotplug::custom(disk.script.as_deref()), physical) {
        (Some(custom), _) => custom.display().to_string(),
        (None, Some(_)) => "/bin/true".into(),
        (None, None) => "/etc/xen/scripts/block".into(),
    };
    let mut pairs = vec![
        ("frontend", front.clone()),
        (
            "params",
            format!("{}{}", disk.format.prefix(), disk.target.display()),
        ),
        ("script", script),
        ("frontend-id", dom.to_string()),
        ("online", "1".into()),
        ("removable", flag(disk.cdrom)),
        ("bootable", "1".into()),
        ("state", "1".into()),
        ("dev", disk.vdev.clone()),
        ("type", "phy".into()),
        ("mode", if disk.writable { "w" } else { "r" }.into()),
        ("device-type", kind.into()),
        (
            "discard-enable",
            flag(disk.discard.unwrap_or(disk.writable)),
        ),
        ("specification", "xen".into()),
    ];
    if disk.direct_io_safe {
        pairs.push(("direct-io-safe", "1".into()));
    }
    for (node, limit) in [
        ("max-iops", disk.max_iops),
        ("max-bytes-per-second", disk.max_bytes_per_second),
    ] {
        if let Some(limit) = limit {
            pairs.push((node, limit.to_string()));
        }
    }
    let mut n = both_backends("vbd", dom, disk.number, &front, &back, pairs);
    if let Some(PhysicalDevice { path, number }) = physical {
        n.put(format!("{back}/node"), &**path);
        n.put(format!("{back}/physical-device-path"), &**path);
        // The kernel reads both numbers in hexadecimal.
        n.put(
            format!("{back}/physical-device"),
            format!("{:x}:{:x}", number.0, number.1),
        );
        n.put(format!("{back}/hotplug-status"), "connected");
    }
    n.dir(&*front, &guest_owns(dom));
    for (key, value) in [
        ("backend", back.as_str()),
        ("backend-id", "0"),
        ("state", "1"),
        ("virtual-device", &disk.number.to_string()),
        ("device-type", kind),
        ("trusted", trusted(disk.trusted)),
        ("protocol", "x86_64-abi"),
    ] {
        n.put(format!("{front}/{key}"), value);
    }
    n
}

/// What the guest's driver reads; without it, and by default, it may trust the back end.
const fn trusted(trusted: Option<bool>) -> &'static str {
    match trusted {
        Some(false) => "0",
        _ => "1",
    }
}

/// A network card whose open questions are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// What the configuration says.
    pub config: NicConfig,
    /// Its number.
    pub devid: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its bridge.
    pub bridge: String,
    /// The largest packet.
    pub mtu: u32,
}

impl Nic {
    /// The interface that the back end makes in dom0.
    pub fn interface(&self, dom: DomId) -> String {
        format!("vif{dom}.{}", self.devid)
    }

    /// The MAC address as text.
    pub fn mac_text(&self) -> String {
        let m = self.mac;
        format!(
            "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}",
            m[0], m[1], m[2], m[3], m[4], m[5]
        )
    }
}

/// A network card.
pub fn nic(dom: DomId, nic: &Nic) -> Nodes {
    let (front, back) = (
        frontend("vif", dom, nic.devid),
        backend("vif", dom, nic.devid),
    );
    let config = &nic.config;
    let script = hotplug::custom(config.script.as_deref()).map_or_else(
        || "/etc/xen/scripts/vif-bridge".into(),
        |custom| custom.display().to_string(),
    );
    let mut pairs = vec![
        ("frontend", front.clone()),
        ("frontend-id", dom.to_string()),
        ("online", "1".into()),
        ("state", "1".into()),
        ("script", script),
        ("mac", nic.mac_text()),
    ];
    if let Some(ip) = &config.ip {
        pairs.push(("ip", ip.clone()));
    }
    if let Some(rate) = config.rate {
        let value = format!("{},{}", rate.bytes_per_interval, rate.interval_us);
        pairs.push(("rate", value));
    }
    if config.mtu.is_some() {
        pairs.push(("mtu", nic.mtu.to_string()));
    }
    if let Some(name) = &config.vifname {
        pairs.push(("vifname", name.clone()));
    }
    if let Some(name) = &config.gateway_device {
        pairs.push(("gatewaydev", name.clone()));
    }
    pairs.extend([
        ("bridge", nic.bridge.clone()),
        ("handle", nic.devid.to_string()),
        ("type", "vif".into()),
        ("hotplug-status", String::new()),
    ]);
    let mut n = both_backends("vif", dom, nic.devid, &front, &back, pairs);
    n.dir(&*front, &guest_owns(dom));
    for (key, value) in [
        ("backend", back.as_str()),
        ("backend-id", "0"),
        ("state", "1"),
        ("handle", &nic.devid.to_string()),
        ("mac", &nic.mac_text()),
        ("trusted", trusted(config.trusted)),
    ] {
        n.put(format!("{front}/{key}"), value);
    }
    n.0.push(Node {
        path: format!("{front}/mtu"),
        value: nic.mtu.to_string(),
        permissions: Some(dom0_owns(dom).to_vec()),
        made: false,
    });
    n
}
