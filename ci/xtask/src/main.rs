//! The one door to the project: `cargo xtask lab|demo|test|bench|fuzz`.
//!
//! Invariant: stdout belongs to the command in dom0 or to the result; all else goes to stderr.
//! Invariant: nothing is installed in or written to the host outside the lab folder and target/,
//! save missing host tools when run as root.
#![forbid(unsafe_code)]

mod apt;
mod archive;
mod bench;
mod bench_native;
mod bench_store;
mod builds;
mod channel;
mod cpio;
mod demo;
mod disguise;
mod elf;
mod error;
mod extras;
mod fuzz;
mod host;
mod image;
mod kmod;
mod lab;
mod order;
mod packages;
mod paths;
mod qdisk;
mod qemu;
mod qemu_img;
mod qmp;
mod record;
mod runs;
mod services;
mod snapshot;
mod stock;
mod terminal;
mod test;
mod ui;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use lab_agent::message::Command;

use builds::Profile;
use error::Result;
use lab::{Lab, Origin, Prepared};
use packages::XenVersion;
use services::Part;

/// xlrs: real Xen under QEMU, and everything that runs in it.
#[derive(Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// A dom0 on real Xen: an interactive shell, or one command.
    ///
    /// With CMD: runs it in dom0; its output and exit status are ours. One word goes to `sh -c`,
    /// several are run as they stand. Without CMD: a shell; Ctrl-] leaves.
    ///
    /// In dom0: /lab/bin our programs, /lab/guests our guest images, /lab/debian a Debian kernel and
    /// RAM disk for a PV guest, /lab/tmp scratch shared with the host, /lab/logs logs, /dev/vda an
    /// empty scratch disk of 2 GiB. Packages, images and snapshots lie in $XLRS_LAB_DIR (default:
    /// target/lab); delete the folder to begin anew.
    Lab(LabArgs),
    /// Everything once, step by step with times: Xen boots, dom0, daemons, a guest, its console,
    /// disk, network and shutdown. Ends with a table and status 0, or says which step failed and why.
    Demo(demo::DemoArgs),
    /// Everything that can be tested; closes with `N passed, N failed`.
    ///
    /// Tier 0: cargo test, format, lints, the guest images build. Tier 1: our guest booted by Xen as
    /// dom0. Tier 2: scenarios in dom0, each in a lab of its own, on each Xen release it names. Skips
    /// are named with their reason; with CI=true a skip on real Xen is a failure.
    Test(test::TestArgs),
    /// Measures ours beside the stock parts.
    ///
    /// Prints a table; with --json an array of rows {case, subject, peer, subject_value, peer_value,
    /// unit, better, ratio}, ratio = subject / peer.
    #[command(subcommand)]
    Bench(Bench),
    /// Records which functions of xlrs run when guests are created, so that the linker puts them into one place:
    /// writes toolstack/create.order. Worth it when much of that has changed.
    RecordOrder(record::RecordArgs),
    /// Fuzzes what peers send, with coverage.
    ///
    /// Begins with inputs made from numbers; goes on with what an earlier run has kept in
    /// target/fuzz/corpus. What makes a target fail is put into target/fuzz/found.
    Fuzz(fuzz::FuzzArgs),
}

#[derive(Subcommand)]
enum Bench {
    /// Creating guests: `xlrs create` beside stock `xl create`, in a scripted boot whose clock counts
    /// instructions, so that figures repeat.
    Create(bench::BenchArgs),
    /// Disks: blkback beside the kernel's back end over a loop device and QEMU's qdisk, the same guest on each,
    /// in scripted boots whose clock counts instructions.
    Blk(bench::BenchArgs),
    /// Disks, natively: blkback with a guest in its own process, beside fio with io_uring on the same file.
    BlkNative(bench_native::NativeArgs),
    /// The store: xenstored beside C xenstored and oxenstored of Debian, on this machine without Xen,
    /// daemon and load each on a processor of its own. The peer is the better one in each row.
    Store(bench_store::StoreArgs),
}

#[derive(Args)]
struct LabArgs {
    /// The Xen release.
    #[arg(long, value_enum, default_value = "4.17")]
    xen: XenVersion,
    /// Stock parts that take the place of ours.
    #[arg(long, value_enum, value_delimiter = ',')]
    stock: Vec<Part>,
    /// Start the host daemons first: ours, and the stock ones named by --stock.
    #[arg(long)]
    up: bool,
    /// Keep the run's folder (console, logs, shared files) and say where it is.
    #[arg(long)]
    keep: bool,
    /// Tell what is done, with times, and the packages used.
    #[arg(long, short)]
    verbose: bool,
    /// Memory of the whole machine in MiB; dom0 has 768 of it.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1024..=65536))]
    mem: u32,
    /// Ask Debian's index again for newer packages.
    #[arg(long)]
    refresh: bool,
    /// Xen calls itself 4.99, which nobody knows; what its calls look like stays as it is.
    #[arg(long)]
    unknown_xen: bool,
    /// Do not build our programs and guests: a bare dom0.
    #[arg(long)]
    no_build: bool,
    /// Put this static program into /lab/bin too.
    #[arg(long, value_name = "FILE")]
    put: Vec<PathBuf>,
    /// What to run in dom0.
    #[arg(last = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.verb {
        Verb::Lab(args) => run_lab(args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(Bench::Create(args)) => bench::create(&args),
        Verb::Bench(Bench::Blk(args)) => bench::blk(&args),
        Verb::Bench(Bench::BlkNative(args)) => bench_native::run(&args),
        Verb::Bench(Bench::Store(args)) => bench_store::run(&args),
        Verb::RecordOrder(args) => record::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
    };
    match result {
        Ok(status) => ExitCode::from(status.clamp(0, 255) as u8),
        Err(e) => {
            eprintln!("xtask: {e}");
            // Not a status that commands use, so that "the lab broke" can be told apart.
            ExitCode::from(99)
        }
    }
}

fn run_lab(args: LabArgs) -> Result<i32> {
    ui::init(args.verbose);
    let mut prepared = Prepared::new(
        &[args.xen],
        args.refresh,
        (!args.no_build).then_some(Profile::Checked),
        args.keep,
    )?;
    for file in args.put {
        let name = file.file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        prepared.built.programs.insert(name, file);
    }
    let origin = match args.unknown_xen {
        true => Origin::Disguised,
        false => Origin::Snapshot,
    };
    let lab = Lab::start_from(&prepared, args.xen, args.mem, origin)?;
    let stock: BTreeSet<Part> = args.stock.iter().copied().collect();
    if args.up {
        services::up(&lab, &stock)?;
    }
    let argv = match args.command.as_slice() {
        [] => vec!["bash".into(), "-l".into()],
        [script] => vec!["sh".into(), "-c".into(), script.clone()],
        several => several.to_vec(),
    };
    let command = Command {
        argv,
        env: services::environment(args.xen, &stock),
        ..Command::default()
    };
    terminal::run(&lab, command)
}
