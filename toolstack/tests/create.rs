//! Whole creations and removals on a hypervisor and a store in this process.

mod common;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use common::{FakeStore, FakeXen, Faults, kernel_file};
use xen_hal::{DomainControl, Store};
use xen_sys::{DomId, GrantRef};
use xlrs::claims::Claims;
use xlrs::config::{Source, load};
use xlrs::create::{create, create_guarded, dress};
use xlrs::destroy::destroy;
use xlrs::prepare::Prepared;
use xlrs::store::find_by_name;
use xlrs::supervise::clear_unfinished;
use xlrs::underway::{self, Underway};
use xlrs::{Error, Kind, pool, power};

/// A folder for all tests of this file, which takes the place of `/`.
fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = std::env::temp_dir().join(format!("xlrs-create-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        kernel_file(&root);
        std::fs::write(root.join("ramdisk"), [7; 5000]).unwrap();
        xlrs::paths::set_root(&root);
        root
    })
}

fn prepared(name: &str, more: &str) -> Prepared {
    let root = root().display();
    let text = format!(
        "name='{name}'\nkernel='{root}/kernel'\nramdisk='{root}/ramdisk'\nmemory=16\ncmdline='hello'\n{more}"
    );
    let source = Source {
        name: "test.cfg".into(),
        text,
    };
    let (config, _) = load(&[source]).unwrap_or_else(|e| panic!("{e}"));
    Prepared::new(config).unwrap()
}

/// Held by tests in which marks lie about for a while: another would take them for leftovers.
static MARKS: Mutex<()> = Mutex::new(());

/// A disk for this test alone: others run at the same time.
fn disk() -> String {
    let test = std::thread::current();
    let path = root().join(format!("disk-{}", test.name().unwrap_or("main")));
    if !path.exists() {
        std::fs::write(&path, [0; 4096]).unwrap();
    }
    path.display().to_string()
}

fn with_disk(name: &str) -> Prepared {
    prepared(name, &format!("disk=['{},raw,xvda,w']", disk()))
}

/// A host whose block back end is this very process.
fn host() -> (FakeXen, FakeStore, Faults) {
    root();
    let faults = Faults::default();
    let (xen, store) = (FakeXen::new(faults.clone()), FakeStore::new(faults.clone()));
    for path in [
        "/vm",
        "/libxl",
        "/local/domain/0/backend/vbd",
        "/local/domain/0/backend/console",
    ] {
        store.mkdir(None, path).unwrap();
    }
    let pid = std::process::id().to_string();
    store
        .write(None, "/tool/xlrs/blkback", pid.as_bytes())
        .unwrap();
    (xen, store, faults)
}

fn userdata_files(id: &[u8; 16]) -> usize {
    let id = xlrs::uuid::format(id);
    let folder = xlrs::paths::at(xlrs::paths::USERDATA);
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    names
        .filter(|e| e.file_name().to_string_lossy().contains(&id))
        .count()
}

#[test]
fn a_guest_finds_what_it_needs() {
    let (xen, store, _) = host();
    let before = store.dump();
    let guest = with_disk("web");
    let dom = create(&xen, &store, &guest).unwrap();
    let domain = xen.domain(dom);
    let start = domain.start.unwrap();
    assert_eq!(domain.pauses, 1, "it is left paused");
    assert_eq!(Some(start.l4.0), domain.pinned);

    let info = xen.walk(dom, start.rsi).unwrap();
    assert!(xen.frame(info).starts_with(b"xen-3.0-x86_64\0"));
    assert_eq!(&xen.frame(info)[128..134], b"hello\0");
    assert_eq!(xen.word(info, 32), 4096);
    assert_eq!(xen.word(info, 40), domain.shared_info << 12);
    let code = xen.walk(dom, start.rip).unwrap();
    assert!(xen.frame(code).starts_with(b"the kernel's code\0"));
    assert!(xen.walk(dom, start.rsp - 8).is_some(), "there is a stack");
    assert_eq!(domain.hypercall_page, xen.walk(dom, start.rip + 0x1000));
    let list = xen.walk(dom, xen.word(info, 104)).unwrap();
    assert_eq!(xen.word(list, 8 * 7), domain.p2m[7]);
    let (initrd, len) = (xen.word(info, 112), xen.word(info, 120));
    assert_eq!(len, 5000);
    assert_eq!(
        &xen.frame(xen.walk(dom, initrd + 4096).unwrap())[..905],
        [vec![7; 904], vec![0]].concat()
    );
    let (store_frame, console_frame) = (xen.word(info, 56), xen.word(info, 72));
    let grants: Vec<_> = domain
        .grants
        .iter()
        .map(|(g, d, m)| (*g, *d, m.0))
        .collect();
    assert_eq!(
        grants,
        [
            (GrantRef(0), DomId::DOM0, console_frame),
            (GrantRef(1), DomId::DOM0, store_frame)
        ]
    );
    assert_eq!(
        xen.frame(domain.shared_info)[..66],
        [vec![0, 1], vec![0; 62], vec![0, 1]].concat()
    );

    let home = format!("/local/domain/{dom}");
    assert_eq!(store.text(&format!("{home}/name")).as_deref(), Some("web"));
    assert_eq!(
        store.text(&format!("{home}/console/ring-ref")),
        Some(console_frame.to_string())
    );
    assert_eq!(store.introduced(), [dom]);
    assert_eq!(
        store.open(),
        (0, 0),
        "no transaction and no watch is left open"
    );
    assert_eq!(userdata_files(&guest.uuid), 2);

    destroy(&xen, &store, dom).unwrap();
    assert_eq!(xen.domains(), [0u16; 0]);
    assert_eq!(store.dump(), before);
    assert_eq!(userdata_files(&guest.uuid), 0);
}

#[test]
fn whatever_fails_nothing_is_left_behind() {
    let (xen, store, faults) = host();
    let before = store.dump();
    let guest = with_disk("faulty");
    let mut steps = Vec::new();
    for n in 0.. {
        faults.fail(n);
        let result = create(&xen, &store, &guest);
        let failed = faults.has_failed();
        faults.stop();
        match result {
            Ok(dom) => {
                destroy(&xen, &store, dom).unwrap();
                if !failed {
                    break;
                }
            }
            Err(error) => {
                assert!(failed, "call {n}: {error}");
                let text = error.to_string();
                assert!(text.contains("EIO"), "call {n} hides the cause: {text}");
                assert!(error.hint.is_some(), "call {n} gives no hint: {text}");
                let named = !error.object.is_empty() || error.cause.contains('/');
                assert!(named, "call {n} does not say on what: {text}");
                steps.push(error.step);
            }
        }
        assert_eq!(xen.domains(), [0u16; 0], "call {n}");
        assert_eq!(store.dump(), before, "call {n}");
        assert_eq!(store.open(), (0, 0), "call {n}");
        assert_eq!(userdata_files(&guest.uuid), 0, "call {n}");
    }
    assert!(steps.len() > 100, "{} calls were made to fail", steps.len());
    steps.dedup();
    assert!(
        steps.len() > 12,
        "many different steps are named: {steps:?}"
    );
}

#[test]
fn names_and_disks_are_not_shared() {
    let (xen, store, _) = host();
    let dom = create(&xen, &store, &with_disk("first")).unwrap();
    let refused = |guest: &Prepared, part: &str| {
        let error: Error = create(&xen, &store, guest).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.kind, Kind::Failed);
        assert_eq!(xen.domains(), [dom.0]);
    };
    refused(
        &prepared("first", ""),
        &format!("domain {dom} has this name"),
    );
    refused(&with_disk("second"), &format!("in use by domain {dom}"));
    let disk = disk();
    refused(
        &prepared("second", &format!("disk=['{disk},raw,xvda,r']")),
        "which writes to it",
    );
    refused(
        &prepared(
            "third",
            &format!("disk=['{disk},raw,xvda,w','{disk},raw,xvdb,r']"),
        ),
        "this guest itself",
    );
    destroy(&xen, &store, dom).unwrap();
    let read_only = |name| prepared(name, &format!("disk=['{disk},raw,xvda,r']"));
    let a = create(&xen, &store, &read_only("a")).unwrap();
    let b = create(&xen, &store, &read_only("b")).unwrap();
    destroy(&xen, &store, a).unwrap();
    destroy(&xen, &store, b).unwrap();
}

#[test]
fn with_a_supervisor_names_and_disks_are_looked_up_in_the_index() {
    let (xen, store, _) = host();
    for folder in xlrs::index::FOLDERS {
        store.mkdir(None, folder).unwrap();
    }
    let pid = std::process::id().to_string();
    store
        .write(None, xlrs::supervise::NODE, pid.as_bytes())
        .unwrap();
    let before = store.dump();
    let dom = create(&xen, &store, &with_disk("in.dex")).unwrap();
    let entry = "/tool/xlrs/index/name/in@2edex";
    assert_eq!(store.text(entry), Some(dom.to_string()));
    assert_eq!(find_by_name(&store, "in.dex").unwrap(), Some(dom));
    assert_eq!(find_by_name(&store, "other").unwrap(), None);
    for (guest, part) in [
        (prepared("in.dex", ""), "has this name"),
        (with_disk("second"), "which writes to it"),
    ] {
        let error = create(&xen, &store, &guest).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    // Renamed by somebody who knows of no index: the guest itself counts.
    let name = format!("/local/domain/{dom}/name");
    store.write(None, &name, b"renamed").unwrap();
    assert_eq!(find_by_name(&store, "in.dex").unwrap(), None);
    let other = create(&xen, &store, &prepared("in.dex", "")).unwrap();
    assert_eq!(store.text(entry), Some(other.to_string()));
    destroy(&xen, &store, dom).unwrap();
    assert_eq!(
        store.text(entry),
        Some(other.to_string()),
        "it is the other's"
    );
    destroy(&xen, &store, other).unwrap();
    assert_eq!(store.dump(), before);
}

#[test]
fn what_is_being_created_is_not_created_twice_at_once() {
    let (xen, store, _) = host();
    let name = Claims::begin().unwrap();
    name.add("name busy", true, "").unwrap();
    let error = create(&xen, &store, &prepared("busy", "")).unwrap_err();
    assert_eq!(error.kind, Kind::Failed);
    assert!(
        error
            .to_string()
            .contains("claim the name busy: another xlrs"),
        "{error}"
    );
    // Other names are not held up.
    let dom = create(&xen, &store, &prepared("idle", "")).unwrap();
    destroy(&xen, &store, dom).unwrap();
    drop(name);
    let dom = create(&xen, &store, &prepared("busy", "")).unwrap();
    destroy(&xen, &store, dom).unwrap();
}

#[test]
fn a_back_end_that_does_not_answer_is_named() {
    let (xen, store, _) = host();
    let before = store.dump();
    store.make_deaf();
    let error = create(&xen, &store, &with_disk("late")).unwrap_err();
    assert_eq!(error.kind, Kind::TimedOut);
    let text = error.to_string();
    assert!(
        text.contains("disk xvda is in state 1 (Initialising)"),
        "{text}"
    );
    assert_eq!((xen.domains(), store.dump()), (vec![], before));

    store.rm(None, "/tool/xlrs/blkback").unwrap();
    let error = create(&xen, &store, &with_disk("nobody"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("neither our blkback nor the kernel's"),
        "{error}"
    );
}

#[test]
fn too_much_memory_says_how_much_there_is() {
    let (xen, store, _) = host();
    let before = store.dump();
    let error = create(&xen, &store, &prepared("big", "memory=1000")).unwrap_err();
    assert_eq!(error.kind, Kind::NoMemory);
    assert!(
        error.to_string().contains("Xen has 256 MiB left"),
        "{error}"
    );
    assert_eq!((xen.domains(), store.dump()), (vec![], before));
}

#[test]
fn dom0_and_nobody_cannot_be_destroyed() {
    let (xen, store, _) = host();
    assert_eq!(
        destroy(&xen, &store, DomId::DOM0).unwrap_err().kind,
        Kind::Invalid
    );
    assert_eq!(
        destroy(&xen, &store, DomId(9)).unwrap_err().kind,
        Kind::NoSuchDomain
    );
    assert!(xen.info(DomId(9)).unwrap().is_none());
}

#[test]
fn until_it_is_kept_a_guest_is_marked_and_goes_with_its_guard() {
    let (xen, store, _) = host();
    let before = store.dump();
    let guest = with_disk("half");
    let marked = || underway::all().contains(&guest.uuid);
    let guard = create_guarded(&xen, &store, &guest).unwrap();
    assert_eq!(xen.domains(), [guard.dom().0]);
    assert!(marked());
    let other = Underway::take_over(&guest.uuid).unwrap();
    assert!(other.is_none(), "its process is still at work");
    drop(guard);
    assert_eq!((xen.domains(), store.dump()), (vec![], before));
    assert!(!marked() && userdata_files(&guest.uuid) == 0);

    let dom = create_guarded(&xen, &store, &guest).unwrap().keep();
    assert!(!marked(), "one that is kept is nobody's leftover");
    destroy(&xen, &store, dom).unwrap();
}

#[test]
fn a_killed_creation_is_found_by_its_mark() {
    let _alone = MARKS.lock().unwrap();
    root();
    let id = xlrs::uuid::make().unwrap();
    assert!(Underway::take_over(&id).unwrap().is_none());
    // As a killed process does, this one unlocks its file and leaves it there.
    Underway::begin(&id).unwrap().leave();
    assert!(underway::all().contains(&id));
    let mark = Underway::take_over(&id).unwrap().unwrap();
    let error = Underway::begin(&id).unwrap_err().to_string();
    assert!(error.contains("another xlrs is at work"), "{error}");
    drop(mark);
    assert!(!underway::all().contains(&id));

    let (xen, store, _) = host();
    let kept = create(&xen, &store, &prepared("kept", "")).unwrap();
    let before = store.dump();
    let guest = with_disk("killed");
    create(&xen, &store, &guest).unwrap();
    Underway::begin(&guest.uuid).unwrap().leave();
    clear_unfinished(&xen, &store);
    assert_eq!((xen.domains(), store.dump()), (vec![kept.0], before));
    assert_eq!(userdata_files(&guest.uuid), 0);
    assert!(!underway::all().contains(&guest.uuid));
    destroy(&xen, &store, kept).unwrap();
}

#[test]
fn a_uuid_is_not_shared() {
    let (xen, store, _) = host();
    let uuid = "uuid='6b1c5a52-93ab-4a9c-8d2e-000000000001'";
    let dom = create(&xen, &store, &prepared("one", uuid)).unwrap();
    let error = create(&xen, &store, &prepared("two", uuid)).unwrap_err();
    assert_eq!(error.kind, Kind::Failed);
    let text = error.to_string();
    assert!(text.contains(&format!("domain {dom} has it")), "{text}");
    assert!(error.hint.is_some());
    assert_eq!(xen.domains(), [dom.0]);
    destroy(&xen, &store, dom).unwrap();
    let again = create(&xen, &store, &prepared("two", uuid)).unwrap();
    destroy(&xen, &store, again).unwrap();
}

#[test]
fn dom0_is_not_asked_to_shut_down() {
    let (xen, store, _) = host();
    let before = store.dump();
    let error = power::ask(&xen, &store, DomId::DOM0, power::Request::Poweroff).unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    assert!(error.to_string().contains("it is dom0"), "{error}");
    assert_eq!(store.dump(), before);
}

#[test]
fn paths_hold_wherever_they_are_read_next() {
    root();
    let here = std::env::current_dir().unwrap();
    let mut config = with_disk("paths").guest.config;
    // The tests run in the crate's folder, on a file of which a disk can be made.
    config.disks[0].target = "src/lib.rs".into();
    config.disks[0].writable = false;
    let guest = Prepared::new(config).unwrap();
    assert_eq!(guest.disks[0].config.target, here.join("src/lib.rs"));
    assert_eq!(guest.config.disks[0].target, here.join("src/lib.rs"));
}

#[test]
fn a_guest_made_of_a_shell_is_like_any_other() {
    let _alone = MARKS.lock().unwrap();
    let (xen, store, faults) = host();
    let like = prepared("like", "on_crash='preserve'\nmaxmem=32")
        .config
        .clone();
    let wanted = |name: &str| {
        let more = format!("maxmem=32\ncmdline='other'\ndisk=['{},raw,xvda,w']", disk());
        prepared(name, &more).config.clone()
    };
    assert!(
        pool::take(&xen, &like).unwrap().is_none(),
        "there is none yet"
    );
    let before = store.dump();
    pool::wish(like.clone(), 2).unwrap();
    pool::fill(&xen, &store).unwrap();
    assert_eq!((xen.domains().len(), pool::uuids().len()), (2, 2));
    assert!(underway::all().iter().all(|id| !pool::uuids().contains(id)));
    let mut unlike = like.clone();
    unlike.vcpus = 2;
    unlike.max_vcpus = 2;
    assert!(pool::take(&xen, &unlike).unwrap().is_none());
    unlike = like.clone();
    unlike.uuid = Some([7; 16]);
    assert!(pool::take(&xen, &unlike).unwrap().is_none());

    let shell = pool::take(&xen, &wanted("one")).unwrap().unwrap();
    let dom = dress(&xen, &store, shell, wanted("one")).unwrap().keep();
    let twin = create(
        &xen,
        &store,
        &Prepared::new(without_disks(wanted("two"))).unwrap(),
    )
    .unwrap();
    let domain = xen.domain(dom);
    let info = xen.walk(dom, domain.start.unwrap().rsi).unwrap();
    assert_eq!(&xen.frame(info)[128..134], b"other\0");
    // Its nodes are those of a guest that was created as a whole.
    let nodes = |dom: DomId, name: &str| -> Vec<String> {
        let id = xlrs::uuid::format(&xen.domain(dom).uuid);
        let all = store
            .dump()
            .into_iter()
            .filter(|line| !line.contains("vbd"));
        all.filter(|line| line.contains(&format!("/{dom}/")) || line.contains(&id))
            .filter(|line| {
                !["ring-ref", "start_time", "domid", "frontend-id"]
                    .iter()
                    .any(|part| line.contains(part))
            })
            .map(|line| {
                line.replace(&id, "ID")
                    .replace(name, "NAME")
                    .replace(&format!("/{dom}/"), "/D/")
            })
            .map(|line| line.replace(&format!("n{dom}]"), "nD]"))
            .map(|line| line.replace(&format!("r{dom}]"), "rD]"))
            .collect()
    };
    assert_eq!(nodes(dom, "one"), nodes(twin, "two"));
    for dom in [dom, twin] {
        destroy(&xen, &store, dom).unwrap();
    }

    // Whatever fails when one is dressed, it is gone; and the next takes its place.
    let with_one = xen.domains().len();
    assert_eq!(with_one, 1);
    for n in 0.. {
        pool::fill(&xen, &store).unwrap();
        assert_eq!(xen.domains().len(), 2, "call {n}");
        faults.fail(n);
        let made = pool::take(&xen, &wanted("faulty-shell")).and_then(|shell| {
            dress(&xen, &store, shell.unwrap(), wanted("faulty-shell")).map(|guard| guard.keep())
        });
        let failed = faults.has_failed();
        faults.stop();
        match made {
            Ok(dom) => destroy(&xen, &store, dom).unwrap(),
            Err(error) => assert!(
                error.to_string().contains("EIO") && error.hint.is_some(),
                "{n}: {error}"
            ),
        }
        clear_unfinished(&xen, &store);
        assert_eq!(
            (xen.domains().len(), pool::uuids().len()),
            (1, 1),
            "call {n}"
        );
        if !failed {
            assert!(n > 20, "{n} calls");
            break;
        }
    }
    pool::wish(like, 0).unwrap();
    pool::fill(&xen, &store).unwrap();
    assert_eq!((xen.domains(), store.dump()), (vec![], before));
    assert_eq!(pool::uuids(), Vec::<[u8; 16]>::new());
}

fn without_disks(mut config: xlrs::config::DomainConfig) -> xlrs::config::DomainConfig {
    config.disks.clear();
    config
}
