//! Commands that list guests: `list`, `vm-list`, `uptime`, `claims`, `domid`, `domname`.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};
use xen_hal::{DomainInfo, HostControl, ShutdownReason, Store};
use xen_sys::DomId;
use xlrs::store::{find_by_name, name_of, text};
use xlrs::{Error, Kind, Result, os, retrieve, userdata, uuid};

use super::common::{Host, print, print_json, seconds, shown};
use super::look::{Look, Seen};
use crate::cli::ExitCode;

pub const HEADER: &str =
    "Name                                        ID   Mem VCPUs\tState\tTime(s)";

#[derive(Args)]
pub struct ListArgs {
    /// Only these guests, by name or number
    pub domains: Vec<String>,
    /// Print all that is known, as JSON in libxl's format
    #[arg(short, long)]
    pub long: bool,
    /// Also show UUIDs, why a guest has shut down, and security labels
    #[arg(short, long)]
    verbose: bool,
    /// Also show security labels
    #[arg(short = 'Z', long)]
    context: bool,
    /// Also show cpupools
    #[arg(short, long)]
    cpupool: bool,
    /// Also show the NUMA nodes that memory comes from
    #[arg(short, long)]
    numa: bool,
    /// Print JSON: what the table shows, in plain numbers
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct UptimeArgs {
    /// Only these guests, by name or number
    domains: Vec<String>,
    /// Also show the time of day, and no seconds
    #[arg(short, long)]
    short: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct JsonArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct DomidArgs {
    /// The guest's name
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct DomnameArgs {
    /// The guest's number
    number: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn list(args: &ListArgs) -> Result<ExitCode> {
    let host = match Look::open()? {
        Look::Known(host) => host,
        look => return super::unknown::list(&look, args),
    };
    let rows = host.named(host.domains(&args.domains)?)?;
    if args.long {
        let all = rows.iter().map(|(info, _)| {
            let config = retrieve::libxl_config(&host.control, &host.store, info)?;
            Ok(json!({"domid": info.dom.0, "config": config}))
        });
        let all: Vec<Value> = all.collect::<Result<_>>()?;
        return print(&format!("{}\n", userdata::libxl_text(&Value::Array(all))));
    }
    if args.json {
        let rows = rows.iter().map(|(info, name)| row_json(info, name.clone()));
        return print_json(&Value::Array(rows.collect()));
    }
    let mut out = String::from(HEADER);
    out.push_str(match (args.verbose, args.context) {
        (true, _) => "   UUID                            Reason-Code\tSecurity Label",
        (false, true) => "   Security Label",
        _ => "",
    });
    if args.cpupool {
        out.push_str("         Cpupool");
    }
    if args.numa {
        out.push_str(" NODE Affinity");
    }
    out.push('\n');
    let pools = match args.cpupool {
        true => host.pool_names()?,
        false => Default::default(),
    };
    let nodes = match args.numa {
        true => {
            let facts = xen_hal::DomainControl::host(&host.control);
            facts
                .map_err(Error::hal("ask Xen about the host", ""))?
                .nodes
        }
        false => 0,
    };
    for (info, name) in &rows {
        out.push_str(&row(info, name.as_deref()));
        if args.verbose {
            let reason = match info.shutdown_reason {
                Some(reason) => format!("{:x}", reason.code()),
                None => "-".into(),
            };
            let _ = write!(out, " {} {reason:>8}", uuid::format(&info.uuid));
        }
        if args.verbose || args.context {
            // Labels are FLASK's, which is not asked.
            let _ = write!(out, " {:>16}", "-");
        }
        if args.cpupool {
            let name = pools.get(&info.cpupool).map(String::as_str);
            let _ = write!(out, "{:>16}", shown(name));
        }
        if args.numa {
            let map = host.control.node_affinity(info.dom);
            let map = map.map_err(Error::hal("ask for the nodes of domain", info.dom))?;
            let _ = write!(out, " {}", map.shown(nodes));
        }
        out.push('\n');
    }
    print(&out)
}

/// A guest's row as xl prints it, without the line's end.
fn row(info: &DomainInfo, name: Option<&str>) -> String {
    format!(
        "{:<40} {:>5} {:>5} {:>5}     {}  {:>8.1}",
        shown(name),
        info.dom.0,
        memory_mib(info),
        info.online_vcpus,
        state_letters(info),
        seconds(info.cpu_time_ns),
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
        "cpupool": info.cpupool,
    })
}

pub fn claims(args: &JsonArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let rows = host.named(host.domains(&[])?)?;
    if args.json {
        let rows = rows.iter().map(|(info, name)| {
            json!({
                "domid": info.dom.0, "name": name, "memory_mib": memory_mib(info),
                "claimed_mib": info.outstanding_pages / 256,
            })
        });
        return print_json(&Value::Array(rows.collect()));
    }
    let mut out = format!("{HEADER}  Claimed\n");
    for (info, name) in &rows {
        let claimed = info.outstanding_pages / 256;
        let _ = writeln!(out, "{} {claimed:>5}", row(info, name.as_deref()));
    }
    print(&out)
}

pub fn vm_list(args: &JsonArgs) -> Result<ExitCode> {
    let look = Look::open()?;
    let rows = look.guests(&[])?;
    if args.json {
        let rows = rows.iter().map(|seen| {
            json!({"uuid": uuid::format(&seen.uuid), "domid": seen.dom.0, "name": seen.name})
        });
        return print_json(&Value::Array(rows.collect()));
    }
    let mut out = String::from("UUID                                  ID    name\n");
    for seen in &rows {
        let name = shown(seen.name.as_deref());
        let (id, dom) = (uuid::format(&seen.uuid), seen.dom);
        let _ = writeln!(out, "{id}  {dom}    {name:<30}");
    }
    print(&out)
}

pub fn uptime(args: &UptimeArgs) -> Result<ExitCode> {
    let look = Look::open()?;
    let rows = look.guests(&args.domains)?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let (hour, minute, second) = os::time_of_day(now);
    let mut json = Vec::new();
    let mut out = String::new();
    if !args.short {
        let _ = writeln!(out, "{:<33} {:>4} Uptime", "Name", "ID");
    }
    for Seen { dom, name, .. } in &rows {
        // One without a start time was made by something else than a toolstack.
        let Some(up) = up_s(look.store(), *dom, now)? else {
            continue;
        };
        json.push(json!({"domid": dom.0, "name": name, "uptime_s": up}));
        let name = shown(name.as_deref());
        let _ = match args.short {
            true => writeln!(
                out,
                " {hour:02}:{minute:02}:{second:02} up {}, {name} ({dom})",
                span(up, false)
            ),
            false => writeln!(out, "{name:<33} {:>4} {}", dom.0, span(up, true)),
        };
    }
    match args.json {
        true => print_json(&Value::Array(json)),
        false => print(&out),
    }
}

/// How long a guest, or dom0, has been up, in seconds.
fn up_s(store: &impl Store, dom: DomId, now: u64) -> Result<Option<u64>> {
    if dom == DomId::DOM0 {
        let path = "/proc/uptime";
        let said = std::fs::read_to_string(path).map_err(|e| Error::system("read", path, &e))?;
        let whole = said.split(['.', ' ']).next().unwrap_or_default();
        return Ok(whole.parse().ok());
    }
    let read = |path: &str| text(store, None, path);
    let failed = Error::store("read the start time of domain", dom);
    let start = || {
        let Some(vm) = read(&format!("/local/domain/{dom}/vm"))? else {
            return Ok(None);
        };
        read(&format!("{vm}/start_time"))
    };
    let start = start().map_err(failed)?;
    let start = start.and_then(|text| text.split('.').next()?.parse::<u64>().ok());
    Ok(start.map(|start| now.saturating_sub(start)))
}

fn span(s: u64, with_seconds: bool) -> String {
    let (days, hours, minutes) = (s / 86_400, s / 3600 % 24, s / 60 % 60);
    let mut out = match days {
        0 => String::new(),
        1 => "1 day, ".into(),
        days => format!("{days} days, "),
    };
    let _ = write!(out, "{hours:>2}:{minutes:02}");
    if with_seconds {
        let _ = write!(out, ":{:02}", s % 60);
    }
    out
}

pub fn domid(args: &DomidArgs) -> Result<ExitCode> {
    match find_by_name(&super::store()?, &args.name)? {
        Some(dom) if args.json => print_json(&json!({"domid": dom.0, "name": args.name})),
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
        Error::new("find the domain", &args.number, "it is no domain's number")
            .kind(Kind::Invalid)
            .hint("`xlrs domid` takes a name; `xlrs list` shows both")
    })?;
    let name = name_of(&super::store()?, number)
        .map_err(Error::store("read the name of domain", number))?;
    match name {
        Some(name) if args.json => print_json(&json!({"domid": number.0, "name": name})),
        Some(name) => print(&format!("{name}\n")),
        None => Err(
            Error::new("find the domain", number, "there is none of this number")
                .kind(Kind::NoSuchDomain)
                .hint("`xlrs list` shows those that exist"),
        ),
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
            "deb                                          1   128     1     -b----       0.9"
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
    fn spans_are_those_of_xl() {
        for (s, long, short) in [
            (0, " 0:00:00", " 0:00"),
            (61, " 0:01:01", " 0:01"),
            (36_000, "10:00:00", "10:00"),
            (86_400, "1 day,  0:00:00", "1 day,  0:00"),
            (200_000, "2 days,  7:33:20", "2 days,  7:33"),
        ] {
            assert_eq!(span(s, true), long);
            assert_eq!(span(s, false), short);
        }
    }
}
