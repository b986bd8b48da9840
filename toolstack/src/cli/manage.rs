//! Commands about the host: `info`, `dmesg`, `debug-keys`, `set-parameters`, and what is not there yet.

use std::fmt::Write as _;
use std::path::Path;

use clap::Args;
use serde_json::{Value, json};
use xen_hal::{CpuPlace, DomainControl, HostControl, HostInfo, NumaNode, Placement};
use xlrs::{Error, Kind, Result};

use super::common::{print, print_bytes, print_json};
use crate::cli::ExitCode;

/// Most of the hypervisor's log that is read; its buffer is 16 KiB by default.
const MAX_LOG: usize = 64 << 20;

#[derive(Args)]
pub struct InfoArgs {
    /// Only values whose names begin so
    key: Option<String>,
    /// Also show where CPUs, memory and PCI devices are
    #[arg(short, long)]
    numa: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct DmesgArgs {
    /// Empty the hypervisor's buffer afterwards
    #[arg(short, long)]
    clear: bool,
}

#[derive(Args)]
pub struct KeysArgs {
    /// The keys; `h` has the hypervisor list them in its log, `R` reboots the machine
    keys: String,
}

#[derive(Args)]
pub struct ParametersArgs {
    /// Settings as on Xen's command line, such as `"loglvl=info gnttab_max_frames=64"`
    #[arg(value_name = "NAME=VALUE …")]
    parameters: Vec<String>,
}

#[derive(Args)]
pub struct AnyArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _words: Vec<String>,
}

/// What `-n` adds.
struct Places {
    cpus: Vec<Option<CpuPlace>>,
    nodes: Vec<Option<NumaNode>>,
    devices: Vec<(String, u32)>,
}

pub fn info(args: &InfoArgs) -> Result<ExitCode> {
    let (rows, places) = match super::hypervisor_if_known()? {
        None => (super::unknown::info_rows(Path::new("/")), None),
        Some(control) => {
            let host = control
                .host()
                .map_err(Error::hal("ask Xen about the host", ""))?;
            let free = control
                .free_cpus()
                .map_err(Error::hal("ask for the free CPUs", ""))?;
            let places = args.numa.then(|| places(&control)).transpose()?;
            (info_rows(&host, free.count()), places)
        }
    };
    if let Some(key) = args.key.as_ref().filter(|_| !args.numa) {
        let found = rows.iter().filter(|(name, _)| name.starts_with(&**key));
        let values: String = found.map(|(_, value)| format!("{value}\n")).collect();
        if values.is_empty() {
            // As with xl, that is no failure.
            eprintln!("xlrs: no value is called {key}; `xlrs info` shows them all");
        }
        return print(&values);
    }
    if args.json {
        let map = rows
            .into_iter()
            .map(|(key, value)| (key.to_string(), value.into()));
        let mut map: serde_json::Map<String, Value> = map.collect();
        if let Some(places) = &places {
            places.json(&mut map);
        }
        return print_json(&Value::Object(map));
    }
    let mut out = String::new();
    for (key, value) in &rows {
        let _ = writeln!(out, "{key:<23}: {value}");
        // Where xl has them, too.
        if *key == "free_cpus"
            && let Some(places) = &places
        {
            out.push_str(&places.text());
        }
    }
    print(&out)
}

/// What the kernel is.
pub fn system_rows() -> Vec<(&'static str, String)> {
    let system = rustix::system::uname();
    let text = |value: &std::ffi::CStr| value.to_string_lossy().into_owned();
    vec![
        ("host", text(system.nodename())),
        ("release", text(system.release())),
        ("version", text(system.version())),
        ("machine", text(system.machine())),
    ]
}

fn info_rows(host: &HostInfo, free_cpus: u32) -> Vec<(&'static str, String)> {
    let mib = |pages: u64| (pages / 256).to_string();
    let caps: Vec<_> = host
        .hw_cap
        .iter()
        .map(|word| format!("{word:08x}"))
        .collect();
    let [compiler, by, domain, date] = host.compiled.clone();
    let version = host.version;
    let mut rows = system_rows();
    rows.extend([
        ("nr_cpus", host.cpus.to_string()),
        ("max_cpu_id", host.max_cpu_id.to_string()),
        ("nr_nodes", host.nodes.to_string()),
        ("cores_per_socket", host.cores_per_socket.to_string()),
        ("threads_per_core", host.threads_per_core.to_string()),
        (
            "cpu_mhz",
            format!("{}.{:03}", host.cpu_khz / 1000, host.cpu_khz % 1000),
        ),
        ("hw_caps", caps.join(":")),
        ("virt_caps", virt_caps(host.physcap)),
        ("total_memory", mib(host.total_pages)),
        (
            "free_memory",
            mib(host.free_pages.saturating_sub(host.outstanding_pages)),
        ),
        ("sharing_freed_memory", "0".into()),
        ("sharing_used_memory", "0".into()),
        ("outstanding_claims", mib(host.outstanding_pages)),
        ("free_cpus", free_cpus.to_string()),
        ("xen_major", version.major.to_string()),
        ("xen_minor", version.minor.to_string()),
        ("xen_extra", host.extra_version.clone()),
        (
            "xen_version",
            format!("{}.{}{}", version.major, version.minor, host.extra_version),
        ),
        ("xen_caps", format!("{} ", host.capabilities.trim_end())),
        ("xen_scheduler", host.scheduler.clone()),
        ("xen_pagesize", "4096".into()),
        ("platform_params", host.platform_parameters.clone()),
        ("xen_changeset", host.changeset.clone()),
        ("xen_commandline", host.command_line.clone()),
        ("cc_compiler", compiler),
        ("cc_compile_by", by),
        ("cc_compile_domain", domain),
        ("cc_compile_date", date),
        ("build_id", host.build_id.clone()),
        ("xend_config_format", "4".into()),
    ]);
    rows
}

/// The words for `XEN_SYSCTL_PHYSCAP_*` (sysctl.h).
fn virt_caps(bits: u32) -> String {
    let has = |bit: u32| bits & 1 << bit != 0;
    let (hvm, pv, direct) = (has(0), has(1), has(2));
    [
        (pv, "pv"),
        (hvm, "hvm"),
        (hvm && direct, "hvm_directio"),
        (pv && direct, "pv_directio"),
        (has(3), "hap"),
        (has(4), "shadow"),
        (has(5), "iommu_hap_pt_share"),
        (has(6), "vmtrace"),
        (has(7), "vpmu"),
        (has(8), "gnttab-v1"),
        (has(9), "gnttab-v2"),
    ]
    .iter()
    .filter(|(on, _)| *on)
    .map(|(_, word)| *word)
    .collect::<Vec<_>>()
    .join(" ")
}

fn places(control: &xen_dom0::Hypervisor) -> Result<Places> {
    let failed = || Error::hal("ask Xen where things are", "");
    let devices = pci_devices();
    let addresses: Vec<_> = devices.iter().map(|(_, address)| *address).collect();
    // A Xen that knows none of them says so of the whole list.
    let nodes = control.pci_nodes(&addresses).unwrap_or_default();
    let known = devices.into_iter().zip(nodes);
    Ok(Places {
        cpus: control.topology().map_err(failed())?,
        nodes: control.numa().map_err(failed())?,
        devices: known
            .filter_map(|((name, _), node)| Some((name, node?)))
            .collect(),
    })
}

/// PCI devices: name and (segment, bus, devfn).
fn pci_devices() -> Vec<(String, (u16, u8, u8))> {
    let entries = std::fs::read_dir("/sys/bus/pci/devices");
    let names = entries.into_iter().flatten().flatten();
    let mut out: Vec<_> = names
        .filter_map(|entry| {
            let name = entry.file_name().to_str()?.to_string();
            let (segment, rest) = name.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (slot, function) = rest.split_once('.')?;
            let byte = |text| u8::from_str_radix(text, 16).ok();
            let segment = u16::from_str_radix(segment, 16).ok()?;
            let devfn = byte(slot)?.checked_mul(8)? + byte(function)?;
            Some((name.clone(), (segment, byte(bus)?, devfn)))
        })
        .collect();
    out.sort();
    out
}

impl Places {
    fn text(&self) -> String {
        let mut out = String::from("cpu_topology           :\ncpu:    core    socket     node\n");
        for (cpu, place) in self.cpus.iter().enumerate() {
            if let Some(place) = place {
                let _ = writeln!(
                    out,
                    "{cpu:>3}:    {:>4}     {:>4}     {:>4}",
                    place.core, place.socket, place.node
                );
            }
        }
        out.push_str("device topology        :\ndevice           node\n");
        for (name, node) in &self.devices {
            let _ = writeln!(out, "{name}      {node}");
        }
        if self.devices.is_empty() {
            out.push_str("No device topology data available\n");
        }
        out.push_str("numa_info              :\nnode:    memsize    memfree    distances\n");
        for (number, node) in self.nodes.iter().enumerate() {
            if let Some(node) = node {
                let distances: Vec<_> = node.distances.iter().map(u32::to_string).collect();
                let _ = writeln!(
                    out,
                    "{number:>4}:    {:>6}     {:>6}      {}",
                    node.bytes >> 20,
                    node.free_bytes >> 20,
                    distances.join(",")
                );
            }
        }
        out
    }

    fn json(&self, map: &mut serde_json::Map<String, Value>) {
        let cpus = (0..).zip(&self.cpus).filter_map(|(cpu, place): (u32, _)| {
            let place = place.as_ref()?;
            Some(json!({
                "cpu": cpu, "core": place.core, "socket": place.socket, "node": place.node,
            }))
        });
        map.insert("cpu_topology".into(), cpus.collect());
        let devices = self.devices.iter();
        let devices = devices.map(|(name, node)| json!({"device": name, "node": node}));
        map.insert("device_topology".into(), devices.collect());
        let nodes = (0..)
            .zip(&self.nodes)
            .filter_map(|(number, node): (u32, _)| {
                let node = node.as_ref()?;
                Some(json!({
                    "node": number, "bytes": node.bytes, "free_bytes": node.free_bytes,
                    "distances": node.distances,
                }))
            });
        map.insert("numa_info".into(), nodes.collect());
    }
}

pub fn dmesg(args: &DmesgArgs) -> Result<ExitCode> {
    let log = super::hypervisor()?
        .console_log(MAX_LOG, args.clear)
        .map_err(Error::hal("read the hypervisor's log", ""))?;
    print_bytes(&log)
}

pub fn debug_keys(args: &KeysArgs) -> Result<ExitCode> {
    super::hypervisor()?
        .debug_keys(args.keys.as_bytes())
        .map_err(Error::hal("send debug keys", &args.keys))?;
    Ok(ExitCode::SUCCESS)
}

pub fn set_parameters(args: &ParametersArgs) -> Result<ExitCode> {
    let words = args
        .parameters
        .iter()
        .flat_map(|word| word.split_whitespace());
    let words: Vec<&str> = words.collect();
    if words.is_empty() {
        let error = Error::new("set parameters", "", "none is named").kind(Kind::Usage);
        return Err(error.hint("such as `xlrs set-parameters loglvl=info`"));
    }
    let control = super::hypervisor()?;
    for word in words {
        let (name, value) = match word.split_once('=') {
            Some(pair) => pair,
            None => match word.strip_prefix("no") {
                Some(name) => (name, "no"),
                None => (word, "yes"),
            },
        };
        control.set_parameter(name, value).map_err(|error| {
            Error::hal("set the parameter", word)(error).hint(
                "few of Xen's parameters can be changed while it runs: see xen-command-line(7)",
            )
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Commands that come later.
pub fn not_yet(what: &str, instead: &str) -> Result<ExitCode> {
    Err(Error::new(what, "", "xlrs cannot do this yet").hint(instead))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_words() {
        assert_eq!(virt_caps(0b11_0000_0011), "pv hvm gnttab-v1 gnttab-v2");
        assert_eq!(virt_caps(0), "");
    }
}
