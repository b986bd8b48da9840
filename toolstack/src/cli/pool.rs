//! `xlrs pool`: shells that make creating guests faster.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use xlrs::{Result, pool};

use super::check;
use super::common::print_json;
use crate::cli::ExitCode;

#[derive(Args)]
pub struct PoolArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Keep shells for guests like that of a configuration file: built, but without name, command line,
    /// disks and cards, which `create` adds. What must agree is kernel, ramdisk, memory, vCPUs and limits;
    /// a guest with uuid= gets none
    Keep(KeepArgs),
    /// Show what shells there are
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Keep no more shells for guests like that of this name, and remove those there are
    Drop(DropArgs),
    /// Make at once what is missing, which the supervisor does by itself
    Fill,
}

#[derive(Args)]
struct KeepArgs {
    /// The configuration file
    file: PathBuf,
    /// How many shells
    #[arg(short = 'n', long, default_value_t = 4)]
    count: usize,
}

#[derive(Args)]
struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct DropArgs {
    /// The name in the configuration, or the configuration file
    name: String,
}

pub fn pool(args: &PoolArgs) -> Result<ExitCode> {
    match &args.verb {
        Verb::Keep(args) => pool::wish(check::read(Some(&args.file), &[])?, args.count)?,
        Verb::List(args) => return list(args),
        Verb::Drop(args) => drop_wish(&args.name)?,
        Verb::Fill => {}
    }
    let (control, store) = (super::hypervisor()?, super::store()?);
    pool::fill(&control, &store)?;
    Ok(ExitCode::SUCCESS)
}

fn drop_wish(name: &str) -> Result<()> {
    let wishes = pool::wishes();
    let config = match wishes.get(name) {
        Some(wish) => wish.config.clone(),
        None => check::read(Some(Path::new(name)), &[])?,
    };
    pool::wish(config, 0)
}

fn list(args: &ListArgs) -> Result<ExitCode> {
    let (counts, others) = pool::counts();
    if args.json {
        let rows = counts.iter().map(|(wish, there)| {
            json!({"name": wish.config.name, "kernel": wish.config.kernel,
                "memory_kib": wish.config.memory_kib, "wanted": wish.count, "ready": there})
        });
        print_json(&rows.collect())?;
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{:<24} {:>6} {:>6} {:>8}  kernel",
        "like", "ready", "wanted", "MiB each"
    );
    for (wish, there) in counts {
        let config = wish.config;
        println!(
            "{:<24} {there:>6} {:>6} {:>8}  {}",
            config.name,
            wish.count,
            config.memory_kib / 1024,
            config.kernel.display()
        );
    }
    if others > 0 {
        println!("{others} more are for nothing that is wished for now, and will be removed");
    }
    Ok(ExitCode::SUCCESS)
}
