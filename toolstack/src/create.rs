//! Creates guests: domain, memory, nodes, devices; all of it or nothing.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use xen_hal::{CreateDomain, DomainControl, Placement, Store, StoreExt, XenbusState};
use xen_ring::SharedMemoryExt;
use xen_sys::{DomId, Mfn};

use crate::backends::{Class, Server};
use crate::build::{Built, build};
use crate::claims::Claims;
use crate::config::{DiskConfig, DiskFormat, DomainConfig};
use crate::destroy;
use crate::error::{Error, Kind, Result};
use crate::hotplug::{self, Call};
use crate::index::{self, Answer};
use crate::nodes::{self, Facts, Nic, Nodes, PhysicalDevice};
use crate::os::{self, Interfaces, LoopDevice};
use crate::pool::Shell;
use crate::prepare::{Disk, Guest, Prepared, Target};
use crate::storage::Id;
use crate::store::{Awaited, Look, StoreControl, find_among_all, wait_backends};
use crate::times;
use crate::underway::Underway;
use crate::userdata::{self, Userdata};
use crate::{interrupt, placement, storage, uuid};

/// How long back ends may take to take notice of a new guest.
pub(crate) const BACKEND_TIMEOUT: Duration = Duration::from_secs(10);

/// A domain that is destroyed when this is dropped, unless it is kept.
pub struct DomainGuard<'a, C: DomainControl, S: StoreControl> {
    control: &'a C,
    store: &'a S,
    dom: DomId,
    uuid: [u8; 16],
    mark: Option<Underway>,
    /// The page of its start_info, once there is one.
    start_info: Option<Mfn>,
}

impl<'a, C: DomainControl, S: StoreControl> DomainGuard<'a, C, S> {
    fn new(control: &'a C, store: &'a S, dom: DomId, uuid: [u8; 16], mark: Underway) -> Self {
        DomainGuard {
            control,
            store,
            dom,
            uuid,
            mark: Some(mark),
            start_info: None,
        }
    }

    /// The page of its start_info, once there is one.
    pub(crate) fn start_info(&self) -> Option<Mfn> {
        self.start_info
    }

    /// The domain stays, as a shell with this file, which says so much about it.
    ///
    /// # Errors
    /// The file system's; the domain goes.
    pub(crate) fn become_shell(mut self, file: &Path, text: &str) -> io::Result<()> {
        match self.mark.take() {
            None => Ok(()),
            Some(mark) => mark.become_file(file, text).map_err(|(mark, error)| {
                self.mark = Some(mark);
                error
            }),
        }
    }

    /// The domain.
    pub fn dom(&self) -> DomId {
        self.dom
    }

    /// The domain stays.
    pub fn keep(mut self) -> DomId {
        self.mark = None;
        self.dom
    }
}

impl<C: DomainControl, S: StoreControl> Drop for DomainGuard<'_, C, S> {
    fn drop(&mut self) {
        let Some(mark) = self.mark.take() else {
            return;
        };
        interrupt::ignore();
        let info = match self.control.info(self.dom) {
            Ok(Some(info)) if info.uuid == self.uuid => info,
            Ok(_) => return,
            Err(error) => {
                let error = Error::hal("ask Xen about domain", self.dom)(error);
                eprintln!("xlrs: while cleaning up: {error}");
                return mark.leave();
            }
        };
        if let Err(error) = destroy::remove(self.control, self.store, &info) {
            eprintln!("xlrs: while cleaning up: {error}");
            if destroy::is_there(self.control, &info) {
                // The supervisor shall try again.
                mark.leave();
            }
        }
    }
}

/// Creates a guest; it is left paused.
///
/// # Errors
/// What failed; nothing is left behind.
pub fn create<C: Placement, S: StoreControl>(
    control: &C,
    store: &S,
    guest: &Prepared,
) -> Result<DomId> {
    create_guarded(control, store, guest).map(DomainGuard::keep)
}

/// As [`create`], but until it is kept the guest goes with the guard, or with the process.
///
/// # Errors
/// What failed; nothing is left behind.
pub fn create_guarded<'a, C: Placement, S: StoreControl>(
    control: &'a C,
    store: &'a S,
    guest: &Prepared,
) -> Result<DomainGuard<'a, C, S>> {
    create_as(control, store, guest, true)
}

/// As [`create_guarded`], for a shell: it stands in no index by the name that it will not keep.
pub(crate) fn create_shell<'a, C: Placement, S: StoreControl>(
    control: &'a C,
    store: &'a S,
    guest: &Prepared,
) -> Result<DomainGuard<'a, C, S>> {
    create_as(control, store, guest, false)
}

fn create_as<'a, C: Placement, S: StoreControl>(
    control: &'a C,
    store: &'a S,
    guest: &Prepared,
    keeps_name: bool,
) -> Result<DomainGuard<'a, C, S>> {
    guest.check_host()?;
    // Two that are created at once must not have the same name or disk.
    let _claims = claim(guest)?;
    let (indexed, servers, unused) = check_name(store, guest)?;
    check_disks(store, &guest.disks, indexed, &unused)?;
    if guest.config.uuid.is_some() {
        check_uuid(control, &guest.uuid)?;
    }
    let mark = Underway::begin(&guest.uuid)?;

    times::mark("check");
    let dom = control
        .create(None, &specification(guest))
        .map_err(Error::hal("create a domain for", &guest.config.name))?;
    let mut guard = DomainGuard::new(control, store, dom, guest.uuid, mark);
    times::mark("create domain");
    // From now on any later process knows whose this is.
    write_userdata(dom, guest)?;
    times::mark("userdata");
    placement::into_pool(control, store, dom, &guest.config)?;
    let built = build(control, dom, guest)?;
    guard.start_info = Some(built.start_info);
    interrupt::check()?;
    times::mark("build");
    let devices = plan_devices(dom, guest, &servers)?;
    let facts = Facts {
        dom,
        uuid: guest.uuid,
        config: &guest.config,
        store: built.store,
        console: built.console,
        now: now(),
    };
    // Nobody looks at the nodes of a domain that is not introduced: no transaction is needed for them.
    let mut home = nodes::guest(&facts);
    home.extend(devices.unseen);
    let mut home = home.compact();
    if indexed && keeps_name {
        home.extend(index::guest(dom, &guest.config.name, &guest.disks));
    }
    introduce(store, &home, guest, &built)?;
    times::mark("declare");
    tell_backends(store, guest, &devices.backends)?;
    times::mark("devices");
    connect_devices(store, dom, guest, devices.loops)?;
    interrupt::check()?;
    Ok(guard)
}

/// Makes a guest of a shell that has been built before; as for [`create_guarded`], it is left paused, and
/// goes with the guard until it is kept.
///
/// # Errors
/// What failed; nothing is left behind, the shell neither.
pub fn dress<'a, C: DomainControl, S: StoreControl>(
    control: &'a C,
    store: &'a S,
    shell: Shell,
    config: DomainConfig,
) -> Result<DomainGuard<'a, C, S>> {
    let (dom, uuid) = (shell.dom, shell.uuid);
    let mut guard = DomainGuard::new(control, store, dom, uuid, shell.mark);
    guard.start_info = Some(shell.start_info);
    let guest = Guest::new(config, uuid)?;
    guest.check_host()?;
    let _claims = claim(&guest)?;
    let config = &guest.config;
    let (indexed, servers, unused) = check_name(store, &guest)?;
    check_disks(store, &guest.disks, indexed, &unused)?;
    times::mark("check");
    write_userdata(dom, &guest)?;
    times::mark("userdata");
    if config.cmdline != shell.cmdline {
        set_cmdline(control, dom, shell.start_info, &config.cmdline)?;
    }
    times::mark("command line of the guest");
    let mut names = nodes::renamed(dom, &uuid, config, now());
    if indexed {
        names.extend(index::guest(dom, &config.name, &guest.disks));
    }
    let devices = plan_devices(dom, &guest, &servers)?;
    names.extend(devices.unseen.compact());
    names.write(store, None).map_err(declare_error(&guest))?;
    tell_backends(store, &guest, &devices.backends)?;
    times::mark("declare");
    connect_devices(store, dom, &guest, devices.loops)?;
    interrupt::check()?;
    Ok(guard)
}

/// Writes the command line into the start_info of a guest that has not started yet.
fn set_cmdline(control: &impl DomainControl, dom: DomId, page: Mfn, cmdline: &str) -> Result<()> {
    let failed = |step: &'static str| Error::hal(step, format!("domain {dom}"));
    if cmdline.len() > pv_layout::CMDLINE_MAX {
        let error = pv_layout::LayoutError::CommandLineTooLong { len: cmdline.len() };
        return Err(Error::new("lay out", format!("domain {dom}"), error)
            .hint("shorten cmdline= or extra="));
    }
    let memory = control
        .map_frames(dom, &[page])
        .map_err(failed("map start_info of"))?;
    let mut text = [0; pv_layout::CMDLINE_MAX + 1];
    text[..cmdline.len()].copy_from_slice(cmdline.as_bytes());
    memory.write_bytes(pv_layout::CMDLINE_OFFSET, &text);
    Ok(())
}

/// Writes a guest's nodes and makes the daemon listen to it.
fn introduce<S: StoreControl>(store: &S, home: &Nodes, guest: &Guest, built: &Built) -> Result<()> {
    let (dom, (ring, port)) = (built.dom, built.store);
    let mut results = store.batch_and_introduce(&home.ops(), dom, ring, port);
    let introduced = results.pop();
    match results.into_iter().find_map(Result::err) {
        Some(error) => Err(declare_error(guest)(error)),
        None => introduced
            .map_or(Ok(()), |result| result.map(drop))
            .map_err(Error::store("introduce to the store daemon domain", dom)),
    }
}

/// The devices of a guest that does not run yet.
struct Devices {
    /// What nobody looks at before the back ends are told: the front ends, and libxl's copies.
    unseen: Nodes,
    /// What back ends look at.
    backends: Nodes,
    /// Block devices made of files, for the kernel's back end.
    loops: Vec<LoopDevice>,
}

fn plan_devices(dom: DomId, guest: &Guest, servers: &Servers) -> Result<Devices> {
    let mut all = Nodes::default();
    let mut loops = Vec::new();
    for disk in &guest.disks {
        let physical = match servers.block {
            _ if disk.target == Target::Script => {
                needs_kernel(disk, servers.block)?;
                None
            }
            Some(Server::Kernel) => Some(physical_device(disk, &mut loops)?),
            _ => None,
        };
        all.extend(nodes::disk(dom, &disk.config, physical.as_ref()));
    }
    for nic in &guest.nics {
        all.extend(nodes::nic(dom, nic));
    }
    let (backends, unseen) = all.split_backends();
    Ok(Devices {
        unseen,
        backends: backends.compact(),
        loops,
    })
}

/// Writes what back ends look at, of all devices at once: they shall see all or nothing.
fn tell_backends<S: StoreControl>(store: &S, guest: &Guest, backends: &Nodes) -> Result<()> {
    if backends.0.is_empty() {
        return Ok(());
    }
    store.transaction(|store, tx| {
        let written = backends.write(store, Some(tx));
        written.map_err(declare_error(guest))
    })
}

/// Our back end opens the file or device that is named; what a script makes, only the kernel's is told.
pub(crate) fn needs_kernel(disk: &Disk, server: Option<Server>) -> Result<()> {
    match server {
        Some(Server::Daemon(_)) => Err(Error::new(
            "use the disk",
            format!("{} ({})", disk.config.target.display(), disk.config.vdev),
            "our blkback cannot serve what a script= makes",
        )
        .hint("start the host with `xlrs host start --stock blkback` and `modprobe xen-blkback`")),
        _ => Ok(()),
    }
}

/// Runs the script of a disk that has one.
pub(crate) fn run_disk_script(store: &impl Store, dom: DomId, disk: &DiskConfig) -> Result<()> {
    match hotplug::custom(disk.script.as_deref()) {
        None => Ok(()),
        Some(script) => hotplug::Device {
            script: &script,
            backend: &nodes::backend("vbd", dom, disk.number),
            card: None,
        }
        .run(store, Call::Add),
    }
}

fn connect_devices<S: StoreControl>(
    store: &S,
    dom: DomId,
    guest: &Guest,
    loops: Vec<LoopDevice>,
) -> Result<()> {
    wait_for_backends(store, dom, guest)?;
    times::mark("back ends");
    for disk in guest
        .disks
        .iter()
        .filter(|disk| disk.target == Target::Script)
    {
        run_disk_script(store, dom, &disk.config)?;
    }
    for nic in &guest.nics {
        connect_nic(store, dom, nic)?;
    }
    for device in loops {
        release_loop(dom, device)?;
    }
    Ok(())
}

/// Who serves the guest's devices; `None` for a class it has none of.
struct Servers {
    block: Option<Server>,
}

impl Servers {
    /// The classes of which a guest has devices.
    fn wanted(guest: &Guest) -> Vec<Class> {
        let mut classes = Vec::new();
        classes.extend((!guest.disks.is_empty()).then_some(Class::Block));
        classes.extend((!guest.nics.is_empty()).then_some(Class::Net));
        classes
    }

    /// Who they are, by what the nodes of our daemons say.
    fn find(classes: &[Class], pids: Vec<Option<String>>) -> Result<Servers> {
        let mut servers = Servers { block: None };
        for (class, pid) in classes.iter().zip(pids) {
            let server = class.server_by(pid)?;
            if *class == Class::Block {
                servers.block = Some(server);
            }
        }
        Ok(servers)
    }
}

fn specification(guest: &Prepared) -> CreateDomain {
    let config = &guest.config;
    let limit = |value: Option<u32>| value.map_or(-1, |value| value as i32);
    CreateDomain {
        uuid: guest.uuid,
        max_vcpus: config.max_vcpus,
        max_event_channels: config.max_event_channels as i32,
        max_grant_frames: limit(config.max_grant_frames),
        max_maptrack_frames: limit(config.max_maptrack_frames),
        max_grant_version: config.max_grant_version,
        cpupool: 0,
    }
}

fn now() -> (u64, u32) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (now.as_secs(), now.subsec_millis() / 10)
}

fn declare_error(guest: &Guest) -> impl Fn(xs_wire::StoreError) -> Error + use<> {
    let name = guest.config.name.clone();
    move |error| Error::store("declare to the store", &name)(error)
}

fn claim(guest: &Guest) -> Result<Claims> {
    let claims = Claims::begin()?;
    let name = &guest.config.name;
    claims.add(&format!("name {name}"), true, &format!("the name {name}"))?;
    // A disk of its own that is named twice is found later.
    for (index, disk) in guest.disks.iter().enumerate() {
        let before = &guest.disks[..index];
        if disk.id == Id::Script || !before.iter().any(|other| other.id == disk.id) {
            let what = format!("the disk {}", disk.config.target.display());
            let key = match disk.id {
                Id::Script => format!("script {}", disk.config.target.display()),
                id => format!("{id:?}"),
            };
            claims.add(&key, disk.config.writable, &what)?;
        }
    }
    Ok(claims)
}

/// Refuses a name that is taken, and devices that nobody serves; tells whether the index was asked, who serves, and on which
/// storage no guest has a disk.
fn check_name(store: &impl Store, guest: &Guest) -> Result<(bool, Servers, Vec<Id>)> {
    let name = &guest.config.name;
    let failed = || Error::store("look for the name", name);
    let classes = Servers::wanted(guest);
    let storage: Vec<Id> = guest.disks.iter().flat_map(all_ids).collect();
    let nodes = classes.iter().map(|class| class.node());
    let nodes = nodes.chain(storage.iter().map(|id| index::disk_node(*id)));
    let (found, mut values) = index::by_name_and(store, name, nodes.collect()).map_err(failed())?;
    let used = values.split_off(classes.len().min(values.len()));
    let servers = Servers::find(&classes, values)?;
    let unused = storage.into_iter().zip(used);
    let unused = unused.filter_map(|(id, node)| node.is_none().then_some(id));
    let (indexed, taken) = match found {
        Answer::Known(dom) => (true, dom),
        Answer::Unknown => (false, find_among_all(store, name).map_err(failed())?),
    };
    match taken {
        None => Ok((indexed, servers, unused.collect())),
        Some(dom) => Err(
            Error::new("create", name, format!("domain {dom} has this name")).hint(format!(
                "choose another name, or remove that one: `xlrs destroy {name}`"
            )),
        ),
    }
}

/// By their UUIDs two guests would be taken for one, and lose each other's nodes.
fn check_uuid(control: &impl DomainControl, id: &[u8; 16]) -> Result<()> {
    let list = control
        .list()
        .map_err(Error::hal("look for the UUID", uuid::format(id)))?;
    // One that is dying is out of everybody's way.
    match list.iter().find(|i| i.uuid == *id && !i.flags.dying) {
        None => Ok(()),
        Some(info) => Err(Error::new(
            "create a guest with UUID",
            uuid::format(id),
            format!("domain {} has it", info.dom),
        )
        .hint("choose another uuid=, or leave it out: a random one is made then")),
    }
}

/// Refuses storage that a running guest or dom0 writes to, and storage that shall be written to while one
/// of them reads it.
pub(crate) fn check_disks(
    store: &impl Store,
    disks: &[Disk],
    indexed: bool,
    unused: &[Id],
) -> Result<()> {
    for (index, disk) in disks.iter().enumerate() {
        let twin = disks[..index].iter().find(|other| share(other.id, disk.id));
        if let Some(twin) = twin
            && (twin.config.writable || disk.config.writable)
        {
            return Err(shared(disk, "this guest itself"));
        }
        check_dom0(disk)?;
    }
    if disks.is_empty() {
        return Ok(());
    }
    let failed = || Error::store("look which disks are in use", "");
    let all = match indexed {
        true => Vec::new(),
        false => index::all_users(store).map_err(failed())?,
    };
    // Who else uses what a script makes is the script's to find out.
    for disk in disks.iter().filter(|disk| disk.id != Id::Script) {
        let mut users = Vec::new();
        for id in all_ids(disk) {
            match indexed {
                true if unused.contains(&id) => {}
                true => users.extend(index::users(store, id).map_err(failed())?),
                false => users.extend(
                    all.iter()
                        .filter(|(other, _)| *other == id)
                        .map(|(_, u)| u.clone()),
                ),
            }
        }
        let conflict = users
            .iter()
            .find(|user| disk.config.writable || user.writable);
        if let Some(user) = conflict {
            let how = if user.writable { "writes to" } else { "reads" };
            return Err(shared(
                disk,
                &format!("domain {}, which {how} it,", user.dom),
            ));
        }
    }
    Ok(())
}

/// What a disk is on, and what shares it: partitions, or what they are part of.
fn all_ids(disk: &Disk) -> Vec<Id> {
    let mut ids = disk.id.relatives();
    ids.push(disk.id);
    ids
}

fn share(a: Id, b: Id) -> bool {
    a != Id::Script && (a == b || a.relatives().contains(&b))
}

/// Dom0 may read what the guest only reads, and nothing else.
fn check_dom0(disk: &Disk) -> Result<()> {
    let step = "use the disk";
    let object = || format!("{} ({})", disk.config.target.display(), disk.config.vdev);
    for id in all_ids(disk) {
        if let Some((point, writable)) = id.mounted()
            && (writable || disk.config.writable)
        {
            let how = if writable { "" } else { " read-only" };
            return Err(Error::new(
                step,
                object(),
                format!("dom0 has it mounted{how} on {point}"),
            )
            .hint(format!("`umount {point}` first")));
        }
    }
    if matches!(disk.id, Id::Block(..))
        && disk.config.writable
        && storage::is_held(&disk.config.target).map_err(|e| Error::system(step, object(), &e))?
    {
        let cause = "dom0 uses it: mounted, or part of LVM, RAID or swap";
        return Err(Error::new(step, object(), cause).hint("`lsblk` shows what is made of it"));
    }
    Ok(())
}

fn shared(disk: &Disk, by: &str) -> Error {
    let object = format!("{} ({})", disk.config.target.display(), disk.config.vdev);
    Error::new("use the disk", object, format!("it is in use by {by}"))
        .hint("two guests may share a disk only if both have it read-only (access=r)")
}

/// What the kernel's back end needs: a block device, made of a file if need be.
pub(crate) fn physical_device(disk: &Disk, loops: &mut Vec<LoopDevice>) -> Result<PhysicalDevice> {
    let path = &disk.config.target;
    let limited = disk.config.max_iops.or(disk.config.max_bytes_per_second);
    let lacks = match (disk.config.format, limited) {
        (DiskFormat::Raw, None) => None,
        (DiskFormat::Raw, Some(_)) => Some("knows no limits of a disk's speed".into()),
        // It would show the guest the image's headers.
        (format, _) => Some(format!("has no format {}", format.name())),
    };
    if let Some(lacks) = lacks {
        let object = format!("{} ({})", path.display(), disk.config.vdev);
        let what = format!("the kernel's back end {lacks}");
        return Err(Error::new("use the disk", object, what)
            .hint("start blkback, which has it: `xlrs host start`"));
    }
    if let Target::Block(major, minor) = disk.target {
        return Ok(PhysicalDevice {
            path: path.display().to_string(),
            number: (major, minor),
        });
    }
    let failed = |error: &std::io::Error| {
        Error::system("make a loop device of", path.display(), error)
            .hint("the kernel's back end needs one for a file: `modprobe loop`")
    };
    let file = os::open_disk(path, disk.config.writable).map_err(|e| failed(&e))?;
    let device = LoopDevice::attach(&file, path, disk.config.writable).map_err(|e| failed(&e))?;
    let physical = PhysicalDevice {
        path: device.path.display().to_string(),
        number: device.number,
    };
    loops.push(device);
    Ok(physical)
}

/// Gives our hold on a loop device up once the kernel's back end has its own.
pub(crate) fn release_loop(dom: DomId, device: LoopDevice) -> Result<()> {
    const STEP: Duration = Duration::from_millis(1);
    const STEPS: u32 = 2000;
    let (major, minor) = device.number;
    // The back end shows the device here as soon as it has opened it, in most cases already.
    let wanted = format!("{major:x}:{minor:x}");
    for _ in 0..STEPS {
        let entries = std::fs::read_dir("/sys/bus/xen-backend/devices");
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let ours = name.to_string_lossy().starts_with(&format!("vbd-{dom}-"));
            if ours
                && let Ok(text) = std::fs::read_to_string(entry.path().join("physical_device"))
                && text.trim() == wanted
            {
                return Ok(());
            }
        }
        std::thread::sleep(STEP);
    }
    let what = device.path.display();
    Err(
        Error::new("hand over", what, "the kernel's back end has not opened it")
            .kind(Kind::TimedOut),
    )
}

fn write_userdata(dom: DomId, guest: &Guest) -> Result<()> {
    let json = userdata::libxl_json(&guest.config, &guest.uuid, &guest.nics);
    let text = userdata::libxl_text(&json);
    userdata::write(dom, &guest.uuid, Userdata::Libxl, &text)?;
    let marks = crate::supervise::Marks::of(guest);
    userdata::write(dom, &guest.uuid, Userdata::Xlrs, &marks.encode())
}

fn wait_for_backends<S: StoreControl>(store: &S, dom: DomId, guest: &Guest) -> Result<()> {
    let disks = guest.disks.iter().map(|disk| Awaited {
        path: nodes::backend("vbd", dom, disk.config.number),
        what: format!("the back end of disk {}", disk.config.vdev),
    });
    let nics = guest.nics.iter().map(|nic| Awaited {
        path: nodes::backend("vif", dom, nic.devid),
        what: format!("the back end of card {}", nic.devid),
    });
    wait_ready(store, disks.chain(nics).collect(), BACKEND_TIMEOUT)
}

/// Waits until back ends have taken notice.
pub(crate) fn wait_ready<S: StoreControl>(
    store: &S,
    backends: Vec<Awaited>,
    timeout: Duration,
) -> Result<()> {
    wait_backends(store, backends, timeout, |state| match state {
        Some(XenbusState::InitWait | XenbusState::Initialised | XenbusState::Connected) => {
            Look::Done
        }
        Some(XenbusState::Closing | XenbusState::Closed) => Look::Failed,
        _ => Look::Waiting,
    })
}

/// Puts the interface that the back end has made where it belongs, as the script vif-bridge would.
pub(crate) fn connect_nic(store: &impl Store, dom: DomId, nic: &Nic) -> Result<()> {
    let mut name = nic.interface(dom);
    if let Some(script) = hotplug::custom(nic.config.script.as_deref()) {
        return hotplug::Device {
            script: &script,
            backend: &nodes::backend("vif", dom, nic.devid),
            card: Some((
                &name,
                nic.config.gateway_device.as_deref().unwrap_or_default(),
            )),
        }
        .run(store, Call::Add);
    }
    let failed = |step: &'static str, object: &str, error: std::io::Error| {
        Error::system(step, object, &error)
    };
    let net = Interfaces::open().map_err(|e| failed("open", "a socket", e))?;
    if let Some(wanted) = &nic.config.vifname {
        net.rename(&name, wanted)
            .map_err(|e| failed("rename the interface", &format!("{name} to {wanted}"), e))?;
        name = wanted.clone();
    }
    if net
        .mtu(&name)
        .map_err(|e| failed("find the interface", &name, e))?
        != nic.mtu
    {
        net.set_mtu(&name, nic.mtu)
            .map_err(|e| failed("set the MTU of", &name, e))?;
    }
    net.join_bridge(&nic.bridge, &name)
        .map_err(|e| failed("add to the bridge", &format!("{} {name}", nic.bridge), e))?;
    net.up(&name).map_err(|e| failed("bring up", &name, e))?;
    let status = format!("{}/hotplug-status", nodes::backend("vif", dom, nic.devid));
    store
        .write(None, &status, b"connected")
        .map_err(Error::store("tell the back end of card", nic.devid))
}
