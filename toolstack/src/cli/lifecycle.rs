//! Commands that change guests.

use std::path::PathBuf;

use clap::Args;
use xen_hal::DomainControl;
use xlrs::interrupt::Held;
use xlrs::prepare::Prepared;
use xlrs::store::{find_domain, no_such_domain};
use xlrs::{
    Error, Kind, Result, create as creation, destroy as removal, os, pool, power, times, userdata,
    uuid,
};

use super::check;
use super::common::DomainArgs;
use crate::cli::ExitCode;

#[derive(Args, Debug, Default, PartialEq)]
pub struct CreateArgs {
    /// The configuration file, then more configuration as if it stood behind it
    #[arg(value_name = "FILE|KEY=VALUE")]
    words: Vec<String>,
    /// The configuration file
    #[arg(short = 'f', long, value_name = "FILE")]
    defconfig: Option<PathBuf>,
    /// Attach to the guest's console
    #[arg(short = 'c', long)]
    console: bool,
    /// Leave the guest paused
    #[arg(short = 'p', long)]
    paused: bool,
    /// Print less
    #[arg(short = 'q', long)]
    quiet: bool,
    /// Print the configuration as JSON, and the plan, and stop there
    #[arg(short = 'n', long, alias = "dryrun")]
    pub dry_run: bool,
    /// Accepted for scripts written for xl: there is no process for each guest here
    #[arg(short = 'e', hide = true)]
    no_monitor: bool,
    /// Accepted for scripts written for xl
    #[arg(short = 'F', hide = true)]
    foreground: bool,
}

impl CreateArgs {
    /// Reads words of the plainest form: single short options, a file, settings. `None` is no mistake.
    pub fn plain(words: Vec<String>) -> Option<CreateArgs> {
        let mut args = CreateArgs::default();
        for word in words {
            match word.as_str() {
                "-q" | "--quiet" => args.quiet = true,
                "-p" | "--paused" => args.paused = true,
                "-c" | "--console" => args.console = true,
                other if other.starts_with('-') || other.is_empty() => return None,
                _ => args.words.push(word),
            }
        }
        Some(args)
    }
}

#[derive(Args)]
pub struct DestroyArgs {
    /// The guest's name or number
    domain: String,
    /// Accepted for scripts written for xl: dom0 is refused all the same
    #[arg(short, hide = true)]
    force: bool,
}

#[derive(Args)]
pub struct RunArgs {
    /// The kernel, or an appliance
    kernel: PathBuf,
    /// Its name; the kernel's file name if it is left out
    #[arg(long)]
    name: Option<String>,
    /// Its memory: a number of MiB, or a number and a unit: 64, 64M, 1G
    #[arg(short, long, default_value = "64M")]
    memory: String,
    /// How many vCPUs it has
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// A ramdisk
    #[arg(long, value_name = "FILE")]
    ramdisk: Option<PathBuf>,
    /// What it is told on its command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// A disk; repeat it for more: they become xvda, xvdb, …
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// A network card on this bridge; repeat it for more
    #[arg(long, value_name = "BRIDGE")]
    net: Vec<String>,
    /// Attach to the guest's console
    #[arg(short = 'c', long)]
    console: bool,
    /// Leave the guest paused
    #[arg(short = 'p', long)]
    paused: bool,
    /// More configuration, as in a configuration file
    #[arg(value_name = "KEY=VALUE")]
    more: Vec<String>,
    /// Show what would be made, and stop there
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct ShutdownArgs {
    /// The guest's name or number
    #[arg(required_unless_present = "all")]
    domain: Option<String>,
    /// All guests
    #[arg(short, long, conflicts_with = "domain")]
    all: bool,
    /// Wait until it has shut down; twice: until it is gone
    #[arg(short, long, action = clap::ArgAction::Count)]
    wait: u8,
    /// Accepted for scripts written for xl: PV guests need no such help
    #[arg(short = 'F', hide = true)]
    force: bool,
}

#[derive(Args)]
pub struct ConsoleArgs {
    /// The guest's name or number
    domain: String,
    /// The kind of console; a PV guest has no others
    #[arg(short = 't', value_name = "KIND", value_parser = ["pv"], default_value = "pv")]
    _kind: String,
    /// The console's number; there is one
    #[arg(short = 'n', value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(0..=0), default_value_t = 0)]
    _number: u32,
}

#[derive(Args)]
pub struct RebootArgs {
    /// The guest's name or number
    #[arg(required_unless_present = "all")]
    domain: Option<String>,
    /// All guests
    #[arg(short, long, conflicts_with = "domain")]
    all: bool,
    /// Wait until it has shut down; twice: until it is gone
    #[arg(short, long, action = clap::ArgAction::Count)]
    wait: u8,
    /// Accepted for scripts written for xl: PV guests need no such help
    #[arg(short = 'F', hide = true)]
    force: bool,
}

pub fn create(args: &CreateArgs) -> Result<ExitCode> {
    let split = check::split_words(args.defconfig.as_ref(), &args.words);
    let (file, more) = split.map_err(|error| match args.words.is_empty() {
        // xl finds out so late that it ends as after a wrong value.
        true => error.kind(Kind::Invalid),
        false => error,
    })?;
    if let Some(path) = &file
        && !args.quiet
    {
        eprintln!("Parsing config from {}", path.display());
    }
    let config = check::read(file.as_deref(), &more)?;
    times::mark("configuration");
    if args.dry_run {
        return dry_run(config, args.quiet);
    }
    start(config, args.paused, args.console)
}

pub fn run(args: &RunArgs) -> Result<ExitCode> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => {
            let stem = args.kernel.file_stem().unwrap_or_default();
            stem.to_string_lossy().into_owned()
        }
    };
    let kib = xlrs::config::memory_kib(&args.memory).ok_or_else(|| {
        Error::new("read the size", &args.memory, "it is no size")
            .kind(Kind::Usage)
            .hint("a number of MiB, or a number and a unit: 64, 64M, 1G")
    })?;
    let mut lines = vec![
        line("name", &name),
        line("kernel", &args.kernel.display()),
        format!("memory=\"{kib}K\""),
        format!("vcpus={}", args.vcpus),
    ];
    if let Some(ramdisk) = &args.ramdisk {
        lines.push(line("ramdisk", &ramdisk.display()));
    }
    if let Some(cmdline) = &args.cmdline {
        lines.push(line("cmdline", cmdline));
    }
    let disks = ('a'..='z').zip(&args.disk);
    for (letter, disk) in disks {
        let target = format!("vdev=xvd{letter},access=rw,target={}", disk.display());
        lines.push(format!("disk+=[{}]", quoted(&target)));
    }
    for bridge in &args.net {
        lines.push(format!("vif+=[{}]", quoted(&format!("bridge={bridge}"))));
    }
    let more: Vec<String> = lines.into_iter().chain(args.more.iter().cloned()).collect();
    let config = check::read(None, &more)?;
    if args.dry_run {
        return dry_run(config, false);
    }
    start(config, args.paused, args.console)
}

fn line(key: &str, value: &impl ToString) -> String {
    format!("{key}={}", quoted(&value.to_string()))
}

/// A value as a configuration file has it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Creates a guest and lets it run.
fn start(config: xlrs::config::DomainConfig, paused: bool, console: bool) -> Result<ExitCode> {
    os::be_patient();
    let control = super::hypervisor()?;
    times::mark("hypervisor");
    let store = super::store()?;
    times::mark("store");
    // Up to here there is nothing to clean up.
    let held = Held::begin()?;
    let guard = match pool::take(&control, &config)? {
        Some(shell) => creation::dress(&control, &store, shell, config)?,
        None => {
            let guest = Prepared::new(config)?;
            times::mark("prepare");
            creation::create_guarded(&control, &store, &guest)?
        }
    };
    let dom = guard.dom();
    let start = || match paused {
        true => Ok(()),
        false => control
            .unpause(dom)
            .map_err(Error::hal("start domain", dom)),
    };
    if console {
        let console = xlrs::console::Session::open(&store, dom)?;
        start()?;
        guard.keep();
        held.release();
        return console.run().map(|()| ExitCode::SUCCESS);
    }
    times::mark("ready");
    times::note(|| {
        let turns = store.turns();
        let (waits, transactions) = (turns.waits, turns.transactions);
        format!("store: {waits} waits, {transactions} transactions")
    });
    start()?;
    times::mark("unpause");
    guard.keep();
    held.release();
    super::leave()
}

fn dry_run(mut config: xlrs::config::DomainConfig, quiet: bool) -> Result<ExitCode> {
    if config.uuid.is_none() {
        config.uuid = Some(uuid::make().map_err(|e| Error::system("make a UUID", "", &e))?);
    }
    let id = config.uuid.unwrap_or_default();
    let nics = xlrs::prepare::name_nics(&config)?;
    print!(
        "{}",
        userdata::libxl_text(&userdata::libxl_json(&config, &id, &nics))
    );
    // Scripts read the JSON; whether the files are there is for people.
    let guest = Prepared::new(config)?;
    if !quiet {
        eprint!("{guest}");
    }
    Ok(ExitCode::SUCCESS)
}

pub fn destroy(args: &DestroyArgs) -> Result<ExitCode> {
    let control = super::hypervisor()?;
    let store = super::store()?;
    let dom = find_domain(&store, &args.domain)?;
    removal::destroy(&control, &store, dom)?;
    Ok(ExitCode::SUCCESS)
}

pub fn pause(args: &DomainArgs) -> Result<ExitCode> {
    on_domain(args, "pause domain", |control, dom| control.pause(dom))
}

pub fn unpause(args: &DomainArgs) -> Result<ExitCode> {
    on_domain(args, "unpause domain", |control, dom| control.unpause(dom))
}

fn on_domain(
    args: &DomainArgs,
    step: &'static str,
    act: impl FnOnce(&xen_dom0::Hypervisor, xen_sys::DomId) -> xen_hal::Result<()>,
) -> Result<ExitCode> {
    let control = super::hypervisor()?;
    let store = super::store()?;
    let dom = find_domain(&store, &args.domain)?;
    act(&control, dom).map_err(Error::hal(step, &args.domain))?;
    Ok(ExitCode::SUCCESS)
}

pub fn shutdown(args: &ShutdownArgs) -> Result<ExitCode> {
    let request = power::Request::Poweroff;
    ask(args.domain.as_ref(), args.wait, "Shutting down", request)
}

pub fn reboot(args: &RebootArgs) -> Result<ExitCode> {
    let request = power::Request::Reboot;
    ask(args.domain.as_ref(), args.wait, "Rebooting", request)
}

/// Asks a guest, or all of them, and waits if that is wanted.
fn ask(domain: Option<&String>, wait: u8, word: &str, request: power::Request) -> Result<ExitCode> {
    let control = super::hypervisor()?;
    let store = super::store()?;
    let doms = match domain {
        Some(word) => vec![find_domain(&store, word)?],
        None => {
            let list = control.list().map_err(Error::hal("list the domains", ""))?;
            let shells = pool::uuids();
            list.iter()
                .filter(|info| info.dom.0 != 0 && !shells.contains(&info.uuid))
                .map(|info| info.dom)
                .collect()
        }
    };
    let mut first = Ok(());
    for dom in &doms {
        eprintln!("{word} domain {dom}");
        let asked = power::ask(&control, &store, *dom, request);
        // One that does not answer is no reason not to ask the others.
        if let Err(error) = asked {
            if doms.len() > 1 {
                eprintln!("xlrs: {error}");
            }
            first = first.and(Err(error));
        }
    }
    if wait > 0 && first.is_ok() {
        let until = match wait {
            1 => power::Until::ShutDown,
            _ => power::Until::Gone,
        };
        eprintln!("Waiting for {} domains", doms.len());
        power::wait(&control, &store, &doms, until)?;
    }
    first.map(|()| ExitCode::SUCCESS)
}

pub fn console(args: &ConsoleArgs) -> Result<ExitCode> {
    let store = super::store()?;
    let dom = find_domain(&store, &args.domain)?;
    if xlrs::store::name_of(&store, dom)
        .map_err(Error::store("find domain", dom))?
        .is_none()
    {
        return Err(no_such_domain(&args.domain));
    }
    let session = xlrs::console::Session::open(&store, dom)?;
    drop(store);
    session.run().map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;

    #[test]
    fn plain_words_mean_the_same_as_to_clap() {
        for (words, plain) in [
            ("web.cfg", true),
            ("-q web.cfg memory=16", true),
            ("web.cfg --paused -c", true),
            ("--quiet", true),
            ("-qp web.cfg", false),
            ("-f web.cfg", false),
            ("-- -q", false),
            ("--help", false),
        ] {
            let words: Vec<String> = words.split(' ').map(String::from).collect();
            let short = CreateArgs::plain(words.clone());
            assert_eq!(short.is_some(), plain, "{words:?}");
            let command = CreateArgs::augment_args(clap::Command::new("create"));
            let command = command.no_binary_name(true);
            if let Some(short) = short {
                let long = command.get_matches_from(words);
                assert_eq!(CreateArgs::from_arg_matches(&long).unwrap(), short);
            }
        }
    }
}
