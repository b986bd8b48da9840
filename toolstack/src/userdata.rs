//! Files about running guests: libxl's JSON, by which a stock xl knows them, and our own copy of the
//! configuration, by which the supervisor does.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use xen_sys::DomId;

use crate::config::{Action, DiskConfig, DomainConfig, vdev_number};
use crate::error::{Error, Result};
use crate::nodes::Nic;
use crate::{paths, uuid};

/// Entries kept in the history.
const HISTORY_MAX: usize = 64;

/// The part of a file's name that says what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Userdata {
    /// libxl's JSON.
    Libxl,
    /// Ours: the marks of a guest that this toolstack has created.
    Xlrs,
}

/// The file of a guest.
pub fn path(dom: DomId, id: &[u8; 16], kind: Userdata) -> PathBuf {
    let suffix = match kind {
        Userdata::Libxl => "libxl-json",
        Userdata::Xlrs => "xlrs",
    };
    let name = format!("userdata-d.{dom}.{}.{suffix}", uuid::format(id));
    paths::at(paths::USERDATA).join(name)
}

/// Writes a file whole or not at all.
///
/// # Errors
/// The file system's.
pub fn write(dom: DomId, id: &[u8; 16], kind: Userdata, text: &str) -> Result<()> {
    let path = path(dom, id, kind);
    let write = || -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let new = path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = match options.open(&new) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(paths::at(paths::USERDATA))?;
                options.open(&new)?
            }
            other => other?,
        };
        file.write_all(text.as_bytes())?;
        fs::rename(&new, &path)
    };
    write().map_err(|e| Error::system("write", path.display(), &e))
}

/// A guest's file, if there is one; without the NUL that libxl puts at its end.
pub fn read(dom: DomId, id: &[u8; 16], kind: Userdata) -> Option<String> {
    let mut text = fs::read_to_string(path(dom, id, kind)).ok()?;
    text.truncate(text.trim_end_matches('\0').len());
    Some(text)
}

/// Removes a guest's files.
///
/// # Errors
/// The file system's; that there is none is no error.
pub fn remove(dom: DomId, id: &[u8; 16]) -> Result<()> {
    for kind in [Userdata::Libxl, Userdata::Xlrs] {
        let path = path(dom, id, kind);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::system("remove", path.display(), &error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Notes that a domain's number is free again, as `SECONDS DOMID` lines; seconds as of the monotonic
/// clock. Old and excess lines go.
///
/// # Errors
/// The file system's.
pub fn note_end(dom: DomId) -> Result<()> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
    let path = paths::at(paths::HISTORY);
    let old = fs::read_to_string(&path).unwrap_or_default();
    let text = history(&old, now, dom);
    let write = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, text)
    };
    write().map_err(|e| Error::system("write", path.display(), &e))
}

fn history(old: &str, now: i64, dom: DomId) -> String {
    /// libxl's own limit (DOMID_REUSE_TIMEOUT).
    const KEPT_S: i64 = 60;
    let mut lines: Vec<&str> = old
        .lines()
        .filter(|line| {
            let time = line.split(' ').next().and_then(|t| t.parse::<i64>().ok());
            time.is_some_and(|time| (0..=KEPT_S).contains(&(now - time)))
        })
        .collect();
    let excess = lines.len().saturating_sub(HISTORY_MAX - 1);
    lines.drain(..excess);
    let mut text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
    text.push_str(&format!("{now} {dom}\n"));
    text
}

/// libxl's JSON of a guest, as `xl create -n` prints it: what has its default value is left out.
pub fn libxl_json(config: &DomainConfig, id: &[u8; 16], nics: &[Nic]) -> Value {
    let mut b_info = Map::new();
    b_info.insert("max_vcpus".into(), json!(config.max_vcpus));
    let online: Vec<u32> = (0..config.vcpus).collect();
    b_info.insert("avail_vcpus".into(), json!(online));
    let placement = &config.placement;
    for (key, sets) in [
        ("vcpu_hard_affinity", &placement.hard),
        ("vcpu_soft_affinity", &placement.soft),
    ] {
        // What speaks of nodes or of all CPUs depends on the host, and libxl works it out again.
        let lists: Option<Vec<Value>> = sets.iter().map(|set| Some(json!(set.plain()?))).collect();
        if let Some(lists) = lists.filter(|lists| !lists.is_empty()) {
            b_info.insert(key.into(), json!(lists));
        }
    }
    if placement.by_hand {
        b_info.insert("numa_placement".into(), json!("False"));
    }
    if let Some(mode) = [None, Some("always_emulate"), Some("native")]
        .get(config.tsc_mode as usize)
        .copied()
        .flatten()
    {
        b_info.insert("tsc_mode".into(), json!(mode));
    }
    b_info.insert("max_memkb".into(), json!(config.max_memory_kib));
    b_info.insert("target_memkb".into(), json!(config.memory_kib));
    for (key, frames) in [
        ("max_grant_frames", config.max_grant_frames),
        ("max_maptrack_frames", config.max_maptrack_frames),
        // What is xl's default too is left out.
        (
            "max_grant_version",
            Some(config.max_grant_version.into()).filter(|v| *v != 2),
        ),
    ] {
        if let Some(frames) = frames {
            b_info.insert(key.into(), json!(frames));
        }
    }
    if config.time_offset_s != 0 {
        b_info.insert("rtc_timeoffset".into(), json!(config.time_offset_s));
    }
    if config.local_time {
        b_info.insert("localtime".into(), json!("True"));
    }
    let mut share = Map::new();
    if let Some(weight) = placement.weight {
        share.insert("weight".into(), json!(weight));
    }
    if let Some(cap) = placement.cap {
        share.insert("cap".into(), json!(cap));
    }
    for (key, value) in [
        ("period", placement.period_us),
        ("budget", placement.budget_us),
        ("extratime", placement.extra_time.map(u32::from)),
    ] {
        if let Some(value) = value {
            share.insert(key.into(), json!(value));
        }
    }
    b_info.insert("sched_params".into(), Value::Object(share));
    b_info.insert("claim_mode".into(), json!("True"));
    if config.max_event_channels != 1023 {
        b_info.insert("event_channels".into(), json!(config.max_event_channels));
    }
    b_info.insert("kernel".into(), json!(config.kernel));
    if !config.cmdline.is_empty() {
        b_info.insert("cmdline".into(), json!(config.cmdline));
    }
    if let Some(ramdisk) = &config.ramdisk {
        b_info.insert("ramdisk".into(), json!(ramdisk));
    }
    for part in ["type.pv", "arch_arm", "arch_x86"] {
        b_info.insert(part.into(), json!({}));
    }
    let mut out = Map::new();
    out.insert(
        "c_info".into(),
        json!({
            "type": "pv",
            "name": config.name,
            "uuid": uuid::format(id),
            "run_hotplug_scripts": "True",
        }),
    );
    if let Some(pool) = &placement.pool
        && let Some(c_info) = out.get_mut("c_info").and_then(Value::as_object_mut)
    {
        c_info.shift_insert(3, "pool_name".into(), json!(pool));
    }
    out.insert("b_info".into(), Value::Object(b_info));
    if !config.disks.is_empty() {
        let disks = config.disks.iter().map(disk_json);
        out.insert("disks".into(), disks.collect());
    }
    if !nics.is_empty() {
        let nics = nics.iter().map(nic_json);
        out.insert("nics".into(), nics.collect());
    }
    let events = &config.events;
    for (key, action, default) in [
        ("on_poweroff", events.on_poweroff, Action::Destroy),
        // libxl's own default, which is not xl's: so xl's shows.
        ("on_reboot", events.on_reboot, Action::Destroy),
        ("on_watchdog", events.on_watchdog, Action::Destroy),
        ("on_crash", events.on_crash, Action::Destroy),
        ("on_soft_reset", events.on_soft_reset, Action::Destroy),
    ] {
        if action != default {
            out.insert(key.into(), json!(action.libxl_name()));
        }
    }
    Value::Object(out)
}

/// libxl's word for a choice that was made.
fn defbool(on: bool) -> Value {
    json!(if on { "True" } else { "False" })
}

/// libxl's JSON of a disk.
pub fn disk_json(disk: &DiskConfig) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            out.insert(key.into(), value);
        }
    };
    let text = |text: &Option<String>| text.as_ref().map(|text| json!(text));
    let one = |on: bool| on.then(|| json!(1));
    put("backend_domname", text(&disk.backend));
    put("pdev_path", Some(json!(disk.target)));
    put("vdev", Some(json!(disk.vdev)));
    put("backend", text(&disk.backend_type));
    put("format", Some(json!(disk.format.libxl_name())));
    put("script", text(&disk.script));
    put("removable", one(disk.cdrom));
    put("readwrite", one(disk.writable));
    put("is_cdrom", one(disk.cdrom));
    put("direct_io_safe", disk.direct_io_safe.then(|| json!(true)));
    put("discard_enable", disk.discard.map(defbool));
    put("trusted", disk.trusted.map(defbool));
    Value::Object(out)
}

/// Has libxl's JSON of a disk name another image, a qcow2 file that our back end serves. A disk that libxl itself
/// is to set up is raw to it, with a script that leaves the format to the back end.
pub fn set_image(disk: &mut Value, image: &Path, ours: bool) {
    let Some(disk) = disk.as_object_mut() else {
        return;
    };
    let (path, format) = match ours {
        true => (image.display().to_string(), "qcow2"),
        false => (format!("qcow2:{}", image.display()), "raw"),
    };
    disk.insert("pdev_path".into(), path.into());
    disk.insert("format".into(), format.into());
    if !ours {
        disk.insert("script".into(), "block-xlrs".into());
    }
}

/// libxl's JSON of a network card.
pub fn nic_json(nic: &Nic) -> Value {
    let config = &nic.config;
    let mut out = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            out.insert(key.into(), value);
        }
    };
    let text = |text: &Option<String>| text.as_ref().map(|text| json!(text));
    put("backend_domname", text(&config.backend));
    put("devid", Some(json!(nic.devid)));
    put("mtu", config.mtu.map(|mtu| json!(mtu)));
    put("mac", Some(json!(nic.mac_text())));
    put("ip", text(&config.ip));
    put("bridge", Some(json!(nic.bridge)));
    put("ifname", text(&config.vifname));
    put("script", text(&config.script));
    if let Some(rate) = config.rate {
        put(
            "rate_bytes_per_interval",
            Some(json!(rate.bytes_per_interval)),
        );
        put("rate_interval_usecs", Some(json!(rate.interval_us)));
    }
    put("gatewaydev", text(&config.gateway_device));
    put("trusted", config.trusted.map(defbool));
    Value::Object(out)
}

/// The number that the store has for a `vbd` or `vif` in libxl's JSON.
pub fn device_number(kind: &str, device: &Value) -> Option<String> {
    match kind {
        "vbd" => {
            let vdev = device.get("vdev")?.as_str()?;
            Some(vdev_number(vdev).ok()?.to_string())
        }
        // The first has the default, which is left out by some releases.
        _ => Some(
            device
                .get("devid")
                .map_or(0, |id| id.as_u64().unwrap_or(0))
                .to_string(),
        ),
    }
}

/// A JSON value as libxl prints it: four spaces a level, and an empty line in empty objects.
pub fn libxl_text(value: &Value) -> String {
    let mut out = String::new();
    print(value, 0, &mut out);
    out.push('\n');
    out
}

fn print(value: &Value, depth: usize, out: &mut String) {
    let indent = |depth: usize, out: &mut String| {
        out.push('\n');
        out.extend(std::iter::repeat_n("    ", depth));
    };
    match value {
        Value::Object(map) => {
            out.push('{');
            if map.is_empty() {
                out.push('\n');
            }
            for (index, (key, value)) in map.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                indent(depth + 1, out);
                out.push_str(&Value::String(key.clone()).to_string());
                out.push_str(": ");
                print(value, depth + 1, out);
            }
            indent(depth, out);
            out.push('}');
        }
        Value::Array(list) => {
            out.push('[');
            if list.is_empty() {
                out.push('\n');
            }
            for (index, value) in list.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                indent(depth + 1, out);
                print(value, depth + 1, out);
            }
            indent(depth, out);
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Source, load};
    use crate::nodes::Nic;

    #[test]
    fn the_json_is_that_of_stock_xl() {
        let text = "name='deb'\nkernel='/lab/debian/vmlinuz'\nramdisk='/lab/debian/initrd'\nmemory=128\n\
                    vcpus=1\ncmdline='console=hvc0'\ndisk=['/tmp/a.img,raw,xvda,w']\n\
                    vif=['bridge=xenbr0,mac=00:16:3e:01:02:03']";
        let source = Source {
            name: "d.cfg".into(),
            text: text.into(),
        };
        let (config, _) = load(&[source]).unwrap();
        let id = uuid::parse("20d34491-7d9f-43ce-9575-155cdd374617").unwrap();
        let nic = Nic {
            config: config.nics[0].clone(),
            devid: 0,
            mac: config.nics[0].mac.unwrap(),
            bridge: "xenbr0".into(),
            mtu: 1500,
        };
        let ours = libxl_text(&libxl_json(&config, &id, &[nic]));
        assert_eq!(ours, include_str!("testdata/create-n-xl-4.17.json"));
    }

    #[test]
    fn a_disk_goes_on_in_another_image() {
        let disk = json!({"pdev_path": "/a.img", "vdev": "xvda", "format": "raw", "readwrite": 1});
        for (ours, expected) in [
            (
                true,
                json!({"pdev_path": "/b", "vdev": "xvda", "format": "qcow2", "readwrite": 1}),
            ),
            (
                false,
                json!({"pdev_path": "qcow2:/b", "vdev": "xvda", "format": "raw", "readwrite": 1,
                    "script": "block-xlrs"}),
            ),
        ] {
            let mut disk = disk.clone();
            set_image(&mut disk, Path::new("/b"), ours);
            assert_eq!(disk, expected);
        }
    }

    #[test]
    fn the_history_keeps_what_is_young() {
        assert_eq!(history("", 100, DomId(3)), "100 3\n");
        assert_eq!(
            history("30 1\n50 2\nnonsense\n200 9\n", 100, DomId(3)),
            "50 2\n100 3\n"
        );
        let long: String = (0..100).map(|n| format!("90 {n}\n")).collect();
        assert_eq!(history(&long, 100, DomId(3)).lines().count(), HISTORY_MAX);
    }
}
