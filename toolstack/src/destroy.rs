//! Removes guests: devices first, so that back ends let go of the memory, then the domain, then what is
//! written about it.

use std::time::Duration;

use xen_hal::{DomainControl, DomainInfo, Store, StoreExt, XenbusState};
use xen_sys::DomId;

use crate::error::{Error, Kind, Result};
use crate::hotplug::{self, Call};
use crate::lock::{About, Lock};
use crate::store::{Awaited, Look, StoreControl, children, remove_all, text, wait_backends};
use crate::underway::Underway;
use crate::userdata;
use crate::{index, nodes};

/// How long back ends may take to let go of a guest that is removed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A device of a guest, as its nodes tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// `vbd`, `vif`, `console`, …
    pub kind: String,
    /// Its number.
    pub number: String,
    /// The back end's directory.
    pub backend: String,
    /// The front end's directory.
    pub frontend: String,
}

/// All devices of a guest.
///
/// # Errors
/// The store's.
pub fn devices(store: &impl Store, dom: DomId) -> Result<Vec<Device>> {
    let failed = Error::store("list the devices of domain", dom);
    let collect = || {
        let above = format!("{}/device", nodes::libxl(dom));
        let mut out = Vec::new();
        for kind in children(store, None, &above)? {
            for number in children(store, None, &format!("{above}/{kind}"))? {
                let at = format!("{above}/{kind}/{number}");
                let paths = (
                    text(store, None, &format!("{at}/backend"))?,
                    text(store, None, &format!("{at}/frontend"))?,
                );
                if let (Some(backend), Some(frontend)) = paths {
                    out.push(Device {
                        kind: kind.clone(),
                        number,
                        backend,
                        frontend,
                    });
                }
            }
        }
        Ok(out)
    };
    collect().map_err(failed)
}

/// Removes a guest and all that is known of it. Whatever can be removed is removed; what went wrong is told at the
/// end, the first of it with its hint.
///
/// # Errors
/// There is no such guest, or something resisted.
pub fn destroy<C: DomainControl, S: StoreControl>(
    control: &C,
    store: &S,
    dom: DomId,
) -> Result<()> {
    let info = find(control, dom)?;
    // If this process is killed half way, the supervisor goes on by the mark.
    let mark = Underway::begin(&info.uuid)?;
    mark.note(dom)?;
    let removed = remove(control, store, &info);
    if removed.is_err() && is_there(control, &info) {
        mark.leave();
    }
    removed
}

/// Whether this very guest is still there, as far as can be known.
pub(crate) fn is_there(control: &impl DomainControl, guest: &DomainInfo) -> bool {
    let info = control.info(guest.dom);
    !info.is_ok_and(|info| info.is_none_or(|info| info.uuid != guest.uuid || info.flags.dying))
}

fn find(control: &impl DomainControl, dom: DomId) -> Result<DomainInfo> {
    if dom == DomId::DOM0 {
        return Err(Error::new(
            "destroy domain",
            dom,
            "it is dom0, on which everything runs",
        )
        .kind(Kind::Invalid));
    }
    control
        .info(dom)
        .map_err(Error::hal("ask Xen about domain", dom))?
        .ok_or_else(|| {
            Error::new("destroy domain", dom, "there is no such domain")
                .kind(Kind::NoSuchDomain)
                .hint("`xlrs list` shows those that exist")
        })
}

/// As [`destroy`], for who has the guest's mark already.
///
/// # Errors
/// As [`destroy`].
pub fn remove<C: DomainControl, S: StoreControl>(
    control: &C,
    store: &S,
    info: &DomainInfo,
) -> Result<()> {
    let dom = info.dom;
    // Nobody shall take what is half removed for leftovers.
    let _lock = Lock::share(About::Removing)?;
    let mut outcome: Result<()> = Ok(());
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            outcome = Err(match std::mem::replace(&mut outcome, Ok(())) {
                Ok(()) => error,
                Err(first) => first.then(&error),
            });
        }
    };
    if !info.flags.dying {
        note(control.pause(dom).map_err(Error::hal("pause domain", dom)));
    }
    note(remove_devices(store, dom));
    note(
        control
            .destroy(dom)
            .map_err(Error::hal("destroy domain", dom)),
    );
    let removed = remove_nodes(store, dom, &info.uuid);
    // While these files are there, the supervisor knows whose the nodes are.
    let forgotten = removed.and_then(|()| userdata::remove(dom, &info.uuid));
    note(forgotten);
    note(userdata::note_end(dom));
    outcome
}

/// Asks all back ends to close, waits until they have, removes their nodes.
///
/// # Errors
/// Those that were late are named; their nodes are removed all the same.
pub fn remove_devices<S: StoreControl>(store: &S, dom: DomId) -> Result<()> {
    let devices = devices(store, dom)?;
    // The console's back end is the console daemon, which goes by the domain itself.
    let served: Vec<&Device> = devices.iter().filter(|d| d.kind != "console").collect();
    if !served.is_empty() {
        let ask = store.transaction::<(), Error>(|store, tx| {
            let tx = Some(tx);
            for device in &served {
                let back = &device.backend;
                let state = store.read_optional(tx, &format!("{back}/state"))?;
                if let Some(state) = state {
                    store.write(tx, &format!("{back}/online"), b"0")?;
                    // The kernel does not write Closed a second time.
                    if XenbusState::parse(&state) != XenbusState::Closed {
                        store.write_display(tx, &format!("{back}/state"), &XenbusState::Closing)?;
                    }
                }
                store.rm_if_present(tx, &device.frontend)?;
            }
            Ok(())
        });
        ask?;
    }
    let awaited = served.iter().map(|device| Awaited {
        path: device.backend.clone(),
        what: format!("the back end of {} {}", device.kind, device.number),
    });
    let waited = wait_backends(
        store,
        awaited.collect(),
        CLOSE_TIMEOUT,
        |state| match state {
            None | Some(XenbusState::Closed | XenbusState::Unknown) => Look::Done,
            Some(_) => Look::Waiting,
        },
    );
    let mut let_go = Ok(());
    for device in &devices {
        let_go = let_go.and(detach(store, dom, device));
    }
    let paths: Vec<_> = devices
        .iter()
        .map(|device| device.backend.clone())
        .collect();
    remove_all(store, None, &paths).map_err(Error::store("remove the back ends of domain", dom))?;
    waited.and(let_go)
}

/// Undoes what a script has done for a device.
pub(crate) fn detach(store: &impl Store, dom: DomId, device: &Device) -> Result<()> {
    let (is_disk, is_card) = (device.kind == "vbd", device.kind == "vif");
    if !is_disk && !is_card {
        return Ok(());
    }
    let get = |key: &str| {
        text(store, None, &format!("{}/{key}", device.backend))
            .map_err(Error::store("look at", &device.backend))
    };
    if let Some(script) = hotplug::custom(get("script")?.as_deref()) {
        let interface = get("vifname")?.unwrap_or_else(|| format!("vif{dom}.{}", device.number));
        return hotplug::Device {
            script: &script,
            backend: &device.backend,
            card: is_card.then_some((interface.as_str(), "")),
        }
        .run(store, Call::Remove);
    }
    if is_card {
        return Ok(());
    }
    let (Some(node), Some(params)) = (get("node")?, get("params")?) else {
        return Ok(());
    };
    let file = std::fs::canonicalize(&params).unwrap_or_else(|_| params.into());
    crate::os::detach_loop(node.as_ref(), &file)
        .map_err(|e| Error::system("take the file out of", &node, &e))
}

/// Removes a guest's directories.
///
/// # Errors
/// The store's.
pub fn remove_nodes(store: &impl Store, dom: DomId, uuid: &[u8; 16]) -> Result<()> {
    let mut paths = vec![nodes::vm(uuid), nodes::home(dom), nodes::libxl(dom)];
    for kind in ["vbd", "vif", "console"] {
        // The folder above a guest's back ends stays empty behind them.
        paths.push(format!("/local/domain/0/backend/{kind}/{dom}"));
    }
    store.transaction::<(), Error>(|store, tx| {
        index::remove_guest(store, tx, dom)?;
        Ok(remove_all(store, Some(tx), &paths)?)
    })
}
