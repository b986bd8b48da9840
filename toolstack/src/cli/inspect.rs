//! Commands that only look.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use xen_hal::{DomainControl, DomainInfo, HostInfo, ShutdownReason};
use xen_sys::DomId;
use xlrs::store::{find_by_name, find_domain, name_of, names_of};
use xlrs::{Error, Kind, Result, uuid};

/// Most of the hypervisor's log that is read; its buffer is 16 KiB by default.
const MAX_LOG: usize = 64 << 20;

#[derive(Args)]
pub struct ListArgs {
    /// Only these guests, by name or number
    domains: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct InfoArgs {
    /// Only this value
    key: Option<String>,
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
pub struct DomidArgs {
    /// The guest's name
    name: String,
}

#[derive(Args)]
pub struct DomnameArgs {
    /// The guest's number
    number: String,
}

pub fn list(args: &ListArgs) -> Result<ExitCode> {
    let control = super::hypervisor()?;
    let store = super::store()?;
    let list = match args.domains.as_slice() {
        [] => control.list().map_err(Error::hal("list the domains", ""))?,
        words => words
            .iter()
            .map(|word| {
                let dom = find_domain(&store, word)?;
                let info = control.info(dom);
                let info = info.map_err(Error::hal("ask Xen about domain", dom))?;
                info.ok_or_else(|| {
                    Error::new(
                        "find the domain",
                        word,
                        "it is an invalid domain identifier",
                    )
                    .kind(Kind::NoSuchDomain)
                    .hint("`xlrs list` shows those that exist")
                })
            })
            .collect::<Result<_>>()?,
    };
    let doms: Vec<_> = list.iter().map(|info| info.dom).collect();
    let names =
        names_of(&store, &doms).map_err(Error::store("read the names of", "the domains"))?;
    if args.json {
        let rows = list
            .iter()
            .zip(names)
            .map(|(info, name)| row_json(info, name));
        return print_json(&Value::Array(rows.collect()));
    }
    let mut text = String::from(
        "Name                                        ID   Mem VCPUs\tState\tTime(s)\n",
    );
    for (info, name) in list.iter().zip(&names) {
        text.push_str(&row(info, name.as_deref()));
    }
    print(&text)
}

/// A guest's row as xl prints it.
fn row(info: &DomainInfo, name: Option<&str>) -> String {
    format!(
        "{:<40} {:>5} {:>5} {:>5}     {}  {:>8.1}\n",
        name.unwrap_or("(null)"),
        info.dom.0,
        memory_mib(info),
        info.online_vcpus,
        state_letters(info),
        info.cpu_time_ns as f64 / 1e9,
    )
}

fn memory_mib(info: &DomainInfo) -> u64 {
    (info.total_pages + info.outstanding_pages) / 256
}

fn state_letters(info: &DomainInfo) -> String {
    let flags = info.flags;
    let letter = |on: bool, letter: char| if on { letter } else { '-' };
    let reason = match info.shutdown_reason {
        None | Some(ShutdownReason::Poweroff) => '-',
        Some(ShutdownReason::Reboot) => 'r',
        Some(ShutdownReason::Suspend) => 's',
        Some(ShutdownReason::Crash) => 'c',
        Some(ShutdownReason::Watchdog) => 'w',
        Some(ShutdownReason::SoftReset) => 'S',
        Some(ShutdownReason::Other(_)) => '?',
    };
    [
        letter(flags.running, 'r'),
        letter(flags.blocked, 'b'),
        letter(flags.paused, 'p'),
        letter(flags.shutdown, 's'),
        reason,
        letter(flags.dying, 'd'),
    ]
    .iter()
    .collect()
}

fn row_json(info: &DomainInfo, name: Option<String>) -> Value {
    let reason = info.shutdown_reason.map(|reason| match reason {
        ShutdownReason::Poweroff => "poweroff",
        ShutdownReason::Reboot => "reboot",
        ShutdownReason::Suspend => "suspend",
        ShutdownReason::Crash => "crash",
        ShutdownReason::Watchdog => "watchdog",
        ShutdownReason::SoftReset => "soft_reset",
        ShutdownReason::Other(_) => "unknown",
    });
    let flags = info.flags;
    json!({
        "domid": info.dom.0,
        "name": name,
        "uuid": uuid::format(&info.uuid),
        "memory_mib": memory_mib(info),
        "vcpus": info.online_vcpus,
        "running": flags.running,
        "blocked": flags.blocked,
        "paused": flags.paused,
        "shutdown": flags.shutdown,
        "shutdown_reason": reason,
        "dying": flags.dying,
        "cpu_time_ns": info.cpu_time_ns,
    })
}

pub fn info(args: &InfoArgs) -> Result<ExitCode> {
    let host = super::hypervisor()?
        .host()
        .map_err(Error::hal("ask Xen about the host", ""))?;
    let rows = info_rows(&host);
    if let Some(key) = &args.key {
        let (_, value) = rows.iter().find(|(name, _)| name == key).ok_or_else(|| {
            Error::new("show", key, "there is no such value")
                .kind(Kind::Usage)
                .hint("`xlrs info` shows them all")
        })?;
        return print(&format!("{value}\n"));
    }
    if args.json {
        let map = rows
            .into_iter()
            .map(|(key, value)| (key.to_string(), value.into()));
        return print_json(&Value::Object(map.collect()));
    }
    let text: String = rows
        .iter()
        .map(|(key, value)| format!("{key:<23}: {value}\n"))
        .collect();
    print(&text)
}

fn info_rows(host: &HostInfo) -> Vec<(&'static str, String)> {
    let system = rustix::system::uname();
    let text = |value: &std::ffi::CStr| value.to_string_lossy().into_owned();
    let mib = |pages: u64| (pages / 256).to_string();
    let caps: Vec<_> = host
        .hw_cap
        .iter()
        .map(|word| format!("{word:08x}"))
        .collect();
    let [compiler, by, domain, date] = host.compiled.clone();
    let version = host.version;
    vec![
        ("host", text(system.nodename())),
        ("release", text(system.release())),
        ("version", text(system.version())),
        ("machine", text(system.machine())),
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
        ("free_cpus", "0".into()),
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
    ]
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

pub fn dmesg(args: &DmesgArgs) -> Result<ExitCode> {
    let log = super::hypervisor()?
        .console_log(MAX_LOG, args.clear)
        .map_err(Error::hal("read the hypervisor's log", ""))?;
    print_bytes(&log)
}

pub fn domid(args: &DomidArgs) -> Result<ExitCode> {
    match find_by_name(&super::store()?, &args.name)? {
        Some(dom) => print(&format!("{dom}\n")),
        None => Err(
            Error::new("find the domain", &args.name, "there is none of this name")
                .kind(Kind::NoSuchDomain)
                .hint("`xlrs list` shows those that exist"),
        ),
    }
}

pub fn domname(args: &DomnameArgs) -> Result<ExitCode> {
    let number = args.number.parse::<u16>().map(DomId).map_err(|_| {
        Error::new("find the domain", &args.number, "it is no domain's number").kind(Kind::Usage)
    })?;
    let name = name_of(&super::store()?, number)
        .map_err(Error::store("read the name of domain", number))?;
    match name {
        Some(name) => print(&format!("{name}\n")),
        None => Err(
            Error::new("find the domain", number, "there is none of this number")
                .kind(Kind::NoSuchDomain),
        ),
    }
}

pub fn print_json(value: &Value) -> Result<ExitCode> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::new("print", "JSON", e))?;
    print(&format!("{text}\n"))
}

fn print(text: &str) -> Result<ExitCode> {
    print_bytes(text.as_bytes())
}

pub fn print_bytes(bytes: &[u8]) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Error::system("print", "to the standard output", &error)),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_hal::DomainFlags;
    use xen_sys::Mfn;

    #[test]
    fn rows_are_those_of_xl() {
        let info = DomainInfo {
            dom: DomId(1),
            flags: DomainFlags {
                blocked: true,
                ..DomainFlags::default()
            },
            shutdown_reason: None,
            total_pages: 32768,
            outstanding_pages: 0,
            max_pages: 33024,
            shared_info_frame: Mfn(1),
            cpu_time_ns: 940_000_000,
            online_vcpus: 1,
            max_vcpu_id: 0,
            uuid: [0; 16],
            ssidref: 0,
            cpupool: 0,
        };
        assert_eq!(
            row(&info, Some("deb")),
            "deb                                          1   128     1     -b----       0.9\n"
        );
        let crashed = DomainInfo {
            flags: DomainFlags {
                shutdown: true,
                ..DomainFlags::default()
            },
            shutdown_reason: Some(ShutdownReason::Crash),
            ..info
        };
        assert!(row(&crashed, None).starts_with("(null)   "));
        assert!(row(&crashed, None).contains(" ---sc- "));
    }

    #[test]
    fn capabilities_are_words() {
        assert_eq!(virt_caps(0b11_0000_0011), "pv hvm gnttab-v1 gnttab-v2");
        assert_eq!(virt_caps(0), "");
    }
}
