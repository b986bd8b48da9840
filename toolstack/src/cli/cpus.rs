//! Commands about guests' vCPUs: `vcpu-list`, `vcpu-pin`, `vcpu-set`.

use std::fmt::Write as _;

use clap::Args;
use serde_json::{Value, json};
use xen_hal::{Affinity, CpuMap, DomainInfo, Placement, Store, VcpuInfo};
use xen_sys::{DomId, VcpuId};
use xlrs::{Error, Kind, Result, nodes};

use super::common::{DomainsArgs, Host, print, print_json, seconds, shown};
use crate::cli::ExitCode;

#[derive(Args)]
pub struct PinArgs {
    /// The guest's name or number
    domain: String,
    /// The vCPU's number, or `all`
    #[arg(value_name = "VCPU|all")]
    vcpu: String,
    /// Where it may run, such as `0-3,^1`, `all`, `node:1`; `-` leaves that as it is
    #[arg(value_name = "HARD|-", allow_hyphen_values = true)]
    hard: String,
    /// Where it runs best; `-` leaves that as it is
    #[arg(value_name = "SOFT|-", allow_hyphen_values = true)]
    soft: Option<String>,
    /// Override what the guest's own kernel has pinned
    #[arg(short, long)]
    force: bool,
    /// Accepted for scripts written for xl: there are no global masks here
    #[arg(short, long, hide = true)]
    ignore_global_affinity_masks: bool,
    #[arg(skip)]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct SetArgs {
    /// The guest's name or number
    domain: String,
    /// How many vCPUs shall be up
    vcpus: u32,
    /// Even if the host has fewer CPUs
    #[arg(short, long)]
    ignore_host: bool,
}

pub fn list(args: &DomainsArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let cpus = host.cpu_count()?;
    let rows = host.named(host.domains(&args.domains)?)?;
    let mut out = format!(
        "{:<32} {:>5} {:>5} {:>5} {:>5} {:>9} Affinity (Hard / Soft)\n",
        "Name", "ID", "VCPU", "CPU", "State", "Time(s)"
    );
    let mut json = Vec::new();
    for (info, name) in &rows {
        for vcpu in (0..=info.max_vcpu_id).map(VcpuId) {
            let Some((state, affinity)) = look(&host, info.dom, vcpu)? else {
                continue;
            };
            out.push_str(&row(info, name.as_deref(), vcpu, &state, &affinity, cpus));
            json.push(json!({
                "domid": info.dom.0,
                "name": name,
                "vcpu": vcpu.0,
                "online": state.online,
                "running": state.running,
                "blocked": state.blocked,
                "cpu": state.online.then_some(state.cpu),
                "cpu_time_ns": state.cpu_time_ns,
                "hard_affinity": members(&affinity.hard, cpus),
                "soft_affinity": members(&affinity.soft, cpus),
            }));
        }
    }
    match args.json {
        true => print_json(&Value::Array(json)),
        false => print(&out),
    }
}

/// A vCPU's state and affinity; `None` if there is none of this number, or the guest has gone meanwhile.
fn look(host: &Host, dom: DomId, vcpu: VcpuId) -> Result<Option<(VcpuInfo, Affinity)>> {
    let object = format!("{} of domain {dom}", vcpu.0);
    let state = host.control.vcpu_info(dom, vcpu);
    let Some(state) = state.map_err(Error::hal("ask Xen about vCPU", &object))? else {
        return Ok(None);
    };
    let affinity = host.control.affinity(dom, vcpu);
    let affinity = affinity.map_err(Error::hal("ask for the affinity of vCPU", &object))?;
    Ok(Some((state, affinity)))
}

fn members(map: &CpuMap, cpus: u32) -> Vec<u32> {
    map.iter().filter(|cpu| *cpu < cpus).collect()
}

fn row(
    info: &DomainInfo,
    name: Option<&str>,
    vcpu: VcpuId,
    state: &VcpuInfo,
    affinity: &Affinity,
    cpus: u32,
) -> String {
    let letter = |on: bool, letter: char| if on { letter } else { '-' };
    let mut out = format!("{:<32} {:>5} {:>5}", shown(name), info.dom.0, vcpu.0);
    let _ = match state.online {
        true => write!(
            out,
            "{:>5} {:>3}{}- ",
            state.cpu,
            letter(state.running, 'r'),
            letter(state.blocked, 'b')
        ),
        false => write!(out, "{:>5} {:>3}-p ", '-', '-'),
    };
    let (hard, soft) = (affinity.hard.shown(cpus), affinity.soft.shown(cpus));
    let time = seconds(state.cpu_time_ns);
    let _ = writeln!(out, "{time:>9.1}  {hard} / {soft}");
    out
}

pub fn pin(args: &PinArgs) -> Result<ExitCode> {
    let wrong = |cause: &str| {
        Error::new("pin vCPU", &args.vcpu, cause)
            .kind(Kind::Invalid)
            .hint("such as `xlrs vcpu-pin web 0 2-3`, or `all` in place of 0")
    };
    let number = match args.vcpu.as_str() {
        "all" if args.force => return Err(wrong("`--force` and `all` do not go together")),
        "all" => None,
        word => Some(
            word.parse()
                .map(VcpuId)
                .map_err(|_| wrong("it is neither a number nor `all`"))?,
        ),
    };
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    let map = |word: Option<&String>| match word.map(String::as_str) {
        None | Some("-") => Ok(None),
        Some(word) => host.cpus(word).map(Some),
    };
    let (hard, soft) = (map(Some(&args.hard))?, map(args.soft.as_ref())?);
    if args.dry_run {
        let cpus = host.cpu_count()?;
        let mut out = match &hard {
            Some(map) => format!("cpumap: {}", map.shown(cpus)),
            None => "cpumap: -".into(),
        };
        if let Some(map) = &soft {
            let _ = write!(out, " {}", map.shown(cpus));
        }
        return print(&format!("{out}\n"));
    }
    let vcpus = match number {
        Some(vcpu) => vec![vcpu],
        None => (0..=info.max_vcpu_id).map(VcpuId).collect(),
    };
    for vcpu in vcpus {
        let set =
            host.control
                .set_affinity(info.dom, vcpu, hard.as_ref(), soft.as_ref(), args.force);
        let object = format!("{} of {}", vcpu.0, args.domain);
        set.map_err(|error| {
            let error = Error::hal("pin vCPU", object)(error);
            error.hint("`xlrs vcpu-list` shows the vCPUs, `xlrs cpupool-list -c` the CPUs that they may run on")
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn set(args: &SetArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    let step = "set the number of vCPUs of";
    let cpus = host.cpu_count()?;
    let refused = |cause: String, hint: String| {
        Err(Error::new(step, &args.domain, cause)
            .kind(Kind::Invalid)
            .hint(hint))
    };
    if !args.ignore_host && args.vcpus > info.online_vcpus && args.vcpus > cpus {
        return refused(
            format!("the host has {cpus} CPUs, fewer than {}", args.vcpus),
            "`--ignore-host` does it all the same".into(),
        );
    }
    let max = info.max_vcpu_id + 1;
    if args.vcpus > max {
        return refused(
            format!("it has at most {max} vCPUs"),
            "maxvcpus= in its configuration sets that, before it is created".into(),
        );
    }
    if args.vcpus == 0 {
        return refused(
            "it would have none left".into(),
            "`xlrs pause` stops it".into(),
        );
    }
    let write = |store: &xs_client::Connection, tx| {
        for vcpu in 0..max {
            let path = format!("{}/cpu/{vcpu}/availability", nodes::home(info.dom));
            let state: &[u8] = match vcpu < args.vcpus {
                true => b"online",
                false => b"offline",
            };
            store.write(Some(tx), &path, state)?;
        }
        Ok::<_, Error>(())
    };
    xen_hal::StoreExt::transaction(&host.store, write)?;
    Ok(ExitCode::SUCCESS)
}
