//! Commands about schedulers: `sched-credit`, `sched-credit2`, `sched-rtds`.

use std::fmt::Write as _;

use clap::Args;
use serde_json::{Value, json};
use xen_hal::{CpuPool, DomainInfo, HostControl, Placement, PoolSettings, Scheduler, Share, Timed};
use xen_sys::VcpuId;
use xlrs::{Error, Kind, Result};

use super::common::{Host, print, print_json, shown};
use crate::cli::ExitCode;

#[derive(Args)]
pub struct CreditArgs {
    #[command(flatten)]
    weighing: Weighing,
    /// The length of a time slice, in ms
    #[arg(short, long = "tslice_ms", requires = "schedparam", value_name = "MS")]
    tslice: Option<u32>,
    /// How long a vCPU is taken to be at home on its CPU, in µs
    #[arg(
        short,
        long = "migration_delay_us",
        requires = "schedparam",
        value_name = "US"
    )]
    migration_delay: Option<u32>,
}

#[derive(Args)]
pub struct Credit2Args {
    #[command(flatten)]
    weighing: Weighing,
}

// What both credit schedulers' commands take; no doc comment, which would stand for both commands in their help.
#[derive(Args)]
struct Weighing {
    /// Only this guest, by name or number; or the guest that is changed
    #[arg(short, long)]
    domain: Option<String>,
    /// Its share of the CPUs, relative to others'
    #[arg(short, long, requires = "domain", value_parser = clap::value_parser!(u16).range(1..))]
    weight: Option<u16>,
    /// The most that it may have, in per cent of one CPU; 0 for no limit
    #[arg(short, long, requires = "domain")]
    cap: Option<u16>,
    /// Only this cpupool
    #[arg(short = 'p', long, conflicts_with = "domain")]
    cpupool: Option<String>,
    /// Show or change the settings of the cpupool, Pool-0 if none is named
    #[arg(short, long, conflicts_with = "domain")]
    schedparam: bool,
    /// How long a vCPU runs at least, in µs
    #[arg(
        short,
        long = "ratelimit_us",
        requires = "schedparam",
        value_name = "US"
    )]
    ratelimit: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct RtdsArgs {
    /// Only this guest, by name or number; or the guest that is changed
    #[arg(short, long)]
    domain: Option<String>,
    /// This vCPU, or `all`; repeat it to change several
    #[arg(short = 'v', long, value_name = "VCPU|all")]
    vcpuid: Vec<String>,
    /// The period, in µs; once for each vCPU
    #[arg(short, long, value_name = "US", requires = "vcpuid")]
    period: Vec<u32>,
    /// How much it may run in each period, in µs; once for each vCPU
    #[arg(short, long, value_name = "US", requires = "vcpuid")]
    budget: Vec<u32>,
    /// Whether it may have what others leave: 0 or 1; once for each vCPU
    #[arg(short, long, value_name = "0|1", requires = "vcpuid", value_parser = clap::value_parser!(u8).range(0..=1))]
    extratime: Vec<u8>,
    /// Only this cpupool
    #[arg(short, long, conflicts_with_all = ["domain", "vcpuid"])]
    cpupool: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Settings of a pool that only credit has.
#[derive(Default)]
struct Change {
    tslice: Option<u32>,
    migration_delay: Option<u32>,
}

pub fn credit(args: &CreditArgs) -> Result<ExitCode> {
    let change = Change {
        tslice: args.tslice,
        migration_delay: args.migration_delay,
    };
    weigh(Scheduler::Credit, &args.weighing, &change)
}

pub fn credit2(args: &Credit2Args) -> Result<ExitCode> {
    weigh(Scheduler::Credit2, &args.weighing, &Change::default())
}

fn weigh(scheduler: Scheduler, args: &Weighing, change: &Change) -> Result<ExitCode> {
    let host = Host::open()?;
    if args.schedparam {
        return settings(&host, scheduler, args, change);
    }
    if let Some(word) = &args.domain {
        let info = host.domain(word)?;
        let scheduler = expect(&host, &info, scheduler)?;
        if args.weight.is_some() || args.cap.is_some() {
            let share = host.control.share(info.dom, scheduler);
            let share = share.map_err(Error::hal("ask for the share of", word))?;
            let Share::Weighted { weight, cap } = share else {
                return Err(Error::new("change the share of", word, "it has no weight"));
            };
            let share = Share::Weighted {
                weight: args.weight.unwrap_or(weight),
                cap: args.cap.unwrap_or(cap),
            };
            let set = host.control.set_share(info.dom, scheduler, share);
            set.map_err(Error::hal("change the share of", word))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new(&host, scheduler)?;
        table.domains(vec![info])?;
        return table.print(args.json);
    }
    let mut table = Table::new(&host, scheduler)?;
    table.pools(args.cpupool.as_deref())?;
    table.print(args.json)
}

/// Shows or changes a pool's settings.
fn settings(
    host: &Host,
    scheduler: Scheduler,
    args: &Weighing,
    change: &Change,
) -> Result<ExitCode> {
    let pool = match &args.cpupool {
        Some(word) => host.pool(word)?,
        None => {
            let pools = host.pools()?.into_iter();
            let mut first = pools.filter(|pool| pool.id == 0);
            first
                .next()
                .ok_or_else(|| Error::new("find the cpupool", 0, "there is none"))?
        }
    };
    if change.tslice.is_none() && args.ratelimit.is_none() && change.migration_delay.is_none() {
        let mut table = Table::new(host, scheduler)?;
        table.pool_line(&pool);
        return table.print(args.json);
    }
    let failed = || Error::hal("change the settings of cpupool", pool.id);
    let now = host.control.pool_settings(pool.id, scheduler);
    let now = now.map_err(failed())?;
    let wanted = PoolSettings {
        time_slice_ms: change.tslice.unwrap_or(now.time_slice_ms),
        rate_limit_us: args.ratelimit.unwrap_or(now.rate_limit_us),
        migration_delay_us: change.migration_delay.unwrap_or(now.migration_delay_us),
    };
    let set = host.control.set_pool_settings(pool.id, scheduler, wanted);
    set.map_err(failed())?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses a guest under another scheduler, as xl does.
fn expect(host: &Host, info: &DomainInfo, wanted: Scheduler) -> Result<Scheduler> {
    let pools = host.pools()?;
    let pool = pools.iter().find(|pool| pool.id == info.cpupool);
    let found = pool.map(|pool| pool.scheduler);
    match found {
        Some(found) if found == wanted => Ok(found),
        _ => {
            let name = found.map_or("unknown", Scheduler::name);
            let cause = format!("its scheduler is {name}, not {wanted}");
            let error = Error::new("look at the share of domain", info.dom, cause);
            Err(error
                .kind(Kind::Invalid)
                .hint(format!("`xlrs sched-{name}` shows it")))
        }
    }
}

pub fn rtds(args: &RtdsArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let wrong = |cause: &str| {
        let error = Error::new("read the command line", "", cause);
        Err(error.kind(Kind::Invalid).hint(
            "name a vCPU with -v, and for each of them -p, -b and -e, if it shall be changed",
        ))
    };
    let all = args.vcpuid.iter().any(|word| word == "all");
    if all && args.vcpuid.len() > 1 {
        return wrong("`all` and other vCPUs do not go together");
    }
    let given = [args.period.len(), args.budget.len(), args.extratime.len()];
    let change = given.iter().any(|len| *len > 0);
    if given.iter().any(|len| *len != given[0]) || change && given[0] != args.vcpuid.len() {
        return wrong("there are not as many periods, budgets and extra times as vCPUs");
    }
    let mut table = Table::new(&host, Scheduler::Rtds)?;
    let Some(word) = &args.domain else {
        if !args.vcpuid.is_empty() && !all || change {
            return wrong("no guest is named (-d)");
        }
        table.vcpus = all;
        table.pools(args.cpupool.as_deref())?;
        return table.print(args.json);
    };
    let info = host.domain(word)?;
    expect(&host, &info, Scheduler::Rtds)?;
    if !change {
        table.vcpus = !args.vcpuid.is_empty();
        if !all {
            table.only = numbers(&args.vcpuid)?;
        }
        table.domains(vec![info])?;
        return table.print(args.json);
    }
    let timed = |index: usize| Timed {
        period_us: args.period[index],
        budget_us: args.budget[index],
        extra_time: args.extratime[index] == 1,
    };
    let shares: Vec<_> = match all {
        true => (0..=info.max_vcpu_id)
            .map(|vcpu| (VcpuId(vcpu), timed(0)))
            .collect(),
        false => {
            let vcpus = numbers(&args.vcpuid)?.into_iter().enumerate();
            vcpus.map(|(index, vcpu)| (vcpu, timed(index))).collect()
        }
    };
    let set = host.control.set_vcpu_shares(info.dom, &shares);
    set.map_err(Error::hal("change the share of", word))?;
    Ok(ExitCode::SUCCESS)
}

fn numbers(words: &[String]) -> Result<Vec<VcpuId>> {
    let number = |word: &String| {
        let number = word.parse().map(VcpuId);
        number.map_err(|_| Error::new("find vCPU", word, "it is no number").kind(Kind::Invalid))
    };
    words.iter().map(number).collect()
}

/// Shares in the making of a table and of JSON.
struct Table<'a> {
    host: &'a Host,
    scheduler: Scheduler,
    names: std::collections::BTreeMap<u32, String>,
    /// RTDS: each vCPU has a line.
    vcpus: bool,
    /// RTDS: only these, all if there is none.
    only: Vec<VcpuId>,
    text: String,
    json: Vec<Value>,
}

impl<'a> Table<'a> {
    fn new(host: &'a Host, scheduler: Scheduler) -> Result<Table<'a>> {
        Ok(Table {
            host,
            scheduler,
            names: host.pool_names()?,
            vcpus: false,
            only: Vec::new(),
            text: String::new(),
            json: Vec::new(),
        })
    }

    /// All pools that have this scheduler, with their guests.
    fn pools(&mut self, only: Option<&str>) -> Result<()> {
        let only = only.map(|word| self.host.pool(word)).transpose()?;
        let guests = self.host.domains(&[])?;
        for pool in self.host.pools()? {
            let wanted = only.as_ref().is_none_or(|only| only.id == pool.id);
            if pool.scheduler != self.scheduler || !wanted {
                continue;
            }
            self.pool_line(&pool);
            let inside = guests.iter().filter(|info| info.cpupool == pool.id);
            self.domains(inside.cloned().collect())?;
        }
        Ok(())
    }

    fn pool_line(&mut self, pool: &CpuPool) {
        let name = shown(self.names.get(&pool.id).map(String::as_str)).to_string();
        if self.scheduler == Scheduler::Rtds {
            let _ = writeln!(self.text, "Cpupool {name}: sched=RTDS");
            return;
        }
        match self.host.control.pool_settings(pool.id, self.scheduler) {
            Err(_) => {
                let _ = writeln!(self.text, "Cpupool {name}: [sched params unavailable]");
            }
            Ok(now) => {
                let limit = now.rate_limit_us;
                let _ = match self.scheduler {
                    Scheduler::Credit => writeln!(
                        self.text,
                        "Cpupool {name}: tslice={}ms ratelimit={limit}us migration-delay={}us",
                        now.time_slice_ms, now.migration_delay_us
                    ),
                    _ => writeln!(self.text, "Cpupool {name}: ratelimit={limit}us"),
                };
                self.json.push(json!({
                    "cpupool": name, "scheduler": self.scheduler.name(), "ratelimit_us": limit,
                }));
            }
        }
    }

    fn domains(&mut self, list: Vec<DomainInfo>) -> Result<()> {
        let header = match (self.scheduler, self.vcpus) {
            (Scheduler::Rtds, false) => {
                format!(
                    "{:>4} {:>9} {:>9} {:>10}",
                    "ID", "Period", "Budget", "Extratime"
                )
            }
            (Scheduler::Rtds, true) => format!(
                "{:>4} {:>4} {:>9} {:>9} {:>10}",
                "ID", "VCPU", "Period", "Budget", "Extratime"
            ),
            _ => format!("{:>4} {:>6} {:>4}", "ID", "Weight", "Cap"),
        };
        let _ = writeln!(self.text, "{:<33} {header}", "Name");
        for (info, name) in self.host.named(list)? {
            self.domain(&info, name.as_deref())?;
        }
        Ok(())
    }

    fn domain(&mut self, info: &DomainInfo, name: Option<&str>) -> Result<()> {
        let dom = info.dom;
        let failed = || Error::hal("ask for the share of domain", dom);
        if self.vcpus {
            let vcpus = match self.only.is_empty() {
                true => (0..=info.max_vcpu_id).map(VcpuId).collect(),
                false => self.only.clone(),
            };
            let shares = self.host.control.vcpu_shares(dom, &vcpus);
            for (vcpu, share) in vcpus.into_iter().zip(shares.map_err(failed())?) {
                self.timed(info, name, Some(vcpu), share);
            }
            return Ok(());
        }
        match self
            .host
            .control
            .share(dom, self.scheduler)
            .map_err(failed())?
        {
            Share::Timed(share) => self.timed(info, name, None, share),
            Share::Weighted { weight, cap } => {
                let row = format!("{:<33} {:>4} {weight:>6} {cap:>4}", shown(name), dom.0);
                let _ = writeln!(self.text, "{row}");
                self.json.push(json!({
                    "domid": dom.0, "name": name, "cpupool": info.cpupool,
                    "weight": weight, "cap_percent": cap,
                }));
            }
        }
        Ok(())
    }

    fn timed(&mut self, info: &DomainInfo, name: Option<&str>, vcpu: Option<VcpuId>, share: Timed) {
        let number = vcpu.map_or(String::new(), |vcpu| format!(" {:>4}", vcpu.0));
        let extra = if share.extra_time { "yes" } else { "no" };
        let _ = writeln!(
            self.text,
            "{:<33} {:>4}{number} {:>9} {:>9} {extra:>10}",
            shown(name),
            info.dom.0,
            share.period_us,
            share.budget_us
        );
        self.json.push(json!({
            "domid": info.dom.0, "name": name, "vcpu": vcpu.map(|vcpu| vcpu.0),
            "period_us": share.period_us, "budget_us": share.budget_us,
            "extra_time": share.extra_time,
        }));
    }

    fn print(self, as_json: bool) -> Result<ExitCode> {
        match as_json {
            true => print_json(&Value::Array(self.json)),
            false => print(&self.text),
        }
    }
}
