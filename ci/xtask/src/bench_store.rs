//! `cargo xtask bench store`: builds what it takes and hands over to storebench, which measures on this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::builds::{self, Profile};
use crate::error::{Context, Error, Result, fail};
use crate::packages::{self, XenVersion};
use crate::paths::{self, Key};
use crate::ui;

/// Options of `cargo xtask bench store`.
#[derive(clap::Args)]
pub struct StoreArgs {
    /// Cases or rows by name (a wrong one lists them); all if none is given.
    cases: Vec<String>,
    /// Rows as JSON on stdout.
    #[arg(long)]
    json: bool,
    /// How often each case is run; medians are shown.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Seconds that each load lasts.
    #[arg(long, default_value = "0.5")]
    seconds: String,
    /// Seconds of random writes before our daemon's memory is looked at, a twelfth of them after the first time.
    #[arg(long, default_value = "60")]
    churn_seconds: String,
    /// Only these daemons: xlrs, c, oxenstored.
    #[arg(long)]
    only: Option<String>,
    /// Measure this daemon in the place of ours.
    #[arg(long, value_name = "FILE")]
    xenstored: Option<PathBuf>,
    /// Tell what is done, with times, and each sample.
    #[arg(long, short)]
    verbose: bool,
}

/// Stands for Xen's libraries below the stock daemons.
const PRELOAD: &str = include_str!("../../storebench/preload.c");

/// Builds, fetches, measures.
pub fn run(args: &StoreArgs) -> Result<i32> {
    ui::init(args.verbose);
    let lab = paths::lab_dir()?;
    let stock = packages::xen(&lab, XenVersion::V4_17, false)?;
    let built = builds::programs(&["xenstored", "storebench"], Profile::Release)?;
    let program = |name: &str| {
        let file = built.programs.get(name);
        file.ok_or_else(|| Error(format!("the workspace has no program {name}")))
    };
    let ours = match &args.xenstored {
        Some(file) => file,
        None => program("xenstored")?,
    };
    let mut command = Command::new(program("storebench")?);
    command.args([Path::new("--xenstored"), ours]);
    command.args([Path::new("--stock"), &stock.root]);
    command.args([Path::new("--preload"), &preload(&lab)?]);
    command.arg(format!("--runs={}", args.runs));
    command.arg(format!("--seconds={}", args.seconds));
    command.arg(format!("--churn-seconds={}", args.churn_seconds));
    command.args(args.only.iter().map(|only| format!("--only={only}")));
    for (given, option) in [(args.json, "--json"), (args.verbose, "--verbose")] {
        command.args(given.then_some(option));
    }
    let status = command
        .arg("--")
        .args(&args.cases)
        .status()
        .context(|| "running storebench".into())?;
    Ok(status.code().unwrap_or(99))
}

/// Compiles the library, once for each text of it.
fn preload(lab: &Path) -> Result<PathBuf> {
    let dir = lab.join("preload");
    paths::make_dir(&dir)?;
    let file = dir.join(format!("{}.so", Key::default().add(PRELOAD).hex()));
    if file.exists() {
        return Ok(file);
    }
    let source = file.with_extension("c");
    paths::write_atomically(&source, PRELOAD.as_bytes())?;
    let unfinished = file.with_extension(format!("new{}", std::process::id()));
    // No stack protector and no checked variants: their symbols may be younger than the stock libc.
    let flags = ["-O2", "-shared", "-fPIC", "-fno-stack-protector"];
    let out = Command::new("cc")
        .args(flags)
        .args(["-U_FORTIFY_SOURCE", "-o"])
        .args([&unfinished, &source])
        .output()
        .context(|| "running cc (is gcc installed?)".into())?;
    if !out.status.success() {
        let words = String::from_utf8_lossy(&out.stderr);
        return fail(format!("cc failed:\n{}", ui::tail(&words, 20)));
    }
    std::fs::rename(&unfinished, &file).context(|| format!("naming {}", file.display()))?;
    Ok(file)
}
