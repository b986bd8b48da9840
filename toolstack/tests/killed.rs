//! A process that creates or removes a guest is killed at each of its calls, one after another: what it leaves
//! is cleared away by the supervisor, or was never touched. The killed process is this very test program,
//! started again: no destructor runs in it, and its locks go as the kernel lets them go.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use common::{FakeStore, FakeXen, Faults, kernel_file};
use serde::{Deserialize, Serialize};
use xen_hal::{DomainControl, Store};
use xen_sys::DomId;
use xlrs::config::{DomainConfig, Source, load};
use xlrs::create::{create, dress};
use xlrs::destroy::destroy;
use xlrs::pool;
use xlrs::prepare::Prepared;
use xlrs::supervise::{self, clear_gone, clear_unfinished};

/// What is left of the world when a process has been killed.
#[derive(Serialize, Deserialize)]
struct World {
    domains: Vec<(u16, [u8; 16])>,
    nodes: BTreeMap<String, String>,
    /// Whether it was killed, and not done before.
    killed: bool,
}

/// What a child is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Deed {
    Create,
    Destroy,
    /// Of a guest that a stock xl has made: there is no file of ours about it.
    DestroyForeign,
    /// Of a shell of the pool.
    Dress,
    /// Of a shell.
    FillPool,
}

#[derive(Clone, Serialize, Deserialize)]
struct Order {
    root: PathBuf,
    deed: Deed,
    kill_at: u64,
    /// With a supervisor's index.
    indexed: bool,
    /// Whose back end it is, so that it goes on living.
    parent: u32,
}

const ORDER: &str = "XLRS_TEST_ORDER";
const UUID: &str = "6b1c5a52-93ab-4a9c-8d2e-0000000000aa";

#[test]
fn killed_anywhere_nothing_is_left_behind() {
    if let Ok(order) = std::env::var(ORDER) {
        return obey(&serde_json::from_str(&order).unwrap());
    }
    let root = std::env::temp_dir().join(format!("xlrs-killed-{}", std::process::id()));
    std::fs::create_dir_all(&root).unwrap();
    xlrs::paths::set_root(&root);
    kernel_file(&root);
    std::fs::write(root.join("disk"), [0; 4096]).unwrap();
    for deed in [
        Deed::Create,
        Deed::Destroy,
        Deed::DestroyForeign,
        Deed::Dress,
        Deed::FillPool,
    ] {
        for indexed in [false, true] {
            let mut n = 0;
            loop {
                let order = Order {
                    root: root.clone(),
                    deed,
                    kill_at: n,
                    indexed,
                    parent: std::process::id(),
                };
                if !kill_and_look(&order) {
                    break;
                }
                n += 1;
            }
            let least = if deed == Deed::Create { 80 } else { 20 };
            assert!(n > least, "{deed:?} was killed only {n} times");
        }
    }
    std::fs::remove_dir_all(root).unwrap();
}

/// Has a child killed and clears up behind it; whether it was killed.
fn kill_and_look(order: &Order) -> bool {
    let about = format!(
        "{:?} killed at call {}, index {}",
        order.deed, order.kill_at, order.indexed
    );
    let out = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "killed_anywhere_nothing_is_left_behind",
            "--nocapture",
        ])
        .env(ORDER, serde_json::to_string(order).unwrap())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&out.stderr);
    let left = std::fs::read(order.root.join("world"));
    let left = left.unwrap_or_else(|e| panic!("{about}: {e}: {words}"));
    std::fs::remove_file(order.root.join("world")).unwrap();
    let left: World = serde_json::from_slice(&left).unwrap();

    // The world goes on without it.
    let (xen, store) = (
        FakeXen::new(Faults::default()),
        FakeStore::new(Faults::default()),
    );
    for (dom, uuid) in &left.domains {
        xen.adopt(*dom, *uuid);
    }
    for (path, value) in &left.nodes {
        store.write(None, path, value.as_bytes()).unwrap();
    }
    clear_unfinished(&xen, &store);
    clear_gone(&xen, &store, &xen.list().unwrap());
    if matches!(order.deed, Deed::Dress | Deed::FillPool) {
        // A shell that is whole goes on being one; now there shall be none any more.
        assert!(xen.domains().len() <= 1, "{about}");
        assert_eq!(
            xen.domains().len() - usize::from(!left.killed && order.deed == Deed::Dress),
            pool::uuids().len(),
            "{about}"
        );
        pool::wish(config(&order.root), 0).unwrap();
        pool::fill(&xen, &store).unwrap();
    }
    let empty = FakeStore::new(Faults::default());
    furnish(&empty, order);
    let untouched = order.deed != Deed::Create && xen.domains().len() == 1;
    let done = !left.killed && matches!(order.deed, Deed::Create | Deed::Dress);
    let untouched = untouched && matches!(order.deed, Deed::Destroy | Deed::DestroyForeign);
    if untouched || done {
        // It was killed before it began, or had done its work: the next command finds a whole guest.
        assert!(
            !left.killed || store.nodes() == left.nodes,
            "{about}: half of it is gone"
        );
        destroy(&xen, &store, DomId(xen.domains()[0])).unwrap();
    }
    assert_eq!(xen.domains(), [0u16; 0], "{about}");
    assert_eq!(store.nodes(), empty.nodes(), "{about}");
    assert_eq!(
        files(&order.root),
        ["run/xen/domid-history", "run/xlrs/lock/claims"],
        "{about}"
    );
    left.killed
}

/// The files that stay behind on the host, but those that the test has put there.
fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.join("run"), root.join("var")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => found.push(path.strip_prefix(root).unwrap().display().to_string()),
            }
        }
    }
    found.sort();
    // They stay until the host goes down, as libxl's do.
    let stay = ["run/xen/domid-history", "run/xlrs/lock/claims"];
    found.retain(|file| !stay.contains(&file.as_str()));
    found.splice(0..0, stay.map(String::from));
    found
}

fn furnish(store: &FakeStore, order: &Order) {
    let mut folders = vec![
        "/vm",
        "/libxl",
        "/local/domain/0/backend/vbd",
        "/local/domain/0/backend/console",
    ];
    let pid = order.parent.to_string();
    store
        .write(None, "/tool/xlrs/blkback", pid.as_bytes())
        .unwrap();
    if order.indexed {
        folders.extend(xlrs::index::FOLDERS);
        store.write(None, supervise::NODE, pid.as_bytes()).unwrap();
    }
    for folder in folders {
        store.mkdir(None, folder).unwrap();
    }
}

/// In the child: does the deed, and ends in the middle of it.
fn obey(order: &Order) {
    xlrs::paths::set_root(&order.root);
    let faults = Faults::default();
    let world = Rc::new((FakeXen::new(faults.clone()), FakeStore::new(faults.clone())));
    let (xen, store) = &*world;
    furnish(store, order);
    let mut config = config(&order.root);
    if matches!(order.deed, Deed::Dress | Deed::FillPool) {
        pool::wish(config.clone(), 1).unwrap();
    } else {
        config.uuid = xlrs::uuid::parse(UUID);
    }
    let guest = Prepared::new(config.clone()).unwrap();
    let leave = {
        let (world, root) = (world.clone(), order.root.clone());
        move |killed| {
            let (xen, store) = &*world;
            let domains = xen.domains();
            let left = World {
                domains: domains
                    .iter()
                    .map(|dom| (*dom, xen.domain(DomId(*dom)).uuid))
                    .collect(),
                nodes: store.nodes(),
                killed,
            };
            std::fs::write(root.join("world"), serde_json::to_vec(&left).unwrap()).unwrap();
            // As kill -9 does, this runs no destructor.
            std::process::exit(0);
        }
    };
    let end = leave.clone();
    if order.deed == Deed::Create {
        faults.end_at(order.kill_at, move || end(true));
        create(xen, store, &guest).unwrap();
    } else if order.deed == Deed::FillPool {
        faults.end_at(order.kill_at, move || end(true));
        pool::fill(xen, store).unwrap();
    } else if order.deed == Deed::Dress {
        pool::fill(xen, store).unwrap();
        config.cmdline = "another".into();
        faults.end_at(order.kill_at, move || end(true));
        let shell = pool::take(xen, &config).unwrap().unwrap();
        dress(xen, store, shell, config).unwrap().keep();
    } else {
        let dom = create(xen, store, &guest).unwrap();
        if order.deed == Deed::DestroyForeign {
            xlrs::userdata::remove(dom, &guest.uuid).unwrap();
        }
        faults.end_at(order.kill_at, move || end(true));
        destroy(xen, store, dom).unwrap();
    }
    leave(false);
}

fn config(root: &Path) -> DomainConfig {
    let root = root.display();
    let text =
        format!("name='web'\nkernel='{root}/kernel'\nmemory=16\ndisk=['{root}/disk,raw,xvda,w']");
    let source = Source {
        name: "test.cfg".into(),
        text,
    };
    load(&[source]).unwrap().0
}
