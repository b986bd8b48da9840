//! The network part of the handshake: with libxl's script, without one, and with nonsense.

mod common;

use common::{Guest, Host};
use netback::Plan;

fn plan(name: &str, bridge: Option<&str>, by_script: bool) -> Plan {
    Plan {
        name: name.to_string(),
        bridge: bridge.map(String::from),
        by_script,
    }
}

#[test]
fn devices_are_made_as_the_toolstack_wants() {
    let rows = [
        (&[][..], plan("vif1.0", Some("xenbr0"), false)),
        (&[("bridge", "")][..], plan("vif1.0", None, false)),
        (
            &[("vifname", "web")][..],
            plan("web", Some("xenbr0"), false),
        ),
        (
            &[("hotplug-status", "")][..],
            plan("vif1.0", Some("xenbr0"), true),
        ),
        // The script gives it its name.
        (
            &[("hotplug-status", ""), ("vifname", "web")][..],
            plan("vif1.0", Some("xenbr0"), true),
        ),
    ];
    for (nodes, expected) in rows {
        let mut host = Host::new();
        let guest = Guest::new(&host, nodes);
        host.settle();
        assert_eq!(guest.back_state(&host), "2");
        assert_eq!(*host.plans.lock().unwrap(), [expected]);
    }
    for name in ["a/b", "..", "sixteen-letters-", "a b", "x%d"] {
        let mut host = Host::new();
        let guest = Guest::new(&host, &[("vifname", name)]);
        host.settle();
        assert_eq!(guest.back_state(&host), "5", "{name}");
        assert!(host.plans.lock().unwrap().is_empty());
    }
}

#[test]
fn the_script_is_waited_for() {
    let mut host = Host::new();
    let guest = Guest::new(&host, &[("hotplug-status", "")]);
    host.settle();
    let _front = guest.offer(&host, false);
    host.settle();
    assert_eq!(guest.back_state(&host), "2");
    host.store
        .fill(&guest.back, &[("hotplug-status", "connected")]);
    host.settle();
    assert_eq!(guest.back_state(&host), "4");
}

#[test]
fn a_failed_script_ends_the_interface() {
    let mut host = Host::new();
    let guest = Guest::new(&host, &[("hotplug-status", "")]);
    host.settle();
    let front = guest.offer(&host, false);
    host.store.fill(
        &guest.back,
        &[("hotplug-error", "no bridge"), ("hotplug-status", "error")],
    );
    host.settle();
    assert_eq!(guest.back_state(&host), "5");
    let error = host
        .store
        .text("/local/domain/0/error/backend/vif/1/0/error");
    assert!(error.contains("no bridge"), "{error}");
    guest.close(&mut host, front);
}

#[test]
fn nonsense_ends_the_interface_with_a_message() {
    let rows = [
        ("tx-ring-ref", "99999", "grant 99999"),
        ("rx-ring-ref", "", "rx-ring-ref"),
        ("event-channel-tx", "4096", "EVTCHNOP_bind_interdomain"),
        ("event-channel-rx", "-3", "event-channel-rx"),
        ("request-rx-copy", "0", "request-rx-copy"),
        ("feature-rx-notify", "0", "feature-rx-notify"),
        ("multi-queue-num-queues", "0", "multi-queue"),
        ("multi-queue-num-queues", "2", "multi-queue"),
    ];
    for (node, value, message) in rows {
        let mut host = Host::new();
        let guest = Guest::new(&host, &[]);
        host.settle();
        let front = guest.offer(&host, true);
        guest.set(&host, node, value);
        host.settle();
        assert_eq!(guest.back_state(&host), "5", "{node}={value}");
        let error = host
            .store
            .text("/local/domain/0/error/backend/vif/1/0/error");
        assert!(error.contains(message), "{node}={value}: {error}");
        guest.close(&mut host, front);
        guest.remove(&mut host);
        drop(host.bus);
        host.world.assert_nothing_left();
    }
}
