//! What must be there before the first daemon starts: Xen itself, device nodes, folders.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, mount};
use xen_sys::DomId;

use crate::error::{Error, Result};
use crate::paths;
use crate::userdata::{self, Userdata};

/// Folders that daemons and tools expect, ours and stock ones.
const FOLDERS: &[&str] = &[
    paths::RUN,
    "/run/xen",
    "/run/xenstored",
    paths::USERDATA,
    paths::CONSOLE_LOGS,
    paths::LOGS,
];

/// Device nodes, and the modules that make them.
const NODES: &[(&str, &str)] = &[
    ("/dev/xen/privcmd", "xen-privcmd"),
    ("/dev/xen/evtchn", "xen-evtchn"),
    ("/dev/xen/gntdev", "xen-gntdev"),
    ("/dev/net/tun", "tun"),
    ("/dev/loop-control", "loop"),
];

/// Makes what is missing that can be made, and has `preflight` check that this is a dom0.
///
/// # Errors
/// This is no dom0, or a folder cannot be made.
pub fn prepare_ground(preflight: impl FnOnce() -> Result<()>) -> Result<()> {
    let kind = fs::read_to_string("/sys/hypervisor/type").unwrap_or_default();
    if kind.trim() == "xen" {
        for (node, module) in NODES {
            if !Path::new(node).exists() {
                load(module);
            }
        }
        if !Path::new("/proc/xen/capabilities").exists() {
            load("xenfs");
            // What is missing without it is told below.
            let _ = mount("xenfs", "/proc/xen", "xenfs", MountFlags::empty(), None);
        }
    }
    preflight()?;
    for folder in FOLDERS {
        fs::create_dir_all(folder).map_err(|e| Error::system("make the folder", folder, &e))?;
    }
    Ok(())
}

/// Loads a kernel module; whether it helped shows by what it should have made.
fn load(module: &str) {
    let _ = Command::new("modprobe")
        .arg(module)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// libxl's file about dom0, without which a stock xl complains.
pub fn write_dom0_json() -> Result<()> {
    let id = [0; 16];
    if userdata::read(DomId::DOM0, &id, Userdata::Libxl).is_some() {
        return Ok(());
    }
    let json = serde_json::json!({
        "c_info": { "type": "pv" },
        "b_info": { "sched_params": {}, "type.pv": {}, "arch_arm": {}, "arch_x86": {} },
    });
    userdata::write(
        DomId::DOM0,
        &id,
        Userdata::Libxl,
        &userdata::libxl_text(&json),
    )
}
