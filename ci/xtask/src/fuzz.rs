//! `cargo xtask fuzz`: builds a fuzz target with coverage, on a stable compiler, and runs it for a while.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Result, fail};
use crate::paths;
use crate::ui;

/// Folders of fuzz workspaces, with their targets.
const WORKSPACES: &[(&str, &[&str])] = &[
    ("xenstore/fuzz", &["socket", "ring", "update", "state"]),
    ("blkback/fuzz", &["disk-ring", "qcow2", "vhd", "vmdk"]),
];

/// What libFuzzer needs of the compiler: counters of edges, what is compared, and where. cargo-fuzz asks for the same, and for a
/// nightly compiler because of the address sanitizer, which the safe code that is fuzzed here has little use for.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct FuzzArgs {
    /// What is fuzzed; all, one after the other, if none is given.
    targets: Vec<String>,
    /// How long each is.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Run this input once instead, such as one that was found.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Tell what is done, with times.
    #[arg(long, short)]
    verbose: bool,
}

/// Builds and runs; each target writes its own seeds. The status is the first target's that fails.
pub fn run(args: &FuzzArgs) -> Result<i32> {
    ui::init(args.verbose);
    let mut chosen: Vec<(&str, &str)> = Vec::new();
    for (folder, names) in WORKSPACES {
        let wanted =
            |name: &&&str| args.targets.is_empty() || args.targets.iter().any(|t| t == **name);
        chosen.extend(names.iter().filter(wanted).map(|name| (*folder, *name)));
    }
    for target in &args.targets {
        if !chosen.iter().any(|(_, name)| name == target) {
            let all: Vec<&str> = WORKSPACES
                .iter()
                .flat_map(|(_, names)| *names)
                .copied()
                .collect();
            return fail(format!(
                "no fuzz target {target}; there are {}",
                all.join(", ")
            ));
        }
    }
    if args.input.is_some() && chosen.len() != 1 {
        return fail("--input needs one target");
    }
    for (folder, name) in chosen {
        let programs = build(folder)?;
        let corpus = paths::workspace().join("target/fuzz/corpus").join(name);
        paths::make_dir(&corpus)?;
        let status = fuzz(&programs, name, &corpus, args)?;
        if status != 0 {
            return Ok(status);
        }
    }
    Ok(0)
}

/// Builds a folder's targets; returns where they lie.
fn build(folder: &str) -> Result<PathBuf> {
    let target_dir = paths::workspace().join("target/fuzz");
    let status = ui::slow("building the fuzz targets", || {
        Command::new("cargo")
            .args(["build", "--release", "--target", TARGET, "--target-dir"])
            .arg(&target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f"))
            .current_dir(paths::workspace().join(folder))
            .status()
            .context(|| "running cargo".into())
    })?;
    if !status.success() {
        return fail(
            "the fuzz targets cannot be built (they need a C++ compiler: apt install g++)",
        );
    }
    Ok(target_dir.join(TARGET).join("release"))
}

fn fuzz(programs: &Path, name: &str, corpus: &Path, args: &FuzzArgs) -> Result<i32> {
    let found = paths::workspace().join("target/fuzz/found");
    paths::make_dir(&found)?;
    let mut command = Command::new(programs.join(name));
    match &args.input {
        Some(input) => command.arg(input),
        None => command
            .env("FUZZ_SEEDS", corpus)
            .arg(corpus)
            .arg(format!("-max_total_time={}", args.seconds))
            // What is found lies there, by the target's name.
            .arg(format!("-artifact_prefix={}/{name}-", found.display()))
            .args(["-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1"]),
    };
    let status = command.status().context(|| format!("running {name}"))?;
    if !status.success() {
        eprintln!(
            "{name}: {status}; what it was given lies in {}",
            found.display()
        );
        eprintln!("again: cargo xtask fuzz {name} --input FILE");
    }
    Ok(status.code().unwrap_or(99))
}
