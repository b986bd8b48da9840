//! Tests of the nodes: the nodes are those that stock xl 4.17 writes for the same guest.

use super::*;
use crate::config::{Source, load};

/// What `xenstore-ls -fp` shows of a guest that stock xl 4.17 has just created, without what the back
/// ends and daemons have added.
const STOCK: &str = include_str!("../testdata/xenstore-xl-4.17.txt");

#[test]
fn the_nodes_are_those_of_stock_xl() {
    let text = "name='deb'\nkernel='/lab/debian/vmlinuz'\nramdisk='/lab/debian/initrd'\nmemory=128\n\
                cmdline='console=hvc0'\ndisk=['/tmp/a.img,raw,xvda,w']\n\
                vif=['bridge=xenbr0,mac=00:16:3e:01:02:03']";
    let source = Source {
        name: "d.cfg".into(),
        text: text.into(),
    };
    let (config, _) = load(&[source]).unwrap();
    let dom = DomId(1);
    let facts = Facts {
        dom,
        uuid: uuid::parse("6a38c574-b3cc-4e63-8b6c-0ae82fba39ab").unwrap(),
        config: &config,
        store: (Mfn(472577), Port(1)),
        console: (Mfn(472578), Port(2)),
        now: (1_795_436_754, 85),
    };
    let mut nodes = guest(&facts);
    let physical = PhysicalDevice {
        path: "/dev/loop0".into(),
        number: (7, 0),
    };
    nodes.extend(disk(dom, &config.disks[0], Some(&physical)));
    let card = Nic {
        config: config.nics[0].clone(),
        devid: 0,
        mac: config.nics[0].mac.unwrap(),
        bridge: "xenbr0".into(),
        mtu: 1500,
    };
    nodes.extend(nic(dom, &card));

    let compact = nodes.clone().compact();
    assert!(compact.0.len() < nodes.0.len());
    assert_eq!(sorted(listing(&compact)), sorted(listing(&nodes)));

    let shared = |line: &&String| !line.contains("/1") && line.ends_with("\"\" (n0)");
    let mut ours: Vec<String> = listing(&nodes);
    ours.retain(|line| !shared(&line) || line.contains("6a38c574"));
    let mut theirs: Vec<String> = STOCK.lines().map(String::from).collect();
    // The wanted differences: nothing is to be done when the disk is removed, a guest has no business to
    // say who serves its console, and dom0's kernel has none with that console.
    theirs.retain(|line| !line.starts_with("/local/domain/0/backend/console"));
    for line in &mut theirs {
        *line = line.replace("/etc/xen/scripts/block", "/bin/true");
        if line.starts_with("/local/domain/1/console/backend-id") {
            *line = line.replace("(n1,r0)", "(n0,r1)");
        }
    }
    let missing: Vec<_> = theirs.iter().filter(|line| !ours.contains(line)).collect();
    let extra: Vec<_> = ours.iter().filter(|line| !theirs.contains(line)).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "missing {missing:#?}\nextra {extra:#?}"
    );
}

/// The nodes as xenstore-ls shows them, permissions inherited from above.
fn listing(nodes: &Nodes) -> Vec<String> {
    let mut known: Vec<(String, String, Vec<Permission>)> = Vec::new();
    for node in &nodes.0 {
        let mut missing = vec![node.path.as_str()];
        let mut at = node.path.as_str();
        let inherited = loop {
            let Some((up, _)) = at.rsplit_once('/').filter(|(up, _)| !up.is_empty()) else {
                break vec![Permission::owner(DomId::DOM0)];
            };
            if let Some((_, _, permissions)) = known.iter().find(|(path, ..)| path == up) {
                break permissions.clone();
            }
            missing.push(up);
            at = up;
        };
        for path in missing.into_iter().rev() {
            let is_node = path == node.path;
            let value = if is_node { &*node.value } else { "" };
            let permissions = match &node.permissions {
                Some(list) if is_node => list.clone(),
                _ => inherited.clone(),
            };
            known.retain(|(old, ..)| old != path);
            known.push((path.into(), value.into(), permissions));
        }
    }
    known
        .into_iter()
        .map(|(path, value, permissions)| {
            let list: Vec<_> = permissions.iter().map(Permission::to_string).collect();
            format!("{path} = \"{value}\" ({})", list.join(","))
        })
        .collect()
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

/// The value of the node with this end.
fn value_of(nodes: &Nodes, end: &str) -> Option<String> {
    let node = nodes.0.iter().find(|node| node.path.ends_with(end));
    node.map(|node| node.value.clone())
}

#[test]
fn what_is_said_of_a_device_stands_in_its_nodes() {
    let dom = DomId(1);
    for (text, end, value) in [
        ("/a,raw,xvda,w", "/direct-io-safe", None),
        ("/a,raw,xvda,w,direct-io-safe", "/direct-io-safe", Some("1")),
        ("/a,raw,xvda,w", "/trusted", Some("1")),
        ("/a,raw,xvda,w,untrusted", "/trusted", Some("0")),
        ("/a,raw,xvda,w,no-discard", "/discard-enable", Some("0")),
    ] {
        let nodes = disk(dom, &crate::config::DiskConfig::parse(text).unwrap(), None);
        assert_eq!(value_of(&nodes, end).as_deref(), value, "{text}");
    }
    for (text, end, value) in [
        ("", "/gatewaydev", None),
        ("gatewaydev=eth0", "/gatewaydev", Some("eth0")),
        ("untrusted", "/trusted", Some("0")),
        ("rate=1MB/s@20m", "/rate", Some("20000,20000")),
    ] {
        let config = crate::config::NicConfig::parse(text, &mut Vec::new()).unwrap();
        let card = Nic {
            config,
            devid: 0,
            mac: [0; 6],
            bridge: "xenbr0".into(),
            mtu: 1500,
        };
        assert_eq!(value_of(&nic(dom, &card), end).as_deref(), value, "{text}");
    }
}
