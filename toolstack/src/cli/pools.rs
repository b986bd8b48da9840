//! Commands about cpupools: `cpupool-create`, `-list`, `-destroy`, `-rename`, `-cpu-add`, `-cpu-remove`,
//! `-migrate`, `-numa-split`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use xen_hal::{CpuMap, CpuPool, DomainControl, HostControl, Placement, Store, StoreExt};
use xlrs::claims::Claims;
use xlrs::config::{CpuSet, Entry, Source, ValueKind, parse};
use xlrs::interrupt::Held;
use xlrs::{Error, Kind, Result, uuid};

use super::check;
use super::common::{Host, print, print_json, shown};
use crate::cli::ExitCode;

#[derive(Args)]
pub struct CreateArgs {
    /// The configuration file, then more configuration as if it stood behind it
    #[arg(value_name = "FILE|KEY=VALUE")]
    words: Vec<String>,
    /// The configuration file
    #[arg(short = 'f', long, value_name = "FILE")]
    defconfig: Option<PathBuf>,
    /// Show what would be made, and stop there
    #[arg(short = 'n', long, alias = "dryrun")]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct ListArgs {
    /// Only this pool
    cpupool: Option<String>,
    /// Show which CPUs they have
    #[arg(short, long)]
    cpus: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct PoolArgs {
    /// The pool's name or number
    cpupool: String,
}

#[derive(Args)]
pub struct RenameArgs {
    /// The pool's name or number
    cpupool: String,
    /// Its new name
    name: String,
}

#[derive(Args)]
pub struct CpuArgs {
    /// The pool's name or number
    cpupool: String,
    /// The CPUs, such as `2`, `0-3,^1` or `node:1`
    cpus: String,
}

#[derive(Args)]
pub struct MigrateArgs {
    /// The guest's name or number
    domain: String,
    /// The pool's name or number
    cpupool: String,
}

/// A pool as its configuration wants it.
struct Wanted {
    name: String,
    scheduler: xen_hal::Scheduler,
    cpus: CpuMap,
}

pub fn create(args: &CreateArgs) -> Result<ExitCode> {
    let (file, more) = check::split_words(args.defconfig.as_ref(), &args.words)?;
    let sources = check::sources(file.as_deref(), &more)?;
    let host = Host::open()?;
    let wanted = wanted(&host, &sources, file.as_ref())?;
    let source = file.map_or("command line".into(), |path| path.display().to_string());
    let mut out = format!("Using config file \"{source}\"\n");
    let _ = writeln!(out, "cpupool name:   {}", wanted.name);
    let _ = writeln!(out, "scheduler:      {}", wanted.scheduler);
    let _ = writeln!(out, "number of cpus: {}", wanted.cpus.count());
    print(&out)?;
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    // Nobody shall take the name meanwhile; and what is begun is brought to its end.
    let _claims = claim()?;
    check_name(&host, &wanted.name, None)?;
    let held = Held::begin()?;
    let made = make(&host, &wanted);
    held.release();
    made.map(|_| ExitCode::SUCCESS)
}

/// Only one at a time gives pools names.
fn claim() -> Result<Claims> {
    let claims = Claims::begin()?;
    claims.add("cpupools", true, "the cpupools")?;
    Ok(claims)
}

/// Makes a pool, or nothing.
fn make(host: &Host, wanted: &Wanted) -> Result<u32> {
    let made = host.control.create_pool(wanted.scheduler);
    let id = made.map_err(|error| {
        // What it has not been built with, it does not find.
        let missing = matches!(&error, xen_hal::Error::Hypercall { errno, .. } if *errno == xen_sys::Errno::ENOENT);
        let error = Error::hal("create the cpupool", &wanted.name)(error);
        match missing {
            true => error.hint(format!(
                "this Xen was built without the scheduler {}; credit and credit2 are always there",
                wanted.scheduler
            )),
            false => error,
        }
    })?;
    let mut added = Vec::new();
    let fill = |added: &mut Vec<u32>| {
        name(host, id, &wanted.name)?;
        for cpu in wanted.cpus.iter() {
            let object = format!("{cpu} to the cpupool {}", wanted.name);
            let add = host.control.add_cpu(id, cpu);
            add.map_err(Error::hal("add CPU", object))?;
            added.push(cpu);
        }
        Ok(())
    };
    let filled = fill(&mut added);
    if filled.is_err() {
        // What it says is about the first thing that failed.
        for cpu in added {
            let _ = host.control.remove_cpu(id, cpu);
        }
        let _ = host.store.rm_if_present(None, &format!("/local/pool/{id}"));
        let _ = host.control.destroy_pool(id);
    }
    filled.map(|()| id)
}

fn name(host: &Host, id: u32, name: &str) -> Result<()> {
    let id_bytes = uuid::make().map_err(|e| Error::system("make a UUID", "", &e))?;
    let id_text = uuid::format(&id_bytes);
    StoreExt::transaction::<(), Error>(&host.store, |store, tx| {
        let at = format!("/local/pool/{id}");
        store.write(Some(tx), &format!("{at}/uuid"), id_text.as_bytes())?;
        store.write(Some(tx), &format!("{at}/name"), name.as_bytes())?;
        Ok(())
    })
}

fn check_name(host: &Host, name: &str, itself: Option<u32>) -> Result<()> {
    let wrong = |cause: &str| {
        let error = Error::new("name the cpupool", name, cause);
        Err(error.kind(Kind::Invalid).hint("choose another name"))
    };
    if name.is_empty() || name.chars().any(char::is_control) {
        return wrong("it is empty, or holds control characters");
    }
    let pools = host.pools()?;
    let names = host.pool_names()?;
    let taken = names.iter().any(|(id, known)| {
        known == name && Some(*id) != itself && pools.iter().any(|pool| pool.id == *id)
    });
    match taken {
        true => wrong("there is one of this name"),
        false => Ok(()),
    }
}

fn wanted(host: &Host, sources: &[Source], file: Option<&PathBuf>) -> Result<Wanted> {
    let mut entries: Vec<Entry> = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let parsed = parse(source, index).map_err(|diagnostic| {
            eprint!("{diagnostic}");
            let cause = "there is an error in it";
            Error::new("read the configuration", &source.name, cause).kind(Kind::Config)
        })?;
        entries.extend(parsed);
    }
    let value = |key: &str| {
        let found = entries.iter().rev().find(|entry| entry.key == key);
        found.map(|entry| &entry.value.kind)
    };
    let text = |key: &str| match value(key) {
        Some(ValueKind::Text(text)) => Some(text.clone()),
        _ => None,
    };
    let invalid = |object: String, cause: &str| {
        Error::new("create the cpupool", object, cause).kind(Kind::Invalid)
    };
    let base = || Some(file?.file_name()?.to_string_lossy().into_owned());
    let Some(name) = text("name").or_else(base) else {
        return Err(invalid(String::new(), "it has no name").hint("add name=\"…\""));
    };
    let scheduler = match text("sched") {
        Some(word) => xen_hal::Scheduler::named(&word).ok_or_else(|| {
            invalid(name.clone(), &format!("there is no scheduler {word}"))
                .hint("one of credit, credit2, rtds, null, arinc653")
        })?,
        None => host
            .pools()?
            .first()
            .map_or(xen_hal::Scheduler::Credit2, |pool| pool.scheduler),
    };
    let free = host.control.free_cpus();
    let free = free.map_err(Error::hal("ask for the free CPUs", ""))?;
    let numbers = |list: &[xlrs::config::Value]| {
        let number = |value: &xlrs::config::Value| match &value.kind {
            ValueKind::Number(number, _) => u32::try_from(*number).ok(),
            ValueKind::Text(text) => text.trim().parse().ok(),
            ValueKind::List(_) => None,
        };
        list.iter().map(number).collect::<Option<Vec<u32>>>()
    };
    let bad_list = |key: &str| invalid(name.clone(), &format!("`{key}` must list numbers"));
    let mut cpus = CpuMap::new();
    if let Some(ValueKind::List(list)) = value("nodes") {
        let topology = host.control.topology();
        let topology = topology.map_err(Error::hal("ask Xen where the CPUs are", ""))?;
        for node in numbers(list).ok_or_else(|| bad_list("nodes"))? {
            let set = CpuSet::parse(&format!("node:{node}")).map_err(|_| bad_list("nodes"))?;
            let inside = set.resolve(&topology);
            let free = inside.iter().filter(|cpu| free.contains(*cpu));
            free.for_each(|cpu| cpus.insert(cpu));
        }
        if cpus.is_empty() {
            return Err(invalid(name, "none of the CPUs of these nodes is free").hint(FREE_HINT));
        }
    } else {
        cpus = match value("cpus") {
            Some(ValueKind::List(list)) => numbers(list)
                .ok_or_else(|| bad_list("cpus"))?
                .into_iter()
                .collect(),
            Some(ValueKind::Text(text)) => host.cpus(text)?,
            Some(ValueKind::Number(number, _)) => u32::try_from(*number).into_iter().collect(),
            None => CpuMap::new(),
        };
        if let Some(cpu) = cpus.iter().find(|cpu| !free.contains(*cpu)) {
            let cause = format!("CPU {cpu} does not exist or is not free");
            return Err(invalid(name, &cause).hint(FREE_HINT));
        }
    }
    Ok(Wanted {
        name,
        scheduler,
        cpus,
    })
}

const FREE_HINT: &str =
    "`xlrs cpupool-list -c` shows who has them, `xlrs cpupool-cpu-remove` frees them";

pub fn list(args: &ListArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let pools = match &args.cpupool {
        Some(word) => vec![host.pool(word)?],
        None => host.pools()?,
    };
    let names = host.pool_names()?;
    let cpus = |pool: &CpuPool| pool.cpus.iter().collect::<Vec<u32>>();
    if args.json {
        let rows = pools.iter().map(|pool| {
            json!({
                "id": pool.id, "name": names.get(&pool.id), "scheduler": pool.scheduler.name(),
                "domains": pool.domains, "cpus": cpus(pool),
            })
        });
        return print_json(&Value::Array(rows.collect()));
    }
    let mut out = format!("{:<19}", "Name");
    out.push_str(match args.cpus {
        true => "CPU list\n",
        false => "CPUs   Sched     Active   Domain count\n",
    });
    for pool in &pools {
        let name = shown(names.get(&pool.id).map(String::as_str));
        let _ = write!(out, "{name:<19}");
        let _ = match args.cpus {
            true => {
                let list: Vec<_> = cpus(pool).iter().map(u32::to_string).collect();
                writeln!(out, "{}", list.join(","))
            }
            false => writeln!(
                out,
                "{:>3} {:>9}       y       {:>4}",
                pool.cpus.count(),
                pool.scheduler.name(),
                pool.domains
            ),
        };
    }
    print(&out)
}

pub fn destroy(args: &PoolArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let pool = host.pool(&args.cpupool)?;
    let object = &args.cpupool;
    let refused = |cause: String, hint: &str| {
        let error = Error::new("destroy the cpupool", object, cause);
        Err(error.kind(Kind::Invalid).hint(hint))
    };
    if pool.id == 0 {
        return refused("dom0 runs in it".into(), "it stays as long as Xen runs");
    }
    if pool.domains > 0 {
        return refused(
            format!("{} domains are in it", pool.domains),
            "move them out: `xlrs cpupool-migrate`",
        );
    }
    let held = Held::begin()?;
    let remove = || {
        for cpu in pool.cpus.iter() {
            let removed = host.control.remove_cpu(pool.id, cpu);
            removed.map_err(Error::hal("take out CPU", cpu))?;
        }
        let destroyed = host.control.destroy_pool(pool.id);
        destroyed.map_err(Error::hal("destroy the cpupool", object))?;
        let at = format!("/local/pool/{}", pool.id);
        let gone = host.store.rm_if_present(None, &at);
        gone.map_err(Error::store("remove", &at)).map(drop)
    };
    let removed = remove();
    held.release();
    removed.map(|()| ExitCode::SUCCESS)
}

pub fn rename(args: &RenameArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let pool = host.pool(&args.cpupool)?;
    let _claims = claim()?;
    check_name(&host, &args.name, Some(pool.id))?;
    let path = format!("/local/pool/{}/name", pool.id);
    let written = host.store.write(None, &path, args.name.as_bytes());
    written.map_err(Error::store("rename the cpupool", &args.cpupool))?;
    Ok(ExitCode::SUCCESS)
}

pub fn cpu_add(args: &CpuArgs) -> Result<ExitCode> {
    each_cpu(args, "add CPU", "to", |host, pool, cpu| {
        host.control.add_cpu(pool.id, cpu)
    })
}

pub fn cpu_remove(args: &CpuArgs) -> Result<ExitCode> {
    each_cpu(args, "take out CPU", "of", |host, pool, cpu| {
        host.control.remove_cpu(pool.id, cpu)
    })
}

/// Like xl: what does not work is told, goes on, and is no failure of the command.
fn each_cpu(
    args: &CpuArgs,
    step: &'static str,
    word: &str,
    act: impl Fn(&Host, &CpuPool, u32) -> xen_hal::Result<()>,
) -> Result<ExitCode> {
    let host = Host::open()?;
    let pool = host.pool(&args.cpupool)?;
    let count = host.cpu_count()?;
    for cpu in host.cpus(&args.cpus)?.iter().take_while(|cpu| *cpu < count) {
        let object = format!("{cpu} {word} the cpupool {}", args.cpupool);
        if let Err(error) = act(&host, &pool, cpu).map_err(Error::hal(step, object)) {
            eprintln!("xlrs: {error}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub fn migrate(args: &MigrateArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    let pool = host.pool(&args.cpupool)?;
    let object = format!("{} to the cpupool {}", args.domain, args.cpupool);
    let moved = host.control.move_to_pool(info.dom, pool.id);
    moved.map_err(|error| {
        Error::hal("move", object)(error).hint("the pool needs a CPU, and dom0 stays where it is")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// One pool a node. The first keeps the CPUs of dom0's node; each other takes its own.
pub fn numa_split() -> Result<ExitCode> {
    let host = Host::open()?;
    let step = "split the host into cpupools";
    let pools = host.pools()?;
    let [pool] = pools.as_slice() else {
        let error = Error::new(step, "", "there are cpupools already");
        return Err(error
            .kind(Kind::Invalid)
            .hint("`xlrs cpupool-destroy` removes them"));
    };
    let topology = host.control.topology();
    let topology = topology.map_err(Error::hal("ask Xen where the CPUs are", ""))?;
    let mut nodes: Vec<u32> = topology.iter().flatten().map(|place| place.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let Some(first) = topology.iter().flatten().next().map(|place| place.node) else {
        return Err(Error::new(step, "", "Xen knows of no CPU"));
    };
    let of_node = |node: u32| -> CpuMap {
        let inside = (0..)
            .zip(&topology)
            .filter(|(_, place)| place.is_some_and(|place| place.node == node));
        inside.map(|(cpu, _)| cpu).collect()
    };
    let dom0 = host.control.info(xen_sys::DomId::DOM0);
    let dom0 = dom0.map_err(Error::hal("ask Xen about domain", 0))?;
    let room = of_node(first).count();
    if let Some(info) = dom0
        && info.online_vcpus > room
    {
        let cause = format!(
            "dom0 has {} vCPUs, and its node {room} CPUs",
            info.online_vcpus
        );
        let error = Error::new(step, "", cause).kind(Kind::Invalid);
        return Err(error.hint(format!("`xlrs vcpu-set 0 {room}` first")));
    }
    let _claims = claim()?;
    let held = Held::begin()?;
    let split = || {
        let path = format!("/local/pool/{}/name", pool.id);
        let name = format!("Pool-node{first}");
        let written = host.store.write(None, &path, name.as_bytes());
        written.map_err(Error::store("rename the cpupool", pool.id))?;
        for node in nodes.iter().filter(|node| **node != first) {
            let cpus = of_node(*node);
            for cpu in cpus.iter().filter(|cpu| pool.cpus.contains(*cpu)) {
                let removed = host.control.remove_cpu(pool.id, cpu);
                removed.map_err(Error::hal("take out CPU", cpu))?;
            }
            make(
                &host,
                &Wanted {
                    name: format!("Pool-node{node}"),
                    scheduler: pool.scheduler,
                    cpus,
                },
            )?;
        }
        Ok(())
    };
    let done: Result<()> = split();
    held.release();
    done.map(|()| ExitCode::SUCCESS)
}
