//! Running guests are changed, on a hypervisor and a store in this process: placed, renamed, given memory
//! and devices; whatever call fails, they are as before or as wanted.

mod common;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use common::{FakeStore, FakeXen, Faults, kernel_file};
use xen_hal::{CpuMap, DomainControl, DomainInfo, Share, Store, Timed};
use xen_sys::DomId;
use xlrs::attach::{Unwilling, attach_disk, clear_unfinished, detach};
use xlrs::config::{DiskConfig, Source, load};
use xlrs::create::create;
use xlrs::destroy::{destroy, devices};
use xlrs::prepare::Prepared;
use xlrs::underway::Underway;
use xlrs::userdata::{self, Userdata};
use xlrs::{Kind, memory, rename, retrieve};

fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = std::env::temp_dir().join(format!("xlrs-changes-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        kernel_file(&root);
        xlrs::paths::set_root(&root);
        root
    })
}

/// One test at a time: they share what tells of work that is underway.
static ONE: Mutex<()> = Mutex::new(());

struct World {
    _alone: MutexGuard<'static, ()>,
    xen: FakeXen,
    store: FakeStore,
    faults: Faults,
}

impl World {
    /// A host whose block back end is this very process.
    fn new() -> World {
        root();
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let faults = Faults::default();
        let (xen, store) = (FakeXen::new(faults.clone()), FakeStore::new(faults.clone()));
        for path in ["/vm", "/libxl", "/local/domain/0/backend/vbd"] {
            store.mkdir(None, path).unwrap();
        }
        let pid = std::process::id().to_string();
        let node = "/tool/xlrs/blkback";
        store.write(None, node, pid.as_bytes()).unwrap();
        World {
            _alone: alone,
            xen,
            store,
            faults,
        }
    }

    fn create(&self, name: &str, more: &str) -> DomainInfo {
        let root = root().display();
        let text = format!("name='{name}'\nkernel='{root}/kernel'\nmemory=16\nmaxmem=32\n{more}");
        let source = Source {
            name: "test.cfg".into(),
            text,
        };
        let (config, _) = load(&[source]).unwrap_or_else(|e| panic!("{e}"));
        let guest = Prepared::new(config).unwrap();
        let dom = create(&self.xen, &self.store, &guest).unwrap();
        self.info(dom)
    }

    fn info(&self, dom: DomId) -> DomainInfo {
        self.xen.info(dom).unwrap().unwrap()
    }

    fn home(&self, dom: DomId, key: &str) -> Option<String> {
        self.store.text(&format!("/local/domain/{dom}/{key}"))
    }
}

fn disk(name: &str) -> DiskConfig {
    let path = root().join(name);
    std::fs::write(&path, [0; 4096]).unwrap();
    DiskConfig::parse(&format!("{},raw,xvdb,w", path.display())).unwrap()
}

fn files(info: &DomainInfo) -> [Option<String>; 2] {
    [Userdata::Libxl, Userdata::Xlrs].map(|kind| userdata::read(info.dom, &info.uuid, kind))
}

#[test]
fn a_guest_runs_where_its_configuration_wants_it() {
    let world = World::new();
    let info = world.create(
        "placed",
        "vcpus=2\ncpus=['0', 'node:1']\ncpus_soft='1'\ncpu_weight=512\ncap=50\npool='1'",
    );
    let domain = world.xen.domain(info.dom);
    let map = |cpus: &[u32]| Some(cpus.iter().copied().collect::<CpuMap>());
    assert_eq!(domain.affinity[&0], (map(&[0]), map(&[1])));
    assert_eq!(domain.affinity[&1], (map(&[2, 3]), map(&[1])));
    assert_eq!(domain.pool, 1);
    let share = Share::Weighted {
        weight: 512,
        cap: 50,
    };
    assert_eq!(domain.share, Some(share));
    assert_eq!(domain.map_kib, Some(32 << 10), "its kernel knows of maxmem");
    destroy(&world.xen, &world.store, info.dom).unwrap();
    // Under RTDS it has times; what is not said stays as the scheduler has it.
    let info = world.create("timed", "pool='2'\nperiod=20000\nextratime=0");
    let share = Share::Timed(Timed {
        period_us: 20_000,
        budget_us: 4_000,
        extra_time: false,
    });
    assert_eq!(world.xen.domain(info.dom).share, Some(share));
    destroy(&world.xen, &world.store, info.dom).unwrap();
    // Nothing is asked of the hypervisor where nothing is wanted.
    let info = world.create("free", "maxmem=16");
    let domain = world.xen.domain(info.dom);
    assert!(domain.affinity.is_empty() && domain.share.is_none() && domain.map_kib.is_none());
    destroy(&world.xen, &world.store, info.dom).unwrap();
}

#[test]
fn a_missing_pool_is_refused_and_leaves_nothing() {
    let world = World::new();
    let before = world.store.dump();
    let root = root().display();
    let text = format!("name='x'\nkernel='{root}/kernel'\nmemory=16\npool='nobody'");
    let source = Source {
        name: "test.cfg".into(),
        text,
    };
    let guest = Prepared::new(load(&[source]).unwrap().0).unwrap();
    let error = create(&world.xen, &world.store, &guest).unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    assert!(error.to_string().contains("nobody"), "{error}");
    assert_eq!(world.xen.domains(), [0u16; 0]);
    assert_eq!(world.store.dump(), before);
}

#[test]
fn names_are_changed_and_not_shared() {
    let world = World::new();
    let (a, b) = (world.create("a", ""), world.create("b", ""));
    rename::rename(&world.store, a.dom, &a.uuid, "c").unwrap();
    assert_eq!(world.home(a.dom, "name").as_deref(), Some("c"));
    let vm = format!("/vm/{}/name", xlrs::uuid::format(&a.uuid));
    assert_eq!(world.store.text(&vm).as_deref(), Some("c"));
    for (name, part) in [("b", "is called"), ("", "is empty"), ("1", "digits only")] {
        let error = rename::rename(&world.store, a.dom, &a.uuid, name).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.kind, Kind::Invalid);
    }
    // Its own name is no other's.
    rename::rename(&world.store, a.dom, &a.uuid, "c").unwrap();
    for info in [a, b] {
        destroy(&world.xen, &world.store, info.dom).unwrap();
    }
}

#[test]
fn memory_stays_within_its_limits() {
    let world = World::new();
    let info = world.create("sized", "");
    let (xen, store) = (&world.xen, &world.store);
    memory::set_target(xen, store, &info, 20 << 10).unwrap();
    let target = world.home(info.dom, "memory/target");
    assert_eq!(target.as_deref(), Some("20480"));
    let vm = format!("/vm/{}/memory", xlrs::uuid::format(&info.uuid));
    assert_eq!(store.text(&vm).as_deref(), Some("20"));
    let error = memory::set_target(xen, store, &info, 33 << 10).unwrap_err();
    assert!(error.to_string().contains("32 MiB"), "{error}");
    let error = memory::set_max(xen, store, &info, 19 << 10).unwrap_err();
    assert!(error.to_string().contains("20 MiB"), "{error}");
    memory::set_max(xen, store, &info, 64 << 10).unwrap();
    memory::set_target(xen, store, &info, 33 << 10).unwrap();
    let config = retrieve::libxl_config(xen, store, &info).unwrap().unwrap();
    assert_eq!(config["b_info"]["max_memkb"], 64 << 10);
    assert_eq!(config["b_info"]["target_memkb"], (33 << 10) - 1);
    assert_eq!(config["b_info"]["sched_params"]["weight"], 256);
    destroy(xen, store, info.dom).unwrap();
}

#[test]
fn a_disk_comes_and_goes_and_whatever_fails_nothing_is_left() {
    let world = World::new();
    let (xen, store) = (&world.xen, &world.store);
    let info = world.create("disks", "");
    let (before, files_before) = (store.dump(), files(&info));
    let disk = disk("hot.img");
    let mut steps = 0;
    for n in 0.. {
        world.faults.fail(n);
        let result = attach_disk(xen, store, &info, &disk);
        let failed = world.faults.has_failed();
        world.faults.stop();
        if let Err(error) = result {
            assert!(error.hint.is_some(), "call {n}: {error}");
            steps += 1;
        } else {
            let config = retrieve::libxl_config(xen, store, &info).unwrap().unwrap();
            assert_eq!(config["disks"][0]["vdev"], "xvdb", "call {n}");
            let error = attach_disk(xen, store, &info, &disk).unwrap_err();
            assert_eq!(error.kind, Kind::Exists, "{error}");
            let all = devices(store, info.dom).unwrap();
            let device = all.iter().find(|device| device.kind == "vbd").unwrap();
            detach(store, &info, device, Unwilling::Spare).unwrap();
            if !failed {
                break;
            }
        }
        assert!(!clear_unfinished(xen, store, |_| {}), "call {n}");
        assert_eq!(store.dump(), before, "call {n}");
        assert_eq!(files(&info), files_before, "call {n}");
        assert_eq!(store.open(), (0, 0), "call {n}");
    }
    assert!(steps > 10, "{steps} calls were made to fail");
    destroy(xen, store, info.dom).unwrap();
}

#[test]
fn what_fails_while_a_disk_is_detached_is_finished_later() {
    let world = World::new();
    let (xen, store) = (&world.xen, &world.store);
    let info = world.create("detached", "");
    let (before, files_before) = (store.dump(), files(&info));
    let disk = disk("going.img");
    for n in 0.. {
        attach_disk(xen, store, &info, &disk).unwrap();
        let all = devices(store, info.dom).unwrap();
        let device = all.iter().find(|device| device.kind == "vbd").unwrap();
        world.faults.fail(n);
        let result = detach(store, &info, device, Unwilling::Spare);
        let failed = world.faults.has_failed();
        world.faults.stop();
        if result.is_err() {
            clear_unfinished(xen, store, |_| {});
            // Either it was never begun, or it has been brought to its end.
            let all = devices(store, info.dom).unwrap();
            if let Some(device) = all.iter().find(|device| device.kind == "vbd") {
                detach(store, &info, device, Unwilling::Spare).unwrap();
            }
        }
        assert_eq!(store.dump(), before, "call {n}");
        assert_eq!(files(&info), files_before, "call {n}");
        if !failed {
            break;
        }
    }
    destroy(xen, store, info.dom).unwrap();
}

#[test]
fn what_a_killed_process_was_attaching_is_taken_away() {
    let world = World::new();
    let (xen, store) = (&world.xen, &world.store);
    let info = world.create("killed", "");
    let (before, files_before) = (store.dump(), files(&info));
    attach_disk(xen, store, &info, &disk("killed.img")).unwrap();
    // As it was in the middle: the device is there, and so is the mark, which nobody holds.
    Underway::begin_device(&info.uuid, "vbd", "51728")
        .unwrap()
        .leave();
    let said = std::cell::RefCell::new(Vec::new());
    let at_work = clear_unfinished(xen, store, |line| said.borrow_mut().push(line.to_string()));
    assert!(!at_work);
    assert!(said.borrow()[0].contains("removed"), "{said:?}");
    assert_eq!(store.dump(), before);
    assert_eq!(files(&info), files_before);
    // One that somebody holds is left alone.
    let held = Underway::begin_device(&info.uuid, "vbd", "51728").unwrap();
    assert!(clear_unfinished(xen, store, |_| {}));
    drop(held);
    destroy(xen, store, info.dom).unwrap();
}
