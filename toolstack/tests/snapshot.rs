//! A running disk goes on in a new image, on a hypervisor and a store in this process; whatever call fails, what the
//! guest is to come back with is there.

mod common;

use std::path::{Path, PathBuf};

use common::{FakeStore, FakeXen, Faults, kernel_file};
use xen_hal::{DomainControl, DomainInfo, Store};
use xlrs::config::{DiskFormat, Source, load};
use xlrs::create::create;
use xlrs::destroy::{Device, devices};
use xlrs::prepare::Prepared;
use xlrs::snapshot::snapshot_disk;
use xlrs::supervise::Marks;
use xlrs::userdata::{self, Userdata};
use xlrs::{Error, Kind};

struct Scene {
    root: PathBuf,
    xen: FakeXen,
    store: FakeStore,
    faults: Faults,
    info: DomainInfo,
    device: Device,
}

impl Scene {
    fn new(root: PathBuf) -> Scene {
        std::fs::create_dir_all(&root).unwrap();
        kernel_file(&root);
        xlrs::paths::set_root(&root);
        std::fs::write(root.join("base.img"), [0; 1 << 20]).unwrap();
        let faults = Faults::default();
        let (xen, store) = (FakeXen::new(faults.clone()), FakeStore::new(faults.clone()));
        for path in ["/vm", "/libxl", "/local/domain/0/backend/vbd"] {
            store.mkdir(None, path).unwrap();
        }
        let pid = std::process::id().to_string();
        store
            .write(None, "/tool/xlrs/blkback", pid.as_bytes())
            .unwrap();
        let at = root.display();
        let text = format!(
            "name='web'\nkernel='{at}/kernel'\nmemory=16\n\
             disk=['format=raw,vdev=xvda,access=rw,max-iops=40,target={at}/base.img']"
        );
        let source = Source {
            name: "test.cfg".into(),
            text,
        };
        let (config, _) = load(&[source]).unwrap_or_else(|e| panic!("{e}"));
        let dom = create(&xen, &store, &Prepared::new(config).unwrap()).unwrap();
        let info = xen.info(dom).unwrap().unwrap();
        let all = devices(&store, dom).unwrap();
        let device = all.into_iter().find(|device| device.kind == "vbd").unwrap();
        let scene = Scene {
            root,
            xen,
            store,
            faults,
            info,
            device,
        };
        for (node, value) in [("state", "4"), ("sectors", "2048"), ("sector-size", "512")] {
            scene.set(node, value);
        }
        scene
    }

    fn set(&self, node: &str, value: &str) {
        let path = format!("{}/{node}", self.device.backend);
        self.store.write(None, &path, value.as_bytes()).unwrap();
    }

    fn node(&self, node: &str) -> Option<String> {
        self.store.text(&format!("{}/{node}", self.device.backend))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn snapshot(&self, name: &str) -> Result<xlrs::snapshot::Snapshot, Error> {
        snapshot_disk(&self.store, &self.info, &self.device, &self.file(name))
    }

    /// What the files say of the disk's image: ours, and libxl's.
    fn named(&self) -> [(PathBuf, String); 2] {
        let read = |kind| userdata::read(self.info.dom, &self.info.uuid, kind).unwrap();
        let marks = Marks::decode(&read(Userdata::Xlrs)).unwrap();
        let ours = &marks.config.disks[0];
        let json: serde_json::Value = serde_json::from_str(&read(Userdata::Libxl)).unwrap();
        let libxl = &json["disks"][0];
        [
            (ours.target.clone(), ours.format.name().to_string()),
            (
                libxl["pdev_path"].as_str().unwrap().into(),
                libxl["format"].as_str().unwrap().to_string(),
            ),
        ]
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// One test: it has a root of its own, which is the process's.
#[test]
fn a_disk_goes_on_in_a_new_image() {
    let root = std::env::temp_dir().join(format!("xlrs-snapshot-{}", std::process::id()));
    let scene = Scene::new(root);
    refused(&scene);
    let base = scene.file("base.img");
    let done = scene.snapshot("one.qcow2").unwrap();
    let one = scene.file("one.qcow2");
    assert_eq!((&done.image, &done.backing), (&one, &base));
    assert_eq!((done.backing_format, done.sectors_512), ("raw", 2048));
    let words = format!(
        "format=qcow2,vdev=xvda,access=rw,max-iops=40,target={}",
        one.display()
    );
    assert_eq!(done.config, words);
    let both = |path: &Path| [(); 2].map(|()| (path.to_path_buf(), "qcow2".to_string()));
    assert_eq!(scene.named(), both(&one));
    assert_eq!(
        scene.node("params"),
        Some(format!("{}{}", DiskFormat::Qcow2.prefix(), one.display()))
    );
    assert_eq!(
        (scene.node("next-params"), scene.node("next-status")),
        (None, None)
    );
    let done = scene.snapshot("two.qcow2").unwrap();
    assert_eq!((done.backing, done.backing_format), (one.clone(), "qcow2"));
    assert_eq!(scene.named(), both(&scene.file("two.qcow2")));
    any_call_fails(&scene);
}

fn refused(scene: &Scene) {
    let (params, named) = (scene.node("params"), scene.named());
    let check = |error: Error, kind: Kind, part: &str| {
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.hint.is_some(), "{error}");
        assert!(!scene.file("new.qcow2").exists(), "{error}");
        assert_eq!(
            (scene.node("params"), scene.named()),
            (params.clone(), named.clone())
        );
        assert_eq!(scene.node("next-params"), None, "{error}");
    };
    let snapshot = |name: &str| scene.snapshot(name).unwrap_err();
    check(snapshot("base.img"), Kind::Exists, "there is such a file");
    check(snapshot("no/folder"), Kind::Invalid, "ENOENT");
    let why = "its backing file \"/a\" is not opened: no folder is allowed for such files";
    scene.store.refuse_images(Some(why));
    check(snapshot("new.qcow2"), Kind::Invalid, "--backing FOLDER");
    scene
        .store
        .refuse_images(Some("it has more than 16 files behind it"));
    check(snapshot("new.qcow2"), Kind::Invalid, "qemu-img convert");
    scene.store.refuse_images(None);
    scene.set("mode", "r");
    check(snapshot("new.qcow2"), Kind::Invalid, "only reads it");
    scene.set("mode", "w");
    for (backend, part) in [
        ("/local/domain/0/backend/qdisk/1/51712", "QEMU serves it"),
        ("/local/domain/7/backend/vbd/1/51712", "domain 7 serves it"),
        (
            "/local/domain/0/backend/9pfs/1/0",
            "9pfs is no back end of ours",
        ),
    ] {
        let device = Device {
            backend: backend.into(),
            ..scene.device.clone()
        };
        let path = scene.file("new.qcow2");
        let error = snapshot_disk(&scene.store, &scene.info, &device, &path).unwrap_err();
        check(error, Kind::Invalid, part);
    }
}

fn any_call_fails(scene: &Scene) {
    let (mut failures, mut pending) = (0, PathBuf::new());
    for n in 0.. {
        let (before, name) = (scene.node("params").unwrap(), format!("{n}.qcow2"));
        let image = scene.file(&name);
        scene.faults.fail(n);
        let result = scene.snapshot(&name);
        let failed = scene.faults.has_failed();
        scene.faults.stop();
        // Whatever the guest may be created from, or the back end be started with, is there.
        let after = scene.node("params").unwrap();
        let now = Path::new(after.strip_prefix("qcow2:").unwrap());
        let [ours, libxl] = scene.named();
        assert_eq!(ours, libxl, "call {n}");
        for path in [now, &ours.0] {
            assert!(path.exists(), "call {n}: {}", path.display());
        }
        if now == image {
            assert_eq!(ours.0, image, "call {n}");
        } else {
            assert_eq!(after, before, "call {n}");
            assert!(result.is_err(), "call {n}");
        }
        // By the files it may be this one, on top of what it has, until the next snapshot.
        assert!([now, &image, &pending].contains(&&*ours.0), "call {n}");
        if ours.0 != image {
            assert!(!image.exists(), "call {n}");
        }
        failures += usize::from(result.is_err());
        pending = ours.0;
        if !failed {
            break;
        }
    }
    assert!(failures > 10, "only {failures} calls were made to fail");
    assert!(scene.xen.info(scene.info.dom).unwrap().is_some());
}
