//! Gives devices to running guests and takes them away. While that is underway a locked file tells of it;
//! what a killed process has left is taken away by the supervisor, or by the next command.

use std::time::Duration;

use xen_hal::{DomainControl, DomainInfo, Store, StoreExt, XenbusState};
use xen_sys::DomId;

use crate::backends::{Class, Server};
use crate::claims::Claims;
use crate::config::{DiskConfig, NicConfig};
use crate::create::{
    BACKEND_TIMEOUT, check_disks, connect_nic, needs_kernel, physical_device, release_loop,
    run_disk_script, wait_ready,
};
use crate::destroy::{self, Device, devices};
use crate::error::{Error, Kind, Result};
use crate::hotplug;
use crate::index;
use crate::interrupt;
use crate::nodes::{self, Nic, Nodes};
use crate::os::LoopDevice;
use crate::prepare::{Target, check_disk, check_nic, name_nic};
use crate::store::{Awaited, Look, StoreControl, children, remove_all, text, wait_backends};
use crate::supervise::Marks;
use crate::underway::{self, Underway};
use crate::userdata::{self, Userdata};

/// How long a guest may take to let go of a device.
const DETACH_TIMEOUT: Duration = Duration::from_secs(10);

/// Gives a guest a disk.
///
/// # Errors
/// What failed; nothing is left behind.
pub fn attach_disk<C: DomainControl, S: StoreControl>(
    control: &C,
    store: &S,
    info: &DomainInfo,
    config: &DiskConfig,
) -> Result<()> {
    check_guest(info)?;
    let mut config = config.clone();
    if hotplug::custom(config.script.as_deref()).is_none() {
        config.target = std::path::absolute(&config.target)
            .map_err(|e| Error::system("find", config.target.display(), &e).kind(Kind::Invalid))?;
    }
    let disk = check_disk(&config)?;
    let server = Class::Block.server(store)?;
    clear_unfinished(control, store, |line| eprintln!("xlrs: {line}"));
    // Nobody shall take the disk meanwhile, nor change the guest's files.
    let claims = Claims::begin()?;
    let what = format!("the disk {}", disk.config.target.display());
    claims.add(&format!("{:?}", disk.id), disk.config.writable, &what)?;
    claim_guest(&claims, info)?;
    let number = config.number.to_string();
    check_absent(store, info.dom, "vbd", &number, &config.vdev)?;
    let failed = Error::store("look which disks are in use", "");
    let indexed = index::is_kept(store).map_err(failed)?;
    check_disks(store, std::slice::from_ref(&disk), indexed, &[])?;
    let work = Work::begin(store, info, "vbd", &number)?;
    // By the files what the store has is known to all toolstacks; an entry too many is passed over.
    edit_files(info, |marks, json| {
        if let Some(marks) = marks {
            marks.config.disks.push(config.clone());
        }
        push(json, "disks", userdata::disk_json(&config));
    })?;
    let mut loops: Vec<LoopDevice> = Vec::new();
    let physical = match server {
        _ if disk.target == Target::Script => {
            needs_kernel(&disk, Some(server))?;
            None
        }
        Server::Kernel => Some(physical_device(&disk, &mut loops)?),
        Server::Daemon(_) => None,
    };
    let mut nodes = nodes::disk(info.dom, &config, physical.as_ref());
    if indexed {
        nodes.extend(index::attached(info.dom, &disk));
    }
    work.declare(nodes)?;
    drop(claims);
    let what = format!("the back end of disk {}", config.vdev);
    work.wait(what)?;
    run_disk_script(store, info.dom, &config)?;
    for device in loops {
        release_loop(info.dom, device)?;
    }
    work.finish()
}

/// Gives a guest a network card; returns it with what was left open filled in.
///
/// # Errors
/// What failed; nothing is left behind.
pub fn attach_nic<C: DomainControl, S: StoreControl>(
    control: &C,
    store: &S,
    info: &DomainInfo,
    config: &NicConfig,
) -> Result<Nic> {
    check_guest(info)?;
    Class::Net.server(store)?;
    clear_unfinished(control, store, |line| eprintln!("xlrs: {line}"));
    let claims = Claims::begin()?;
    claim_guest(&claims, info)?;
    let there = devices(store, info.dom)?;
    let taken: Vec<u32> = there
        .iter()
        .filter(|device| device.kind == "vif")
        .filter_map(|device| device.number.parse().ok())
        .collect();
    let nic = name_nic(config, &taken)?;
    check_nic(&nic)?;
    let number = nic.devid.to_string();
    let work = Work::begin(store, info, "vif", &number)?;
    edit_files(info, |marks, json| {
        if let Some(marks) = marks {
            marks.config.nics.push(NicConfig {
                mac: Some(nic.mac),
                devid: Some(nic.devid),
                ..config.clone()
            });
        }
        push(json, "nics", userdata::nic_json(&nic));
    })?;
    work.declare(nodes::nic(info.dom, &nic))?;
    drop(claims);
    work.wait(format!("the back end of card {}", nic.devid))?;
    connect_nic(store, info.dom, &nic)?;
    work.finish()?;
    Ok(nic)
}

/// What is done about a guest that does not let go of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwilling {
    /// It keeps it.
    Spare,
    /// It has had its time, and loses it.
    Force,
    /// It is not even asked.
    DoNotAsk,
}

/// Takes a device from a guest.
///
/// # Errors
/// The guest does not let go, which leaves the device where it is; or Xen or the store refuse.
pub fn detach<S: StoreControl>(
    store: &S,
    info: &DomainInfo,
    device: &Device,
    unwilling: Unwilling,
) -> Result<()> {
    let mark = Underway::begin_device(&info.uuid, &device.kind, &device.number)?;
    let object = format!("{} {} of domain {}", device.kind, device.number, info.dom);
    let ask = store.transaction::<(), Error>(|store, tx| {
        let (tx, back) = (Some(tx), &device.backend);
        let state = store.read_optional(tx, &format!("{back}/state"))?;
        if let Some(state) = state {
            store.write(tx, &format!("{back}/online"), b"0")?;
            // The kernel does not write Closed a second time.
            if XenbusState::parse(&state) != XenbusState::Closed {
                store.write_display(tx, &format!("{back}/state"), &XenbusState::Closing)?;
            }
        }
        if unwilling == Unwilling::DoNotAsk {
            store.rm_if_present(tx, &device.frontend)?;
        }
        Ok(())
    });
    if ask.is_err() {
        mark.leave();
        return ask;
    }
    let awaited = Awaited {
        path: device.backend.clone(),
        what: format!("the back end of {object}"),
    };
    let waited = wait_backends(store, vec![awaited], DETACH_TIMEOUT, |state| match state {
        None | Some(XenbusState::Closed | XenbusState::Unknown) => Look::Done,
        Some(_) => Look::Waiting,
    });
    if waited.is_err() && unwilling == Unwilling::Force {
        let taken = take_away(store, device).and_then(|()| remove(store, info, device));
        if taken.is_err() {
            mark.leave();
        }
        return taken;
    }
    if waited.is_err() && unwilling == Unwilling::Spare {
        // The guest may go on with it: it is as before as far as that is in our hands.
        let online = format!("{}/online", device.backend);
        let back = store.write(None, &online, b"1");
        back.map_err(Error::store("give back", &object))?;
        return waited.map_err(|error| {
            error.hint("the guest still uses it; `--force` takes it away all the same")
        });
    }
    let removed = remove(store, info, device);
    if removed.is_err() {
        mark.leave();
    }
    removed
}

/// Removes what is left of a device whose back end has let go.
fn remove<S: StoreControl>(store: &S, info: &DomainInfo, device: &Device) -> Result<()> {
    destroy::detach(store, info.dom, device)?;
    let (kind, number) = (&device.kind, &device.number);
    let paths = [
        device.frontend.clone(),
        device.backend.clone(),
        format!("{}/device/{kind}/{number}", nodes::libxl(info.dom)),
    ];
    store.transaction::<(), Error>(|store, tx| {
        remove_all(store, Some(tx), &paths)?;
        // With the last device of a kind its folders go.
        for path in &paths {
            if let Some((folder, _)) = path.rsplit_once('/')
                && children(store, Some(tx), folder)?.is_empty()
            {
                store.rm_if_present(Some(tx), folder)?;
            }
        }
        Ok(())
    })?;
    forget(info, kind, number)
}

/// Takes a device out of the files.
fn forget(info: &DomainInfo, kind: &str, number: &str) -> Result<()> {
    edit_files(info, |marks, json| {
        let key = if kind == "vbd" { "disks" } else { "nics" };
        if let Some(marks) = marks {
            let config = &mut marks.config;
            match kind {
                "vbd" => config.disks.retain(|d| d.number.to_string() != number),
                _ => {
                    let same = |devid: Option<u32>| devid.is_some_and(|n| n.to_string() == number);
                    config.nics.retain(|nic| !same(nic.devid));
                }
            }
        }
        let emptied = match json.get_mut(key).and_then(serde_json::Value::as_array_mut) {
            Some(list) => {
                list.retain(|item| userdata::device_number(kind, item).as_deref() != Some(number));
                list.is_empty()
            }
            None => false,
        };
        if emptied {
            json.shift_remove(key);
        }
    })
}

/// Takes away a device that a killed process was attaching or detaching.
///
/// # Errors
/// As [`detach`] by force.
pub fn remove_unfinished<S: StoreControl>(
    store: &S,
    info: &DomainInfo,
    kind: &str,
    number: &str,
) -> Result<()> {
    let there = devices(store, info.dom)?;
    let found = there
        .iter()
        .find(|device| device.kind == kind && device.number == number);
    match found {
        None => forget(info, kind, number),
        Some(device) => {
            take_away(store, device)?;
            remove(store, info, device)
        }
    }
}

/// Has the back end let go of a device, whatever the guest does.
fn take_away<S: StoreControl>(store: &S, device: &Device) -> Result<()> {
    let back = &device.backend;
    store.transaction::<(), Error>(|store, tx| {
        let tx = Some(tx);
        let state = store.read_optional(tx, &format!("{back}/state"))?;
        if let Some(state) = state {
            store.write(tx, &format!("{back}/online"), b"0")?;
            if XenbusState::parse(&state) != XenbusState::Closed {
                store.write_display(tx, &format!("{back}/state"), &XenbusState::Closing)?;
            }
        }
        store.rm_if_present(tx, &device.frontend)?;
        Ok(())
    })?;
    let awaited = Awaited {
        path: back.clone(),
        what: format!("the back end of {} {}", device.kind, device.number),
    };
    wait_backends(store, vec![awaited], DETACH_TIMEOUT, |state| match state {
        None | Some(XenbusState::Closed | XenbusState::Unknown) => Look::Done,
        Some(_) => Look::Waiting,
    })
}

/// One after another changes what is written about a guest.
pub(crate) fn claim_guest(claims: &Claims, info: &DomainInfo) -> Result<()> {
    let id = crate::uuid::format(&info.uuid);
    let what = format!("the files of domain {}", info.dom);
    claims.add(&format!("files {id}"), true, &what)
}

fn check_guest(info: &DomainInfo) -> Result<()> {
    let step = "attach a device to domain";
    if info.dom == DomId::DOM0 {
        let error = Error::new(
            step,
            info.dom,
            "it is dom0, which has the devices themselves",
        );
        return Err(error.kind(Kind::Invalid));
    }
    if info.flags.dying {
        return Err(Error::new(step, info.dom, "it is being removed").kind(Kind::Invalid));
    }
    Ok(())
}

fn check_absent(
    store: &impl Store,
    dom: DomId,
    kind: &str,
    number: &str,
    name: &str,
) -> Result<()> {
    let path = format!("{}/device/{kind}/{number}/frontend", nodes::libxl(dom));
    let there = text(store, None, &path).map_err(Error::store("look at", &path))?;
    match there {
        None => Ok(()),
        Some(_) => {
            let object = format!("{name} to domain {dom}");
            let error = Error::new("attach", object, "it has one of this name");
            Err(error
                .kind(Kind::Exists)
                .hint("choose another name, or detach that one first"))
        }
    }
}

/// An attachment that is taken back when this is dropped before it is finished.
struct Work<'a, S: StoreControl> {
    store: &'a S,
    info: &'a DomainInfo,
    kind: &'static str,
    number: String,
    mark: Option<Underway>,
}

impl<'a, S: StoreControl> Work<'a, S> {
    fn begin(
        store: &'a S,
        info: &'a DomainInfo,
        kind: &'static str,
        number: &str,
    ) -> Result<Work<'a, S>> {
        Ok(Work {
            store,
            info,
            kind,
            number: number.to_string(),
            mark: Some(Underway::begin_device(&info.uuid, kind, number)?),
        })
    }

    /// Back ends shall see all or nothing.
    fn declare(&self, nodes: Nodes) -> Result<()> {
        interrupt::check()?;
        let nodes = nodes.compact();
        self.store.transaction(|store, tx| {
            let written = nodes.write(store, Some(tx));
            written.map_err(Error::store("declare the device to", self.info.dom))
        })
    }

    fn wait(&self, what: String) -> Result<()> {
        let number = self.number.parse().unwrap_or_default();
        let path = nodes::backend(self.kind, self.info.dom, number);
        wait_ready(self.store, vec![Awaited { path, what }], BACKEND_TIMEOUT)
    }

    fn finish(mut self) -> Result<()> {
        interrupt::check()?;
        self.mark = None;
        Ok(())
    }
}

impl<S: StoreControl> Drop for Work<'_, S> {
    fn drop(&mut self) {
        let Some(mark) = self.mark.take() else {
            return;
        };
        interrupt::ignore();
        if let Err(error) = remove_unfinished(self.store, self.info, self.kind, &self.number) {
            eprintln!("xlrs: while cleaning up: {error}");
            mark.leave();
        }
    }
}

fn push(json: &mut serde_json::Map<String, serde_json::Value>, key: &str, item: serde_json::Value) {
    if let Some(list) = json.get_mut(key).and_then(serde_json::Value::as_array_mut) {
        return list.push(item);
    }
    // Where libxl has it: behind c_info and b_info, and disks before nics.
    let at = match key {
        "disks" => 2,
        _ if json.contains_key("disks") => 3,
        _ => 2,
    };
    json.shift_insert(at.min(json.len()), key.into(), vec![item].into());
}

/// Changes what is written about a guest.
pub(crate) fn edit_files(
    info: &DomainInfo,
    edit: impl FnOnce(Option<&mut Marks>, &mut serde_json::Map<String, serde_json::Value>),
) -> Result<()> {
    let read = |kind| userdata::read(info.dom, &info.uuid, kind);
    let mut marks = read(Userdata::Xlrs).and_then(|text| Marks::decode(&text));
    let json = read(Userdata::Libxl);
    let mut value: serde_json::Map<String, serde_json::Value> = match &json {
        Some(text) => serde_json::from_str(text).map_err(|error| {
            let path = userdata::path(info.dom, &info.uuid, Userdata::Libxl);
            Error::new("read", path.display(), error)
        })?,
        None => serde_json::Map::new(),
    };
    edit(marks.as_mut(), &mut value);
    if json.is_some() {
        let text = userdata::libxl_text(&value.into());
        userdata::write(info.dom, &info.uuid, Userdata::Libxl, &text)?;
    }
    if let Some(marks) = marks {
        userdata::write(info.dom, &info.uuid, Userdata::Xlrs, &marks.encode())?;
    }
    Ok(())
}

/// Takes away what killed processes have left of guests' devices; says whether any is still at work.
pub fn clear_unfinished<C: DomainControl, S: StoreControl>(
    control: &C,
    store: &S,
    log: impl Fn(&str),
) -> bool {
    let mut at_work = false;
    for (id, kind, number) in underway::all_devices() {
        let what = format!("{kind} {number} of {}", crate::uuid::format(&id));
        let mark = match Underway::take_over_device(&id, &kind, &number) {
            Ok(Some(mark)) => mark,
            Ok(None) => {
                at_work = true;
                continue;
            }
            Err(error) => {
                log(&format!("{what}: {error}; it is left alone"));
                continue;
            }
        };
        let list = match control.list() {
            Ok(list) => list,
            Err(error) => {
                log(&format!("list the domains: {error}"));
                mark.leave();
                continue;
            }
        };
        let Some(info) = list.iter().find(|i| i.uuid == id && !i.flags.dying) else {
            // With the guest its devices are gone.
            continue;
        };
        match remove_unfinished(store, info, &kind, &number) {
            Ok(()) => log(&format!(
                "{what}: who was at work on it was killed; it is removed"
            )),
            Err(error) => {
                log(&format!("{what}: {error}"));
                mark.leave();
            }
        }
    }
    at_work
}
