//! What is kept of a guest that has ended, before another takes its place: its memory in a file, or the
//! guest itself under another name.

use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use xen_hal::{DomainInfo, Inspect, Placement};

use super::{Fate, Marks};
use crate::config::{Action, Events};
use crate::destroy;
use crate::dump;
use crate::error::{Error, Result};
use crate::nodes;
use crate::store::StoreControl;
use crate::userdata::{self, Userdata};
use crate::{os, paths, uuid};

/// Writes the guest's memory where xl does: /var/lib/xen/dump/NAME. An older one of this name goes.
///
/// # Errors
/// As [`dump::dump`].
pub fn dump<C: Inspect>(control: &C, info: &DomainInfo, name: &str) -> Result<PathBuf> {
    let folder = paths::at(paths::DUMPS);
    fs::create_dir_all(&folder)
        .map_err(|e| Error::system("make the folder", folder.display(), &e))?;
    let path = folder.join(name);
    dump::dump(control, info, &path, true)?;
    Ok(path)
}

/// Gives the guest another name and UUID, so that one like it can be made; its devices go to that one.
/// Returns the name.
///
/// # Errors
/// Xen, the store or the file system refuse. Until the last step it is the guest that it was.
pub fn set_aside<C: Placement, S: StoreControl>(
    control: &C,
    store: &S,
    info: &DomainInfo,
    marks: &Marks,
) -> Result<String> {
    let dom = info.dom;
    let step = "set aside domain";
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let name = format!("{}-{}", marks.config.name, os::stamp(now.as_secs()));
    let id = uuid::make().map_err(|e| Error::system("make a UUID", "", &e))?;
    destroy::remove_devices(store, dom)?;
    let mut kept = marks.clone();
    kept.config.name.clone_from(&name);
    kept.config.uuid = Some(id);
    kept.config.disks.clear();
    kept.config.nics.clear();
    kept.fate = Fate::default();
    // Nothing more is done with it.
    kept.config.events = Events {
        on_poweroff: Action::Preserve,
        on_reboot: Action::Preserve,
        on_watchdog: Action::Preserve,
        on_crash: Action::Preserve,
        on_soft_reset: Action::Preserve,
    };
    let json = userdata::libxl_text(&userdata::libxl_json(&kept.config, &id, &[]));
    userdata::write(dom, &id, Userdata::Libxl, &json)?;
    userdata::write(dom, &id, Userdata::Xlrs, &kept.encode())?;
    let vm = nodes::vm(&id);
    let home = nodes::home(dom);
    let nodes = [
        (format!("{vm}/uuid"), uuid::format(&id)),
        (format!("{vm}/name"), name.clone()),
        (format!("{home}/vm"), vm.clone()),
        (format!("{home}/name"), name.clone()),
    ];
    xen_hal::StoreExt::transaction::<(), Error>(store, |store, tx| {
        for (path, value) in &nodes {
            store.write(Some(tx), path, value.as_bytes())?;
        }
        crate::store::remove_all(store, Some(tx), &[nodes::vm(&info.uuid)])?;
        Ok(())
    })?;
    control.set_uuid(dom, &id).map_err(Error::hal(step, dom))?;
    userdata::remove(dom, &info.uuid)?;
    Ok(name)
}
