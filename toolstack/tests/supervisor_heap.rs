//! What the supervisor holds for a thousand guests, counted by the allocator, and how much it ever holds at once.

mod common;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use common::{FakeXen, Faults, kernel_file};
use xen_backend::daemon::{self, Common, Signals};
use xen_fake::Counting;
use xen_hal::{
    DomainControl, Inspect, Permission, Result, ShutdownReason, Store, StoreError, StoreOp, TxId,
    WatchEvent,
};
use xen_sys::{DomId, Errno, Mfn, Pfn, Port, VcpuId};
use xlrs::config::{Source, load};
use xlrs::prepare::Prepared;
use xlrs::store::StoreControl;
use xlrs::supervise::{self, Marks};
use xlrs::userdata::{self, Userdata};

#[global_allocator]
static COUNTING: Counting = Counting;

const GUESTS: u16 = 1000;
/// The process shall stay below 10 MiB; some 4 MiB of them are its program and libraries, guests or not.
const MOST_HELD: i64 = 1 << 20;
const VBD: &str = "/local/domain/0/backend/vbd/";

/// A store of which nothing is kept: what is read follows from the path, so that all that is held is held by the
/// supervisor. Events wait in it, as they do in a connection.
struct Crowd<'a> {
    xen: &'a FakeXen,
    /// Always readable.
    file: File,
    act: Cell<Act>,
    events: RefCell<VecDeque<WatchEvent>>,
    indexed: Cell<usize>,
    asked_names: Cell<usize>,
    /// What was held after each act.
    held: RefCell<Vec<(Act, i64)>>,
}

/// What happens, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// All guests run and are found.
    Found,
    /// All have other names and disks.
    Renamed,
    /// All have ended. None by a crash, of which the log says more: the test runner keeps what is logged, and that counts.
    Ended,
    Over,
}

impl Crowd<'_> {
    fn name(&self, dom: u16) -> String {
        let word = match self.act.get() {
            Act::Found => "first",
            _ => "second",
        };
        format!("a-guest-with-a-rather-long-{word}-name-{dom:05}")
    }

    fn value(&self, path: &str) -> Option<String> {
        let known = |dom: &str| dom.parse().ok().filter(|dom| (1..=GUESTS).contains(dom));
        if let Some(rest) = path.strip_prefix(VBD) {
            let (dom, rest) = rest.split_once('/')?;
            let dom: u16 = known(dom)?;
            let (_, key) = rest.split_once('/')?;
            let minor = dom
                + if self.act.get() == Act::Found {
                    0
                } else {
                    2000
                };
            return match key {
                "mode" => Some("w".into()),
                "physical-device" => Some(format!("fd:{minor:x}")),
                _ => None,
            };
        }
        let dom = path.strip_prefix("/local/domain/")?.strip_suffix("/name")?;
        let dom = known(dom)?;
        self.asked_names.set(self.asked_names.get() + 1);
        Some(self.name(dom))
    }

    fn tell(&self, path: String, token: &str) {
        let token = token.into();
        self.events
            .borrow_mut()
            .push_back(WatchEvent { path, token });
    }

    /// Goes on to the next act when all of this one is done.
    fn go_on(&self) {
        let guests = usize::from(GUESTS);
        let act = self.act.get();
        let done = match act {
            Act::Found | Act::Renamed => self.indexed.get() >= 2 * guests,
            Act::Ended => self.asked_names.get() >= guests,
            Act::Over => return,
        };
        if !done {
            return;
        }
        self.held.borrow_mut().push((act, Counting::held()));
        self.indexed.set(0);
        self.asked_names.set(0);
        match act {
            Act::Found => {
                self.act.set(Act::Renamed);
                for dom in 1..=GUESTS {
                    self.tell(format!("/local/domain/{dom}/name"), "name");
                    self.tell(format!("{VBD}{dom}/51712/physical-device"), "disk");
                }
            }
            Act::Renamed => {
                self.act.set(Act::Ended);
                for dom in 1..=GUESTS {
                    let ended = ShutdownReason::Poweroff;
                    self.xen.remote_shutdown(DomId(dom), ended).unwrap();
                    self.tell("@releaseDomain".into(), "released");
                }
            }
            Act::Ended | Act::Over => self.act.set(Act::Over),
        }
    }
}

fn error(op: &'static str, path: &str, errno: Errno) -> StoreError {
    StoreError {
        op,
        object: path.into(),
        errno,
    }
}

impl Store for Crowd<'_> {
    fn read(&self, _: Option<TxId>, path: &str) -> Result<Vec<u8>, StoreError> {
        let value = self.value(path).map(String::into_bytes);
        value.ok_or_else(|| error("READ", path, Errno::ENOENT))
    }

    fn write(&self, _: Option<TxId>, path: &str, _: &[u8]) -> Result<(), StoreError> {
        if path.starts_with(xlrs::index::TOP) {
            self.indexed.set(self.indexed.get() + 1);
        }
        Ok(())
    }

    fn mkdir(&self, _: Option<TxId>, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn rm(&self, _: Option<TxId>, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn list(&self, _: Option<TxId>, path: &str) -> Result<Vec<String>, StoreError> {
        match path.strip_prefix(VBD) {
            Some(dom) if dom.parse().is_ok_and(|dom| (1..=GUESTS).contains(&dom)) => {
                Ok(vec!["51712".into()])
            }
            _ => Err(error("DIRECTORY", path, Errno::ENOENT)),
        }
    }

    fn permissions(&self, _: Option<TxId>, path: &str) -> Result<Vec<Permission>, StoreError> {
        Err(error("GET_PERMS", path, Errno::ENOENT))
    }

    fn set_permissions(
        &self,
        _: Option<TxId>,
        path: &str,
        _: &[Permission],
    ) -> Result<(), StoreError> {
        Err(error("SET_PERMS", path, Errno::ENOENT))
    }

    fn start(&self) -> Result<TxId, StoreError> {
        Ok(TxId(NonZeroU32::MIN))
    }

    fn end(&self, _: TxId, _: bool) -> Result<(), StoreError> {
        Ok(())
    }

    fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        self.tell(path.into(), token);
        Ok(())
    }

    fn unwatch(&self, _: &str, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn next_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        if self.events.borrow().is_empty() {
            self.go_on();
        }
        match self.act.get() {
            // A daemon that has gone ends a supervisor.
            Act::Over => Err(error("WATCH_EVENT", "", Errno::ENOTCONN)),
            _ => Ok(self.events.borrow_mut().pop_front()),
        }
    }
}

impl StoreControl for Crowd<'_> {
    fn batch_and_introduce(
        &self,
        _: &[StoreOp<'_>],
        dom: DomId,
        _: Mfn,
        _: Port,
    ) -> Vec<Result<Vec<u8>, StoreError>> {
        panic!("nobody shall be created, but domain {dom} is");
    }

    fn wait_event(&self, _: Duration) -> Result<Option<WatchEvent>, StoreError> {
        self.next_event()
    }
}

impl AsFd for Crowd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Nobody's memory is looked at here.
impl Inspect for FakeXen {
    fn guest_frames(&self, dom: DomId) -> Result<Vec<(Pfn, Mfn)>> {
        panic!("domain {dom} is to be preserved");
    }

    fn copy_frames(&self, dom: DomId, _: &[Mfn], _: &mut Vec<u8>) -> Result<()> {
        panic!("domain {dom} is to be preserved");
    }

    fn vcpu_context(&self, dom: DomId, _: VcpuId) -> Result<Vec<u8>> {
        panic!("domain {dom} is to be preserved");
    }
}

#[test]
fn a_thousand_guests_take_little() {
    let root = std::env::temp_dir().join(format!("xlrs-supervisor-{}", std::process::id()));
    std::fs::create_dir_all(&root).unwrap();
    xlrs::paths::set_root(&root);
    let kernel = kernel_file(&root);
    let xen = FakeXen::new(Faults::default());
    for dom in 1..=GUESTS {
        let text = format!(
            "name='guest-{dom}'\nkernel='{}'\nmemory=16\non_poweroff='preserve'\n",
            kernel.display()
        );
        let source = Source {
            name: "test.cfg".into(),
            text,
        };
        let guest = Prepared::new(load(&[source]).unwrap().0).unwrap();
        xen.adopt(dom, guest.uuid);
        let marks = Marks::of(&guest).encode();
        userdata::write(DomId(dom), &guest.uuid, Userdata::Xlrs, &marks).unwrap();
    }
    let crowd = Crowd {
        xen: &xen,
        file: File::open("/dev/null").unwrap(),
        act: Cell::new(Act::Found),
        events: RefCell::default(),
        indexed: Cell::new(0),
        asked_names: Cell::new(0),
        held: RefCell::default(),
    };
    let common = Common {
        daemon: false,
        log_file: None,
        pid_file: None,
    };
    let before = Counting::held();
    Counting::forget_most();
    daemon::run("supervisor", &common, |ready| {
        let signals = Signals::take()?;
        supervise::serve(&xen, &crowd, &signals, ready)
    });
    let most = Counting::most() - before;
    for (act, held) in crowd.held.borrow().iter() {
        println!("{act:?}: {} KiB are held", (held - before) >> 10);
    }
    println!("at most {} KiB at once", most >> 10);
    std::fs::remove_dir_all(root).unwrap();
    assert_eq!(crowd.act.get(), Act::Over);
    assert_eq!(xen.domains().len(), usize::from(GUESTS));
    let last = crowd.held.borrow().last().map(|(_, held)| held - before);
    let least = i64::from(GUESTS) * 100;
    assert!(
        last.is_some_and(|held| held > least),
        "{last:?} are held: who keeps the index?"
    );
    assert!(most < MOST_HELD, "{most} bytes were held at once");
}
