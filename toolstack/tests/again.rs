//! Guests that end again and again: each is created again, later and later, unless somebody has had enough of it. The
//! clock is the test's.

mod common;

use std::cell::Cell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::{FakeStore, FakeXen, Faults, kernel_file};
use xen_hal::{DomainControl, Inspect, Result, ShutdownReason, Store};
use xen_sys::{DomId, Mfn, Pfn, VcpuId};
use xlrs::config::{Source, load};
use xlrs::create::create;
use xlrs::destroy::destroy;
use xlrs::power::{self, Request};
use xlrs::prepare::Prepared;
use xlrs::supervise::{Supervisor, is_waiting};
use xlrs::userdata::{self, Userdata};

/// Nobody's memory is looked at here.
impl Inspect for FakeXen {
    fn guest_frames(&self, dom: DomId) -> Result<Vec<(Pfn, Mfn)>> {
        panic!("domain {dom} is not to be dumped");
    }

    fn copy_frames(&self, dom: DomId, _: &[Mfn], _: &mut Vec<u8>) -> Result<()> {
        panic!("domain {dom} is not to be dumped");
    }

    fn vcpu_context(&self, dom: DomId, _: VcpuId) -> Result<Vec<u8>> {
        panic!("domain {dom} is not to be dumped");
    }
}

struct World {
    root: PathBuf,
    xen: FakeXen,
    store: FakeStore,
    now: Cell<SystemTime>,
}

impl World {
    fn new(root: &Path) -> World {
        let store = FakeStore::new(Faults::default());
        for folder in ["/vm", "/libxl", "/local/domain/0/backend/console"] {
            store.mkdir(None, folder).unwrap();
        }
        World {
            root: root.to_owned(),
            xen: FakeXen::new(Faults::default()),
            store,
            now: Cell::new(SystemTime::now()),
        }
    }

    fn create(&self, more: &str) {
        let kernel = self.root.join("kernel");
        let text = format!(
            "name='web'\nkernel='{}'\nmemory=16\n{more}\n",
            kernel.display()
        );
        let name = "test.cfg".into();
        let guest = Prepared::new(load(&[Source { name, text }]).unwrap().0).unwrap();
        create(&self.xen, &self.store, &guest).unwrap();
        self.note_creation();
    }

    /// The guest that there is.
    fn dom(&self) -> DomId {
        let [dom] = self.xen.domains()[..] else {
            panic!("there are {:?}", self.xen.domains());
        };
        DomId(dom)
    }

    /// Its file has the time of the test's clock.
    fn note_creation(&self) {
        let uuid = self.xen.domain(self.dom()).uuid;
        let path = userdata::path(self.dom(), &uuid, Userdata::Xlrs);
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(self.now.get()).unwrap();
    }

    fn pass(&self, ms: u64) {
        self.now.set(self.now.get() + Duration::from_millis(ms));
    }

    fn look(&self, supervisor: &mut Supervisor<'_, FakeXen, FakeStore>) {
        supervisor.look_around(&self.xen.list().unwrap());
    }

    /// The guest lives for so long and reboots; after so long, and no sooner, there is another.
    fn reboots(
        &self,
        supervisor: &mut Supervisor<'_, FakeXen, FakeStore>,
        lived_ms: u64,
        pause_ms: u64,
    ) {
        let about = format!("after {lived_ms} ms, a pause of {pause_ms} ms");
        let old = self.dom();
        self.pass(lived_ms);
        let reboot = ShutdownReason::Reboot;
        self.xen.remote_shutdown(old, reboot).unwrap();
        self.look(supervisor);
        if pause_ms > 0 {
            assert_eq!(self.dom(), old, "{about}");
            let left = Duration::from_millis(pause_ms);
            assert_eq!(supervisor.next_due(), Some(left), "{about}");
            self.pass(pause_ms - 1);
            self.look(supervisor);
            assert_eq!(self.dom(), old, "{about}");
            self.pass(1);
            assert_eq!(supervisor.next_due(), Some(Duration::ZERO), "{about}");
            self.look(supervisor);
        }
        assert_eq!(self.dom().0, old.0 + 1, "{about}");
        assert_eq!(supervisor.next_due(), None, "{about}");
        self.note_creation();
    }
}

#[test]
fn guests_that_end_at_once_come_back_later_and_later() {
    let root = std::env::temp_dir().join(format!("xlrs-again-{}", std::process::id()));
    std::fs::create_dir_all(&root).unwrap();
    xlrs::paths::set_root(&root);
    kernel_file(&root);

    let world = World::new(&root);
    let empty = world.store.nodes();
    let clock = || world.now.get();
    let supervisor = || Supervisor::new(&world.xen, &world.store, &clock);
    let mut first = supervisor();
    world.create("");
    for (lived_ms, pause_ms) in [
        (300, 0),
        (300, 1000),
        (9_999, 2000),
        // It has lived for long enough.
        (10_000, 0),
        (300, 0),
        (300, 1000),
        (300, 2000),
    ] {
        world.reboots(&mut first, lived_ms, pause_ms);
    }

    // A supervisor that is started meanwhile goes on where the last was.
    let end = |ms| {
        world.pass(ms);
        world
            .xen
            .remote_shutdown(world.dom(), ShutdownReason::Reboot)
            .unwrap();
    };
    end(300);
    world.look(&mut first);
    world.pass(1000);
    let mut second = supervisor();
    world.look(&mut second);
    assert_eq!(second.next_due(), Some(Duration::from_secs(3)));
    world.pass(3000);
    let old = world.dom();
    world.look(&mut second);
    assert_eq!(world.dom().0, old.0 + 1);
    world.note_creation();
    world.reboots(&mut second, 300, 8000);

    // Whoever asks it to reboot gets that anyway; whoever shuts it down or destroys it has ended it for good.
    for destroyed in [false, true] {
        end(300);
        world.look(&mut second);
        let info = world.xen.info(world.dom()).unwrap().unwrap();
        assert!(is_waiting(&info));
        power::ask(&world.xen, &world.store, info.dom, Request::Reboot).unwrap();
        assert_eq!(world.dom(), info.dom);
        match destroyed {
            true => destroy(&world.xen, &world.store, info.dom).unwrap(),
            false => power::ask(&world.xen, &world.store, info.dom, Request::Poweroff).unwrap(),
        }
        assert_eq!(world.xen.domains(), [0u16; 0]);
        world.look(&mut second);
        assert_eq!(second.next_due(), None);
        assert_eq!(world.store.nodes(), empty);
        world.create("");
        world.reboots(&mut second, 300, 0);
    }
    destroy(&world.xen, &world.store, world.dom()).unwrap();

    // What cannot be created again now, stays and is tried again.
    world.create("");
    let old = world.dom();
    let kernel = root.join("kernel");
    std::fs::rename(&kernel, root.join("gone")).unwrap();
    end(60_000);
    for pause_s in [1, 2, 4] {
        world.look(&mut second);
        assert_eq!(world.dom(), old);
        assert_eq!(second.next_due(), Some(Duration::from_secs(pause_s)));
        world.pass(pause_s * 1000);
    }
    std::fs::rename(root.join("gone"), &kernel).unwrap();
    world.look(&mut second);
    assert_eq!(world.dom().0, old.0 + 1);
    destroy(&world.xen, &world.store, world.dom()).unwrap();

    // Each of those that are set aside stays, and the pauses are the same.
    world.create("on_reboot='rename-restart'");
    for pause_ms in [0, 1000] {
        let old = *world.xen.domains().last().unwrap();
        world.pass(300);
        let reboot = ShutdownReason::Reboot;
        world.xen.remote_shutdown(DomId(old), reboot).unwrap();
        let before = world.xen.domains();
        world.look(&mut second);
        if pause_ms > 0 {
            assert_eq!(world.xen.domains(), before);
            world.pass(pause_ms);
            world.look(&mut second);
        }
        let mut expected = before.clone();
        expected.push(old + 1);
        assert_eq!(world.xen.domains(), expected);
        let uuid = world.xen.domain(DomId(old + 1)).uuid;
        let path = userdata::path(DomId(old + 1), &uuid, Userdata::Xlrs);
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(world.now.get()).unwrap();
    }
    std::fs::remove_dir_all(root).unwrap();
}
