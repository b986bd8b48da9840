//! The command line: what can be said, and who does it.

mod check;
mod common;
mod complete;
mod cpus;
mod devices;
mod docs;
mod groups;
mod guests;
mod host;
mod lifecycle;
mod list;
mod look;
mod manage;
mod memory;
mod pool;
mod pools;
mod sched;
mod store;
mod top;
mod unknown;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use xen_dom0::Hypervisor;
use xlrs::{Error, Kind, Result};
use xs_client::Connection;

/// What the process ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode(pub u8);

impl ExitCode {
    pub const SUCCESS: ExitCode = ExitCode(0);
    pub const FAILURE: ExitCode = ExitCode(1);
}

impl From<u8> for ExitCode {
    fn from(code: u8) -> ExitCode {
        ExitCode(code)
    }
}

impl From<std::process::ExitCode> for ExitCode {
    fn from(code: std::process::ExitCode) -> ExitCode {
        match code == std::process::ExitCode::SUCCESS {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }
}

/// What stands behind the long help, and in the manual page.
const AFTER: &str = "\
A DOMAIN is a guest's name or number. A command may be shortened as long as it stays unique.

First steps:
  xlrs host start                       start the daemons that this host lacks
  xlrs run KERNEL --net xenbr0 -c       a guest without a configuration file, with its console
  xlrs check web.cfg                    what a file means, and what is wrong with it; needs no Xen
  xlrs create web.cfg memory=256        a guest from a file, one setting changed
  xlrs shutdown -w web                  ask it to end, and wait

Scripts written for xl work if xl is a link to this program in a folder that comes first in their PATH:
  ln -s $(command -v xlrs) /usr/local/sbin/xl

Exit status:
  0 done; 2 the command line is wrong; 1 everything else. Where guests are made, the status
  tells more, as xl's does: 3 failed, 5 no memory, 6 a wrong value, 8 a guest or 9 a daemon is
  late, 10 no PV here, 17 it is there already, 21 a guest has gone, 22 interrupted.

Files:
  /etc/xlrs/auto/*.cfg                  guests that the supervisor starts after a boot
  /var/lib/xen/userdata-d.*             what is known of running guests, by xl too
  /var/lib/xen/dump                     dumps of guests that on_crash=coredump-* makes
  /var/log/xlrs, /var/log/xen/console   logs of the daemons, and of the guests' consoles";

/// Run and manage paravirtual guests on Xen
#[derive(Parser)]
#[command(
    name = "xlrs",
    version,
    infer_subcommands = true,
    max_term_width = 100,
    after_long_help = AFTER,
    after_help = "A DOMAIN is a guest's name or number. A command may be shortened as long as it stays unique."
)]
pub struct Cli {
    /// Show what a command that makes or attaches something would do, and stop there
    #[arg(short = 'N')]
    dry_run: bool,
    /// Accepted for scripts written for xl
    #[arg(short = 'v', hide = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Accepted for scripts written for xl
    #[arg(short = 'f', hide = true)]
    force: bool,
    /// Accepted for scripts written for xl
    #[arg(short = 't', hide = true)]
    progress: bool,
    /// Accepted for scripts written for xl
    #[arg(short = 'T', hide = true)]
    timestamps: bool,
    #[command(subcommand)]
    command: Command,
}

// Only the command that is called is described to clap in full.
#[derive(Subcommand)]
#[command(defer = true)]
enum Command {
    /// Create a guest from a configuration file
    Create(lifecycle::CreateArgs),
    /// Create a guest from a kernel, without a configuration file
    Run(lifecycle::RunArgs),
    /// Change what a guest is when it is created again after a reboot
    ConfigUpdate(guests::UpdateArgs),
    /// Remove a guest at once, without asking it
    Destroy(lifecycle::DestroyArgs),
    /// Ask a guest to shut down
    Shutdown(lifecycle::ShutdownArgs),
    /// Ask a guest to reboot
    Reboot(lifecycle::RebootArgs),
    /// Stop a guest's processors
    Pause(common::DomainArgs),
    /// Let a paused guest go on
    Unpause(common::DomainArgs),
    /// Give a guest another name
    Rename(guests::RenameArgs),
    /// Send a letter to a guest's kernel, as with the SysRq key
    Sysrq(guests::SysrqArgs),
    /// Send a guest a signal that hardware would
    Trigger(guests::TriggerArgs),
    /// Write a guest's memory and registers to a file
    DumpCore(guests::DumpArgs),
    /// List the guests
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// List the guests' UUIDs
    VmList(list::JsonArgs),
    /// Show how long the guests have been up
    Uptime(list::UptimeArgs),
    /// Show the number of the guest with a name
    Domid(list::DomidArgs),
    /// Show the name of the guest with a number
    Domname(list::DomnameArgs),
    /// Attach to a guest's console; Ctrl-] detaches
    Console(lifecycle::ConsoleArgs),
    /// List the guests' vCPUs
    VcpuList(common::DomainsArgs),
    /// Set which CPUs a vCPU may run on
    VcpuPin(cpus::PinArgs),
    /// Set how many of a guest's vCPUs are up
    VcpuSet(cpus::SetArgs),
    /// Set how much memory a guest has
    MemSet(memory::MemoryArgs),
    /// Set how much memory a guest may have at most
    MemMax(memory::MemoryArgs),
    /// List memory that is reserved for guests but not theirs yet
    Claims(list::JsonArgs),
    /// Show or change the guests' shares under the scheduler credit
    SchedCredit(sched::CreditArgs),
    /// Show or change the guests' shares under the scheduler credit2, the default
    SchedCredit2(sched::Credit2Args),
    /// Show or change the guests' shares under the scheduler RTDS
    SchedRtds(sched::RtdsArgs),
    /// Give a running guest another disk
    BlockAttach(devices::BlockAttachArgs),
    /// List the guests' disks
    BlockList(devices::BlockListArgs),
    /// Take a disk from a running guest
    BlockDetach(devices::BlockDetachArgs),
    /// Make a running guest's disk larger, or have its new size seen
    BlockResize(devices::BlockResizeArgs),
    /// Keep a running guest's disk as it is; the guest goes on in a new file
    BlockSnapshot(devices::BlockSnapshotArgs),
    /// Give a running guest another network card
    NetworkAttach(devices::NetworkAttachArgs),
    /// List the guests' network cards
    NetworkList(devices::ListArgs),
    /// Take a network card from a running guest
    NetworkDetach(devices::NetworkDetachArgs),
    /// List the guests' channels
    ChannelList(devices::ListArgs),
    /// Make a cpupool
    CpupoolCreate(pools::CreateArgs),
    /// List the cpupools
    CpupoolList(pools::ListArgs),
    /// Remove a cpupool
    CpupoolDestroy(pools::PoolArgs),
    /// Give a cpupool another name
    CpupoolRename(pools::RenameArgs),
    /// Put CPUs into a cpupool
    CpupoolCpuAdd(pools::CpuArgs),
    /// Take CPUs out of a cpupool
    CpupoolCpuRemove(pools::CpuArgs),
    /// Move a guest into a cpupool
    CpupoolMigrate(pools::MigrateArgs),
    /// Make one cpupool for each NUMA node
    CpupoolNumaSplit,
    /// Show what the host is
    Info(manage::InfoArgs),
    /// Show the hypervisor's messages
    Dmesg(manage::DmesgArgs),
    /// Show what the guests use, again and again
    Top(top::TopArgs),
    /// Press keys on the hypervisor's console
    DebugKeys(manage::KeysArgs),
    /// Change settings of the hypervisor while it runs
    SetParameters(manage::ParametersArgs),
    /// Look into the store, or change it
    Store(store::StoreArgs),
    /// Start, stop or show the daemons of this host
    Host(host::HostArgs),
    /// Check a configuration file and show what it means; needs no Xen
    Check(check::CheckArgs),
    /// Write shell completions or manual pages
    Docs(docs::DocsArgs),
    /// Keep shells ready that make creating guests faster
    Pool(pool::PoolArgs),
    /// Run the console daemon
    #[command(hide = true)]
    ServeConsole(host::ConsoleDaemonArgs),
    /// Run the supervisor
    #[command(hide = true)]
    Supervise(host::SuperviseArgs),
    /// Serve devices in a driver domain; not there yet
    #[command(hide = true)]
    Devd(manage::AnyArgs),
    /// Save a guest to a file; not there yet
    #[command(hide = true)]
    Save(manage::AnyArgs),
    /// Restore a guest from a file; not there yet
    #[command(hide = true)]
    Restore(manage::AnyArgs),
    /// Move a guest to another host; not there yet
    #[command(hide = true)]
    Migrate(manage::AnyArgs),
    /// The other end of `migrate`; not there yet
    #[command(hide = true)]
    MigrateReceive(manage::AnyArgs),
    /// Suspend a guest to memory; not there yet
    #[command(hide = true)]
    Suspend(manage::AnyArgs),
    /// Let a suspended guest go on; not there yet
    #[command(hide = true)]
    Resume(manage::AnyArgs),
}

/// Commands of xl for what there is not here, and why.
const NOT_HERE: [(&str, &str); 12] = [
    ("pci-", "passing PCI devices through is not supported"),
    ("usb", "passing USB devices through is not supported"),
    ("vtpm-", "virtual TPMs are not supported"),
    ("vkb-", "virtual keyboards are not supported"),
    ("vdispl-", "virtual displays are not supported"),
    ("vsnd-", "virtual sound cards are not supported"),
    ("psr-", "platform shared resources are not supported"),
    ("cd-", "a PV guest has no CD drive"),
    ("button-press", "a PV guest has no buttons"),
    ("vncviewer", "a PV guest has no screen"),
    ("sharing", "a PV guest's memory is not shared"),
    ("remus", "remus is not supported"),
];

/// What people are used to from other programs, and what does it here.
const HABITS: [(&[&str], &str); 8] = [
    (
        &["start", "boot"],
        "`xlrs create FILE` starts a guest, `xlrs host start` the daemons",
    ),
    (
        &["stop", "halt", "poweroff", "down"],
        "`xlrs shutdown -w DOMAIN` ends a guest in order, `xlrs host stop` the daemons",
    ),
    (
        &["kill", "delete", "remove", "rm"],
        "`xlrs destroy DOMAIN` removes a guest at once",
    ),
    (&["ps", "show"], "`xlrs list` shows the guests"),
    (
        &["status"],
        "`xlrs list` shows the guests, `xlrs host status` the daemons",
    ),
    (
        &["attach", "exec", "enter", "ssh"],
        "`xlrs console DOMAIN` attaches to a guest's console",
    ),
    (
        &["log", "logs"],
        "what guests have said is in /var/log/xen/console, the daemons' logs are in /var/log/xlrs",
    ),
    (
        &["validate"],
        "`xlrs check FILE` tells what a file means, `xlrs list -l DOMAIN` what a guest has",
    ),
];

impl Cli {
    /// Reads the command line; ends the process after help and after mistakes.
    pub fn read() -> Cli {
        if let Some(args) = Cli::read_create() {
            return Cli {
                dry_run: false,
                verbose: 0,
                force: false,
                progress: false,
                timestamps: false,
                command: Command::Create(args),
            };
        }
        let matches = groups::grouped(Cli::command()).try_get_matches();
        let parsed = matches.and_then(|matches| Cli::from_arg_matches(&matches));
        parsed.unwrap_or_else(|error| {
            let word = error.get(clap::error::ContextKind::InvalidSubcommand);
            let word = word.map(ToString::to_string);
            if let Some((_, why)) = word.as_ref().and_then(|word| {
                let known = |(prefix, _): &&(&str, &str)| word.starts_with(prefix);
                NOT_HERE.iter().find(known)
            }) {
                eprintln!("xlrs: {}: {why}", word.clone().unwrap_or_default());
                std::process::exit(1);
            }
            // Not everybody who reads help reads all of it.
            let _ = error.print();
            let word = word.unwrap_or_default();
            if let Some((_, help)) = HABITS.iter().find(|(words, _)| words.contains(&&*word)) {
                eprintln!("  help: {help}");
            }
            std::process::exit(match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
                // As xl.
                ErrorKind::InvalidSubcommand
                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                | ErrorKind::MissingSubcommand => 1,
                ErrorKind::MissingRequiredArgument if lacks_what_xl_looks_for() => 1,
                _ => 2,
            })
        })
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

    /// The exit status that scripts written for xl expect after a failure of each kind of this command: only
    /// what makes guests tells the kind.
    pub fn exit_status(&self) -> fn(Kind) -> u8 {
        match self.command {
            Command::Create(_) | Command::Run(_) => Kind::exit_status,
            Command::CpupoolCreate(_) => |_| 1,
            _ => |kind| match kind {
                Kind::Usage => kind.exit_status(),
                _ => 1,
            },
        }
    }
}

/// Whether it is one of the commands that look for their words themselves in xl: without any they end with 1, all
/// others with 2.
fn lacks_what_xl_looks_for() -> bool {
    const THEY: [&str; 3] = ["shutdown", "reboot", "config-update"];
    let mut words = std::env::args().skip(1);
    let command = words.find(|word| !word.starts_with('-'));
    command.is_some_and(|command| THEY.iter().any(|they| they.starts_with(&command)))
}

/// All that clap knows of the command line.
fn description() -> clap::Command {
    Cli::command()
}

/// Does what the command line says.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let dry_run = cli.dry_run;
    match cli.command {
        Command::Create(mut args) => {
            args.dry_run |= dry_run;
            lifecycle::create(&args)
        }
        Command::Run(mut args) => {
            args.dry_run |= dry_run;
            lifecycle::run(&args)
        }
        Command::ConfigUpdate(mut args) => {
            args.dry_run = dry_run;
            guests::config_update(&args)
        }
        Command::Destroy(args) => lifecycle::destroy(&args),
        Command::Shutdown(args) => lifecycle::shutdown(&args),
        Command::Reboot(args) => lifecycle::reboot(&args),
        Command::Pause(args) => lifecycle::pause(&args),
        Command::Unpause(args) => lifecycle::unpause(&args),
        Command::Rename(args) => guests::rename(&args),
        Command::Sysrq(args) => guests::sysrq(&args),
        Command::Trigger(args) => guests::trigger(&args),
        Command::DumpCore(args) => guests::dump_core(&args),
        Command::List(args) => list::list(&args),
        Command::VmList(args) => list::vm_list(&args),
        Command::Uptime(args) => list::uptime(&args),
        Command::Domid(args) => list::domid(&args),
        Command::Domname(args) => list::domname(&args),
        Command::Console(args) => lifecycle::console(&args),
        Command::VcpuList(args) => cpus::list(&args),
        Command::VcpuPin(mut args) => {
            args.dry_run = dry_run;
            cpus::pin(&args)
        }
        Command::VcpuSet(args) => cpus::set(&args),
        Command::MemSet(args) => memory::set(&args),
        Command::MemMax(args) => memory::max(&args),
        Command::Claims(args) => list::claims(&args),
        Command::SchedCredit(args) => sched::credit(&args),
        Command::SchedCredit2(args) => sched::credit2(&args),
        Command::SchedRtds(args) => sched::rtds(&args),
        Command::BlockAttach(mut args) => {
            args.dry_run = dry_run;
            devices::block_attach(&args)
        }
        Command::BlockList(args) => devices::block_list(&args),
        Command::BlockDetach(args) => devices::block_detach(&args),
        Command::BlockResize(args) => devices::block_resize(&args),
        Command::BlockSnapshot(args) => devices::block_snapshot(&args),
        Command::NetworkAttach(mut args) => {
            args.dry_run = dry_run;
            devices::network_attach(&args)
        }
        Command::NetworkList(args) => devices::network_list(&args),
        Command::NetworkDetach(args) => devices::network_detach(&args),
        Command::ChannelList(args) => devices::channel_list(&args),
        Command::CpupoolCreate(mut args) => {
            args.dry_run |= dry_run;
            pools::create(&args)
        }
        Command::CpupoolList(args) => pools::list(&args),
        Command::CpupoolDestroy(args) => pools::destroy(&args),
        Command::CpupoolRename(args) => pools::rename(&args),
        Command::CpupoolCpuAdd(args) => pools::cpu_add(&args),
        Command::CpupoolCpuRemove(args) => pools::cpu_remove(&args),
        Command::CpupoolMigrate(args) => pools::migrate(&args),
        Command::CpupoolNumaSplit => pools::numa_split(),
        Command::Info(args) => manage::info(&args),
        Command::Dmesg(args) => manage::dmesg(&args),
        Command::Top(args) => top::top(&args),
        Command::DebugKeys(args) => manage::debug_keys(&args),
        Command::SetParameters(args) => manage::set_parameters(&args),
        Command::Store(args) => store::store(args),
        Command::Host(args) => host::host(&args),
        Command::Pool(args) => pool::pool(&args),
        Command::Check(args) => check::check(&args),
        Command::Docs(args) => docs::docs(&args),
        Command::ServeConsole(args) => Ok(host::console_daemon(&args)),
        Command::Supervise(args) => Ok(host::supervise(&args)),
        Command::Devd(_) => manage::not_yet(
            "serve devices in a driver domain",
            "in dom0 `xlrs host start` starts the back ends",
        ),
        Command::Save(_) | Command::Suspend(_) => {
            manage::not_yet("save guests", "`xlrs shutdown` ends one in order")
        }
        Command::Restore(_) | Command::Resume(_) => {
            manage::not_yet("restore guests", "`xlrs create` starts one anew")
        }
        Command::Migrate(_) | Command::MigrateReceive(_) => {
            manage::not_yet("migrate guests", "shut it down here and create it there")
        }
    }
}

/// Ends the process after a success: what is open or mapped goes with it, for less than one by one.
fn leave() -> ! {
    xlrs::times::print();
    xlrs::os::leave(0)
}

/// The hypervisor, or what is in the way of reaching it.
fn hypervisor() -> Result<Hypervisor> {
    Hypervisor::open().map_err(unreachable)
}

fn unreachable(error: xen_hal::Error) -> Error {
    // Only now that it has failed is it worth to find out why.
    match xen_dom0::preflight() {
        Err(reason) => Error::new("reach Xen", "", reason),
        Ok(()) => Error::hal("reach Xen", "")(error),
    }
    .kind(Kind::Unreachable)
}

/// The hypervisor; nothing, with a word about it, if it is of a release whose control interface is not known: what
/// only shows something goes on without it.
fn hypervisor_if_known() -> Result<Option<Hypervisor>> {
    match Hypervisor::open() {
        Ok(hypervisor) => Ok(Some(hypervisor)),
        Err(error @ xen_hal::Error::UnknownVersion { .. }) => {
            unknown::explain(&error);
            Ok(None)
        }
        Err(error) => Err(unreachable(error)),
    }
}

/// The store daemon, or what is in the way of reaching it.
fn store() -> Result<Connection> {
    // Who names a store need not run on Xen.
    let is_named = std::env::var_os(xs_client::PATH_VARIABLE).is_some();
    Connection::from_env().map_err(|error| {
        match xen_dom0::preflight() {
            Err(reason) if !is_named => Error::new("reach Xen", "", reason),
            _ => Error::new("reach the store daemon", "", error),
        }
        .kind(Kind::Unreachable)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands that print nothing but what went wrong, or text that is none of ours.
    const WITHOUT_JSON: &[&str] = &[
        "create",
        "run",
        "config-update",
        "destroy",
        "shutdown",
        "reboot",
        "pause",
        "unpause",
        "rename",
        "sysrq",
        "trigger",
        "dump-core",
        "console",
        "vcpu-pin",
        "vcpu-set",
        "mem-set",
        "mem-max",
        "block-attach",
        "block-detach",
        "block-resize",
        "network-attach",
        "network-detach",
        "cpupool-create",
        "cpupool-destroy",
        "cpupool-rename",
        "cpupool-cpu-add",
        "cpupool-cpu-remove",
        "cpupool-migrate",
        "cpupool-numa-split",
        "dmesg",
        "debug-keys",
        "set-parameters",
        "docs",
        "store",
        "host",
        "pool",
        "help",
    ];

    #[test]
    fn what_prints_data_prints_json() {
        let mut command = description();
        command.build();
        let mut with = 0;
        for below in command.get_subcommands().filter(|c| !c.is_hide_set()) {
            let json = below
                .get_arguments()
                .any(|arg| arg.get_long() == Some("json"));
            let name = below.get_name();
            assert!(
                json != WITHOUT_JSON.contains(&name),
                "{name}: --json is {json}"
            );
            with += usize::from(json);
        }
        assert!(with > 15, "only {with} commands have --json");
    }

    /// Only where guests are made does the status tell what kind of failure it was.
    #[test]
    fn a_guest_that_is_not_there_is_told_by_the_status() {
        for (words, missing, late) in [
            ("pause web", 1, 1),
            ("unpause web", 1, 1),
            ("destroy web", 1, 1),
            ("shutdown -w web", 1, 1),
            ("reboot web", 1, 1),
            ("list web", 1, 1),
            ("block-attach web /dev/null,raw,xvda,r", 1, 1),
            ("host start", 1, 1),
            ("store ls", 1, 1),
            ("create web.cfg", 21, 9),
            ("run kernel", 21, 9),
        ] {
            let words = std::iter::once("xlrs").chain(words.split(' '));
            let cli = Cli::try_parse_from(words.clone()).unwrap();
            let status = cli.exit_status();
            let words: Vec<_> = words.collect();
            assert_eq!(status(Kind::NoSuchDomain), missing, "{words:?}");
            assert_eq!(status(Kind::TimedOut), late, "{words:?}");
            assert_eq!(status(Kind::Unreachable), 1, "{words:?}");
            assert_eq!(status(Kind::Usage), 2, "{words:?}");
        }
    }

    #[test]
    fn every_command_and_argument_is_explained() {
        fn look(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let about = command
                .get_about()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(about.len() > 5, "{path} has no help");
            let mut names = std::collections::BTreeSet::new();
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.len() > 5, "{path}: {} has no help", arg.get_id());
                assert!(names.insert(arg.get_id().to_string()));
            }
            for below in command.get_subcommands().filter(|c| !c.is_hide_set()) {
                assert!(
                    below.get_name() == "help" || below.get_about() != command.get_about(),
                    "{path} and {} are explained alike",
                    below.get_name()
                );
                if below.get_name() != "help" {
                    look(below, &path);
                }
            }
        }
        let mut command = description();
        command.build();
        look(&command, "");
        let shown = command.get_subcommands().filter(|c| !c.is_hide_set());
        let abouts: Vec<_> = shown
            .map(|c| c.get_about().map(ToString::to_string))
            .collect();
        let unique: std::collections::BTreeSet<_> = abouts.iter().collect();
        assert_eq!(
            abouts.len(),
            unique.len(),
            "two commands are explained alike"
        );
    }
}
