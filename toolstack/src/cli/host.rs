//! `xlrs host`, and the daemons that this program itself is.

use std::path::PathBuf;
use xen_hal::DomainControl;

use clap::{Args, Subcommand};
use xen_backend::daemon::{self, Common, Signals};
use xlrs::host::{self, Part, State, Wanted};
use xlrs::{Error, Result, consoled, supervise};
use xs_client::Connection;

use super::common::print_json;
use crate::cli::ExitCode;

#[derive(Args)]
pub struct HostArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start the store daemon, console daemon, back ends and supervisor
    Start(StartArgs),
    /// Stop the daemons that `start` has started
    Stop(StopArgs),
    /// Show which of the daemons run, and what is missing
    Status(StatusArgs),
}

#[derive(Args)]
struct StartArgs {
    /// Parts that somebody else starts: xenstored, console, blkback, netback, supervisor
    #[arg(long, value_name = "PARTS", value_delimiter = ',', value_parser = part)]
    stock: Vec<Part>,
    /// The folder with our programs
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
    /// Disk images may name backing files below this folder; may be given several times
    #[arg(long, value_name = "FOLDER")]
    backing: Vec<PathBuf>,
    /// Print less
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Args)]
struct StopArgs {
    /// Even if guests are running
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn part(name: &str) -> Result<Part, String> {
    Part::named(name).ok_or_else(|| {
        let names: Vec<_> = Part::ALL.iter().map(|part| part.name()).collect();
        format!("it is one of {}", names.join(", "))
    })
}

pub fn host(args: &HostArgs) -> Result<ExitCode> {
    match &args.verb {
        Verb::Start(args) => {
            let wanted = Wanted {
                stock: args.stock.iter().copied().collect(),
                programs: args.programs.clone(),
                backing: args.backing.clone(),
            };
            let preflight = || xen_dom0::preflight().map_err(|e| Error::new("reach Xen", "", e));
            host::start(&wanted, preflight, |line| {
                if !args.quiet {
                    eprintln!("{line}");
                }
            })?;
        }
        Verb::Stop(args) => host::stop(running_guests(), args.force, |line| eprintln!("{line}"))?,
        Verb::Status(args) => return status(args),
    }
    Ok(ExitCode::SUCCESS)
}

/// How many guests there are, none if Xen cannot tell.
fn running_guests() -> usize {
    let list = xen_dom0::Hypervisor::open().and_then(|xen| xen.list());
    let guests =
        |list: Vec<xen_hal::DomainInfo>| list.iter().filter(|info| info.dom.0 != 0).count();
    list.map_or(0, guests)
}

fn status(args: &StatusArgs) -> Result<ExitCode> {
    let (rows, well) = host::status();
    if args.json {
        print_json(&host::status_json(&rows))?;
    } else {
        for (part, state) in &rows {
            let told = match state {
                State::Running { pid } => format!("running   process {pid}"),
                State::Foreign { what } => format!("stock     {what}"),
                State::Stopped { why } => format!("stopped   {why}; remedy: {}", part.remedy()),
            };
            println!("{:<10} {told}", part.name());
        }
        if let Err(reason) = xen_dom0::preflight() {
            println!("Xen        {reason}");
        }
    }
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

#[derive(Args)]
pub struct ConsoleDaemonArgs {
    #[command(flatten)]
    common: Common,
    /// Where the guests' log files go
    #[arg(long, value_name = "FOLDER", default_value = xlrs::paths::CONSOLE_LOGS)]
    log_folder: PathBuf,
}

#[derive(Args)]
pub struct SuperviseArgs {
    #[command(flatten)]
    common: Common,
}

/// The console daemon's world: dom0's device nodes.
struct Dom0 {
    control: xen_dom0::Hypervisor,
    grants: xen_dom0::Grants,
    events: xen_dom0::Events,
    store: Connection,
}

impl consoled::World for Dom0 {
    type Control = xen_dom0::Hypervisor;
    type Grants = xen_dom0::Grants;
    type Events = xen_dom0::Events;
    type Store = Connection;

    fn control(&self) -> &Self::Control {
        &self.control
    }

    fn grants(&self) -> &Self::Grants {
        &self.grants
    }

    fn events(&self) -> &Self::Events {
        &self.events
    }

    fn store(&self) -> &Self::Store {
        &self.store
    }
}

pub fn console_daemon(args: &ConsoleDaemonArgs) -> ExitCode {
    let serve = |ready| {
        let _lock = daemon::only_one("console-daemon")?;
        let signals = Signals::take()?;
        let world = Dom0 {
            control: super::hypervisor()?,
            grants: xen_dom0::Grants::open()?,
            events: xen_dom0::Events::open()?,
            store: super::store()?,
        };
        consoled::serve(&world, Some(args.log_folder.clone()), &signals, ready)
    };
    daemon::run("xlrs serve-console", &args.common, |ready| {
        serve(ready).map_err(xen_dom0::explained)
    })
    .into()
}

pub fn supervise(args: &SuperviseArgs) -> ExitCode {
    let serve = |ready| {
        let _lock = daemon::only_one("supervise")?;
        let signals = Signals::take()?;
        supervise::serve(&super::hypervisor()?, &super::store()?, &signals, ready)
    };
    daemon::run("xlrs supervise", &args.common, |ready| {
        serve(ready).map_err(xen_dom0::explained)
    })
    .into()
}
