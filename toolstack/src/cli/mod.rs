//! The command line: what can be said, and who does it.

mod check;
mod host;
mod inspect;
mod lifecycle;
mod store;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xen_dom0::Hypervisor;
use xlrs::{Error, Result};
use xs_client::Connection;

/// Run and manage paravirtual guests on Xen
#[derive(Parser)]
#[command(
    name = "xlrs",
    version,
    infer_subcommands = true,
    max_term_width = 100,
    after_help = "A DOMAIN is a guest's name or number. A command may be shortened as long as it stays unique."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

// Only the command that is called is described to clap in full.
#[derive(Subcommand)]
#[command(defer = true)]
enum Command {
    /// Create a guest from a configuration file
    Create(lifecycle::CreateArgs),
    /// Remove a guest at once, without asking it
    Destroy(lifecycle::DomainArgs),
    /// Ask a guest to shut down
    Shutdown(lifecycle::ShutdownArgs),
    /// Ask a guest to reboot
    Reboot(lifecycle::RebootArgs),
    /// Stop a guest's processors
    Pause(lifecycle::DomainArgs),
    /// Let a paused guest go on
    Unpause(lifecycle::DomainArgs),
    /// List the guests
    #[command(visible_alias = "ls")]
    List(inspect::ListArgs),
    /// Show what the host is
    Info(inspect::InfoArgs),
    /// Show the hypervisor's messages
    Dmesg(inspect::DmesgArgs),
    /// Show the number of the guest with a name
    Domid(inspect::DomidArgs),
    /// Show the name of the guest with a number
    Domname(inspect::DomnameArgs),
    /// Attach to a guest's console; Ctrl-] detaches
    Console(lifecycle::ConsoleArgs),
    /// Look into the store, or change it
    Store(store::StoreArgs),
    /// Start, stop or show the daemons of this host
    Host(host::HostArgs),
    /// Run the console daemon
    #[command(hide = true)]
    ServeConsole(host::ConsoleDaemonArgs),
    /// Run the supervisor
    #[command(hide = true)]
    Supervise(host::SuperviseArgs),
    /// Check a configuration file and show what it means; needs no Xen
    Check(check::CheckArgs),
}

impl Cli {
    /// Reads the command line; ends the process after help and after mistakes.
    pub fn read() -> Cli {
        match Cli::read_create() {
            Some(args) => Cli {
                command: Command::Create(args),
            },
            None => Cli::parse(),
        }
    }

    /// The arguments of a plain `create`. To describe them to clap takes longer than to read them; whatever
    /// is unusual goes the long way, which also has the words for mistakes.
    fn read_create() -> Option<lifecycle::CreateArgs> {
        let mut words = std::env::args_os().skip(1);
        if words.next()? != "create" {
            return None;
        }
        let words: Option<Vec<String>> = words.map(|word| word.into_string().ok()).collect();
        lifecycle::CreateArgs::plain(words?)
    }
}

/// Does what the command line says.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Create(args) => lifecycle::create(args),
        Command::Destroy(args) => lifecycle::destroy(&args),
        Command::Shutdown(args) => lifecycle::shutdown(&args),
        Command::Reboot(args) => lifecycle::reboot(&args),
        Command::Pause(args) => lifecycle::pause(&args),
        Command::Unpause(args) => lifecycle::unpause(&args),
        Command::List(args) => inspect::list(&args),
        Command::Info(args) => inspect::info(&args),
        Command::Dmesg(args) => inspect::dmesg(&args),
        Command::Domid(args) => inspect::domid(&args),
        Command::Domname(args) => inspect::domname(&args),
        Command::Console(args) => lifecycle::console(&args),
        Command::Store(args) => store::store(args),
        Command::Host(args) => host::host(args),
        Command::ServeConsole(args) => Ok(host::console_daemon(args)),
        Command::Supervise(args) => Ok(host::supervise(args)),
        Command::Check(args) => check::check(&args),
    }
}

/// The hypervisor, or what is in the way of reaching it.
fn hypervisor() -> Result<Hypervisor> {
    Hypervisor::open().map_err(|error| {
        // Only now that it has failed is it worth to find out why.
        match xen_dom0::preflight() {
            Err(reason) => Error::new("reach Xen", "", reason),
            Ok(()) => Error::hal("reach Xen", "")(error),
        }
    })
}

/// The store daemon, or what is in the way of reaching it.
fn store() -> Result<Connection> {
    Connection::from_env().map_err(|error| match xen_dom0::preflight() {
        Err(reason) => Error::new("reach Xen", "", reason),
        Ok(()) => Error::new("reach the store daemon", "", error),
    })
}
