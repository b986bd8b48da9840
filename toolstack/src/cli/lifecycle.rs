//! Commands that change guests.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use xen_hal::DomainControl;
use xlrs::interrupt::Held;
use xlrs::prepare::Prepared;
use xlrs::store::find_domain;
use xlrs::{
    Error, Kind, Result, create as creation, destroy as removal, power, times, userdata, uuid,
};

use super::check;

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
    dry_run: bool,
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
pub struct DomainArgs {
    /// The guest's name or number
    domain: String,
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
}

#[derive(Args)]
pub struct ConsoleArgs {
    /// The guest's name or number
    domain: String,
    /// Accepted for scripts written for xl: a PV guest has one kind of console
    #[arg(short = 't', hide = true, value_parser = ["pv"])]
    kind: Option<String>,
}

#[derive(Args)]
pub struct RebootArgs {
    /// The guest's name or number
    domain: String,
}

pub fn create(args: CreateArgs) -> Result<ExitCode> {
    let (file, more) = split_words(&args)?;
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
    let control = super::hypervisor()?;
    times::mark("hypervisor");
    let store = super::store()?;
    times::mark("store");
    let guest = Prepared::new(config)?;
    times::mark("prepare");
    // Up to here there is nothing to clean up.
    let held = Held::begin()?;
    let guard = creation::create_guarded(&control, &store, &guest)?;
    let dom = guard.dom();
    let start = || match args.paused {
        true => Ok(()),
        false => control
            .unpause(dom)
            .map_err(Error::hal("start domain", dom)),
    };
    if args.console {
        let console = xlrs::console::Session::open(&store, dom)?;
        start()?;
        guard.keep();
        held.release();
        return console.run().map(|()| ExitCode::SUCCESS);
    }
    start()?;
    times::mark("unpause");
    guard.keep();
    held.release();
    Ok(ExitCode::SUCCESS)
}

/// The file and the `key=value` arguments.
fn split_words(args: &CreateArgs) -> Result<(Option<PathBuf>, Vec<String>)> {
    let mut file = args.defconfig.clone();
    let mut more = Vec::new();
    for word in &args.words {
        if word.contains('=') {
            more.push(word.clone());
        } else if file.is_none() {
            file = Some(word.into());
        } else {
            return Err(Error::new(
                "read the command line",
                word,
                "there are two configuration files",
            )
            .kind(Kind::Usage));
        }
    }
    if file.is_none() && more.is_empty() {
        return Err(Error::new(
            "read the command line",
            "",
            "no configuration file is named",
        )
        .kind(Kind::Usage)
        .hint("xlrs create FILE, or xlrs create name=web kernel=/path/to/kernel"));
    }
    Ok((file, more))
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

pub fn destroy(args: &DomainArgs) -> Result<ExitCode> {
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
    let control = super::hypervisor()?;
    let store = super::store()?;
    let doms = match &args.domain {
        Some(word) => vec![find_domain(&store, word)?],
        None => {
            let list = control.list().map_err(Error::hal("list the domains", ""))?;
            list.iter()
                .map(|info| info.dom)
                .filter(|dom| dom.0 != 0)
                .collect()
        }
    };
    for dom in &doms {
        eprintln!("Shutting down domain {dom}");
        power::ask(&control, &store, *dom, power::Request::Poweroff)?;
    }
    if args.wait > 0 {
        let until = match args.wait {
            1 => power::Until::ShutDown,
            _ => power::Until::Gone,
        };
        eprintln!("Waiting for {} domains", doms.len());
        power::wait(&control, &store, &doms, until)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn reboot(args: &RebootArgs) -> Result<ExitCode> {
    let control = super::hypervisor()?;
    let store = super::store()?;
    let dom = find_domain(&store, &args.domain)?;
    eprintln!("Rebooting domain {dom}");
    power::ask(&control, &store, dom, power::Request::Reboot)?;
    Ok(ExitCode::SUCCESS)
}

pub fn console(args: &ConsoleArgs) -> Result<ExitCode> {
    let store = super::store()?;
    let dom = find_domain(&store, &args.domain)?;
    if xlrs::store::name_of(&store, dom)
        .map_err(Error::store("find domain", dom))?
        .is_none()
    {
        return Err(Error::new(
            "find the domain",
            &args.domain,
            "it is an invalid domain identifier",
        )
        .kind(Kind::NoSuchDomain)
        .hint("`xlrs list` shows those that exist"));
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
