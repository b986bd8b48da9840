//! A running disk is to go on with another image: what is said of it, and when it is done.

mod common;

use blkback::DataMove;
use common::{Guest, Host, page, request};
use xen_hal::{Store, StoreExt};
use xen_sys::io::blkif::OP_WRITE;

struct Scene {
    host: Host,
    guest: Guest,
    front: common::Front,
}

impl Scene {
    fn new() -> Scene {
        let mut host = Host::new(DataMove::Copy);
        let guest = Guest::new(&host, "/disk", "w");
        let front = guest.connect(&mut host);
        Scene { host, guest, front }
    }

    fn path(&self, node: &str) -> String {
        format!("{}/{node}", self.guest.back)
    }

    fn text(&self, node: &str) -> String {
        self.host.store.text(&self.path(node))
    }

    fn write(&mut self, node: &str, value: &str) {
        let path = self.path(node);
        self.host
            .store
            .write(None, &path, value.as_bytes())
            .unwrap();
        self.host.settle();
    }

    /// As a toolstack asks: nothing is left of what was asked before.
    fn ask(&mut self, params: &str) -> String {
        let status = self.path("next-status");
        self.host.store.rm_if_present(None, &status).unwrap();
        self.write("next-params", params);
        self.text("next-status")
    }

    fn works(&mut self) {
        let page = page(&self.guest, 1);
        let request = request(OP_WRITE, 1, 0, &[(page.gref(), 0, 7)]);
        assert_eq!(self.front.call(&mut self.host, &self.guest, request), 0);
    }
}

#[test]
fn what_cannot_follow_is_refused_by_name() {
    let mut scene = Scene::new();
    let other = Guest::new(&scene.host, "/other-image", "w");
    other.connect(&mut scene.host);
    let reader = Guest::new(&scene.host, "/read-only-one", "r");
    reader.connect(&mut scene.host);
    for (params, why) in [
        ("/missing", "os error 2"),
        ("/short", "it has 8 sectors, and the guest was told 2048"),
        ("vhdx:/a", "no file in a known format"),
        ("", "no file in a known format"),
        ("/other-image", "has it open"),
        ("/read-only-one", "has it open"),
        (&format!("vhdx:/{}", "é".repeat(1500)), "\"vhdx:/éé"),
    ] {
        let said = scene.ask(params);
        assert!(
            said.starts_with("refused ") && said.contains(why),
            "{params}: {said}"
        );
        // Even if the toolstack goes on all the same.
        if !params.is_empty() {
            scene.write("params", params);
        }
        assert_eq!(scene.text("physical-device-path"), "/disk", "{params}");
        scene.works();
        scene.write("params", "/disk");
    }
}

#[test]
fn it_follows_when_it_is_wanted() {
    let mut scene = Scene::new();
    assert_eq!(scene.ask("/a"), "ready");
    assert_eq!(scene.text("physical-device-path"), "/disk");
    // Somebody thinks better of it, and asks for another.
    assert_eq!(scene.ask("/ab"), "ready");
    scene.write("params", "vhdx:/nonsense");
    scene.works();
    scene.write("params", "/a");
    assert_eq!(
        scene.text("physical-device-path"),
        "/disk",
        "it is not the one"
    );
    scene.write("params", "/ab");
    assert_eq!(scene.text("physical-device-path"), "/ab");
    scene.works();
    // The old one is free, the new one is not.
    let other = Guest::new(&scene.host, "/disk", "w");
    other.connect(&mut scene.host);
    let third = Guest::new(&scene.host, "/ab", "w");
    scene.host.settle();
    assert_eq!(third.back_state(&scene.host), "5");
    // A toolstack that cleans up, and one that does not.
    let next = scene.path("next-params");
    scene.host.store.rm(None, &next).unwrap();
    scene.host.settle();
    scene.works();
    assert_eq!(scene.ask("/ab"), "", "it has that one");
    scene.works();
    let log = scene.host.log.lock().unwrap().join("\n");
    assert_eq!(log.matches("paused").count(), 1, "{log}");
}

/// Requests that run when the rings are paused are run by who comes next.
#[test]
fn what_runs_meanwhile_is_answered_once() {
    let mut scene = Scene::new();
    assert_eq!(scene.ask("/next"), "ready");
    let page = page(&scene.guest, 7);
    for id in 0..20 {
        let segments = [(page.gref(), 0, 0)];
        scene
            .front
            .send(&scene.guest, request(OP_WRITE, id, id, &segments));
    }
    // Some of them are begun.
    scene.host.connection().step();
    scene.write("params", "/next");
    assert_eq!(scene.text("physical-device-path"), "/next");
    let mut answered: Vec<u64> = std::iter::from_fn(|| scene.front.receive())
        .map(|(id, operation, status)| {
            assert_eq!((operation, status), (OP_WRITE, 0));
            id
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..20).collect::<Vec<u64>>());
    let disk = scene.host.disk.lock().unwrap();
    assert!(disk[..20 * 512].iter().all(|&byte| byte == 7));
}
