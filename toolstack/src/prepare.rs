//! All that can be found out about a guest before Xen is asked: files, layout, devices.

use std::fmt;
use std::fs;
use std::ops::Deref;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use pv_layout::{BootPlan, LayoutError};

use crate::config::{DiskConfig, DomainConfig, NicConfig};
use crate::error::{Error, Result};
use crate::image::{Kernel, Ramdisk};
use crate::nodes::Nic;
use crate::storage::Id;
use crate::{hotplug, os, uuid};

/// The bridge that is joined if none is named.
pub const DEFAULT_BRIDGE: &str = "xenbr0";
/// The largest packet if nothing says otherwise.
const DEFAULT_MTU: u32 = 1500;

/// A guest whose devices are checked.
#[derive(Debug)]
pub struct Guest {
    /// Its configuration.
    pub config: DomainConfig,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its disks, in the configuration's order.
    pub disks: Vec<Disk>,
    /// Its network cards.
    pub nics: Vec<Nic>,
}

/// A guest that is ready to be made.
#[derive(Debug)]
pub struct Prepared {
    /// All but what it boots.
    pub guest: Guest,
    /// Its kernel, unpacked and checked.
    pub kernel: Kernel,
    /// Its ramdisk, open.
    pub ramdisk: Option<Ramdisk>,
    /// Where everything goes.
    pub plan: BootPlan,
}

impl Deref for Prepared {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

/// A disk whose target exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What the configuration says.
    pub config: DiskConfig,
    /// What it is.
    pub target: Target,
    /// What is behind it.
    pub id: Id,
}

/// What a disk is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A file: its device and inode.
    File(u64, u64),
    /// A block device: its major and minor number.
    Block(u32, u32),
    /// Whatever a `script=` makes of it.
    Script,
}

impl Target {
    /// What is behind a path.
    ///
    /// # Errors
    /// The path leads nowhere; `Ok(None)` if it is neither file nor block device.
    pub fn of(path: &std::path::Path) -> std::io::Result<Option<Target>> {
        let meta = fs::metadata(path)?;
        Ok(if meta.file_type().is_block_device() {
            let number = meta.rdev();
            Some(Target::Block(libc::major(number), libc::minor(number)))
        } else if meta.is_file() {
            Some(Target::File(meta.dev(), meta.ino()))
        } else {
            None
        })
    }

    /// The block device that a back end was given: two hexadecimal numbers, which are 0 if it has none.
    pub fn of_numbers(text: &str) -> Option<Target> {
        let (major, minor) = text.trim().split_once(':')?;
        let number = |digits| u32::from_str_radix(digits, 16).ok();
        let numbers = (number(major)?, number(minor)?);
        (numbers != (0, 0)).then_some(Target::Block(numbers.0, numbers.1))
    }
}

impl Prepared {
    /// Opens and checks what the configuration names.
    ///
    /// # Errors
    /// The first thing that is missing or makes no sense.
    pub fn new(mut config: DomainConfig) -> Result<Prepared> {
        whole_paths(&mut config)?;
        let kernel = Kernel::load(&config.kernel)?;
        crate::times::mark("kernel");
        let ramdisk = config.ramdisk.as_deref().map(Ramdisk::open).transpose()?;
        let pages = config.memory_kib / 4;
        let plan = BootPlan::new(kernel.image(), ramdisk.as_ref().map(Ramdisk::len), pages)
            .map_err(|error| layout_error(&config, &kernel, error))?;
        crate::times::mark("plan");
        let too_long = config.cmdline.len() > pv_layout::CMDLINE_MAX;
        if too_long {
            let error = LayoutError::CommandLineTooLong {
                len: config.cmdline.len(),
            };
            return Err(layout_error(&config, &kernel, error));
        }
        let uuid = match config.uuid {
            Some(uuid) => uuid,
            None => uuid::make().map_err(|e| Error::system("make a UUID", "", &e))?,
        };
        Ok(Prepared {
            guest: Guest::new(config, uuid)?,
            kernel,
            ramdisk,
            plan,
        })
    }
}

impl Guest {
    /// Checks the devices that the configuration names.
    ///
    /// # Errors
    /// The first that is missing or makes no sense.
    pub fn new(mut config: DomainConfig, uuid: [u8; 16]) -> Result<Guest> {
        whole_paths(&mut config)?;
        let disks = config.disks.iter().map(check_disk).collect::<Result<_>>()?;
        let nics = name_nics(&config)?;
        Ok(Guest {
            config,
            uuid,
            disks,
            nics,
        })
    }

    /// Checks what must exist on the host beyond files.
    ///
    /// # Errors
    /// A bridge is missing, or the name of an interface is taken.
    pub fn check_host(&self) -> Result<()> {
        self.nics.iter().try_for_each(check_nic)
    }
}

/// Checks what a card needs of the host.
pub(crate) fn check_nic(nic: &Nic) -> Result<()> {
    if !os::is_bridge(&nic.bridge) {
        let what = if os::interface_exists(&nic.bridge) {
            "it is no bridge"
        } else {
            "there is no such interface"
        };
        return Err(Error::new("find the bridge", &nic.bridge, what)
            .hint(format!(
                "make it with `ip link add {0} type bridge && ip link set {0} up`, or name another with bridge=",
                nic.bridge
            )));
    }
    if let Some(name) = &nic.config.vifname
        && os::interface_exists(name)
    {
        return Err(
            Error::new("name the interface", name, "there is one of this name")
                .hint("choose another vifname="),
        );
    }
    Ok(())
}

/// Makes paths whole: back ends, and the supervisor that creates the guest again, are in other folders than we are.
///
/// # Errors
/// The folder that we are in cannot be told.
pub fn whole_paths(config: &mut DomainConfig) -> Result<()> {
    // To a script it is a word.
    let disks = config.disks.iter_mut();
    let disks = disks.filter(|disk| hotplug::custom(disk.script.as_deref()).is_none());
    let disks = disks.map(|disk| &mut disk.target);
    let files = [&mut config.kernel].into_iter().chain(&mut config.ramdisk);
    for path in files.chain(disks) {
        *path =
            std::path::absolute(&*path).map_err(|e| Error::system("find", path.display(), &e))?;
    }
    Ok(())
}

fn layout_error(config: &DomainConfig, kernel: &Kernel, error: LayoutError) -> Error {
    let hint = match &error {
        LayoutError::TooLittleMemory { needed_pages, .. } => Some(format!(
            "set memory = {} or more",
            (needed_pages * 4).div_ceil(1024)
        )),
        LayoutError::CommandLineTooLong { .. } => Some("shorten cmdline= or extra=".into()),
        _ => None,
    };
    let object = format!("{} with {}", config.name, kernel.path().display());
    let error = Error::new("lay out", object, error);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

pub(crate) fn check_disk(config: &DiskConfig) -> Result<Disk> {
    let path = config.target.display();
    let step = "use the disk";
    let failed = |error: &std::io::Error| {
        let known = error.kind() == std::io::ErrorKind::NotFound;
        let error = Error::system(step, format!("{path} ({})", config.vdev), error);
        if known {
            error.hint(match config.format.qemu_name() {
                None => format!("make one with `truncate -s 1G {path}`, or mend disk="),
                Some(format) => {
                    format!("make one with `qemu-img create -f {format} {path} 1G`, or mend disk=")
                }
            })
        } else {
            error
        }
    };
    if let Some(script) = hotplug::custom(config.script.as_deref()) {
        fs::metadata(&script).map_err(|e| {
            Error::system("find the script", script.display(), &e)
                .hint("script= names a file in /etc/xen/scripts, or one with its whole path")
        })?;
        return Ok(Disk {
            config: config.clone(),
            target: Target::Script,
            id: Id::Script,
        });
    }
    let target = Target::of(&config.target).map_err(|e| failed(&e))?;
    let invalid = |what: &str| {
        Error::new(step, format!("{path} ({})", config.vdev), what)
            .hint("name a disk image, made with `truncate -s 1G FILE` say, or a block device")
    };
    let target = target.ok_or_else(|| invalid("it is neither a file nor a block device"))?;
    // Whether it can be opened is better known now than by the back end.
    let file = os::open_disk(&config.target, config.writable).map_err(|e| failed(&e))?;
    if matches!(target, Target::File(..)) && file.metadata().map_err(|e| failed(&e))?.len() < 512 {
        return Err(invalid("it is shorter than one sector of 512 bytes"));
    }
    Ok(Disk {
        config: config.clone(),
        target,
        id: Id::of(target),
    })
}

/// Answers what the configuration leaves open about network cards.
///
/// # Errors
/// Two cards have the same number.
pub fn name_nics(config: &DomainConfig) -> Result<Vec<Nic>> {
    let mut nics: Vec<Nic> = Vec::new();
    for nic in &config.nics {
        let taken: Vec<u32> = nics.iter().map(|other| other.devid).collect();
        nics.push(name_nic(nic, &taken)?);
    }
    Ok(nics)
}

/// Answers what the configuration leaves open about a card of a guest that has these already.
///
/// # Errors
/// It has one of this number.
pub fn name_nic(nic: &NicConfig, taken: &[u32]) -> Result<Nic> {
    let mac = match nic.mac {
        Some(mac) => mac,
        None => {
            let [a, b, c] =
                uuid::random::<3>().map_err(|e| Error::system("make a MAC address", "", &e))?;
            [0x00, 0x16, 0x3e, a & 0x7f, b, c]
        }
    };
    let devid = match nic.devid {
        Some(devid) if taken.contains(&devid) => {
            return Err(
                Error::new("number the card", devid, "there are two of this devid")
                    .hint("choose another devid=, or leave it out"),
            );
        }
        Some(devid) => devid,
        None => (0..).find(|devid| !taken.contains(devid)).unwrap_or(0),
    };
    let bridge = nic.bridge.clone().unwrap_or_else(|| DEFAULT_BRIDGE.into());
    let mtu = nic
        .mtu
        .or_else(|| bridge_mtu(&bridge))
        .unwrap_or(DEFAULT_MTU);
    Ok(Nic {
        config: nic.clone(),
        devid,
        mac,
        bridge,
        mtu,
    })
}

fn bridge_mtu(bridge: &str) -> Option<u32> {
    let text = fs::read_to_string(format!("/sys/class/net/{bridge}/mtu")).ok()?;
    text.trim().parse().ok()
}

impl fmt::Display for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        writeln!(f, "guest {} ({})", config.name, uuid::format(&self.uuid))?;
        writeln!(
            f,
            "  memory {} KiB (at most {}), {} of {} vCPUs",
            config.memory_kib, config.max_memory_kib, config.vcpus, config.max_vcpus
        )?;
        writeln!(
            f,
            "  kernel {}, {} bytes unpacked; command line {:?}",
            self.kernel.path().display(),
            self.kernel.unpacked_len(),
            config.cmdline
        )?;
        let image = self.kernel.image();
        let text = |note: &Option<String>| note.clone().unwrap_or_default();
        writeln!(
            f,
            "  it is {} {}, {} hypercall page",
            text(&image.notes.guest_os),
            text(&image.notes.guest_version),
            if image.hypercall_page.is_some() {
                "with"
            } else {
                "without"
            }
        )?;
        write!(f, "{}", self.plan)?;
        for disk in &self.disks {
            let c = &disk.config;
            let mode = if c.writable {
                "read-write"
            } else {
                "read-only"
            };
            let kind = match disk.target {
                Target::File(..) => "file",
                Target::Block(..) => "block device",
                Target::Script => "what its script makes of",
            };
            writeln!(
                f,
                "  disk {} = {kind} {}, {mode}",
                c.vdev,
                c.target.display()
            )?;
        }
        for nic in &self.nics {
            writeln!(
                f,
                "  card {} = {} on bridge {}, MTU {}",
                nic.devid,
                nic.mac_text(),
                nic.bridge,
                nic.mtu
            )?;
        }
        Ok(())
    }
}
