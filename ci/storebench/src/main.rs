//! Store daemons side by side on one machine without Xen: ours, C xenstored and oxenstored, one after the other, each
//! alone on one processor with the load on another. `cargo xtask bench store` builds and starts this.
//!
//! Invariant: what is started here ends here, and the folders of the daemons go with them.
#![forbid(unsafe_code)]

mod cases;
mod daemon;
mod error;
mod guest;
mod load;
mod plain;
mod rows;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use cases::{CASES, Case, Settings};
use daemon::{Kind, Place};
use error::{Result, fail};
use rows::Samples;

/// What takes so many seconds is told about.
const LONG: f64 = 10.0;

/// Measures store daemons beside each other
#[derive(Parser)]
#[command(name = "storebench", max_term_width = 100)]
struct Options {
    /// Cases or rows by name; all if none is given
    cases: Vec<String>,
    /// Our daemon
    #[arg(long, value_name = "FILE")]
    xenstored: PathBuf,
    /// Where Debian's packages of Xen 4.17 are unpacked
    #[arg(long, value_name = "DIR")]
    stock: PathBuf,
    /// The library that stands for Xen's
    #[arg(long, value_name = "FILE")]
    preload: PathBuf,
    /// Rows as JSON
    #[arg(long)]
    json: bool,
    /// How often each case is run; medians are shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Seconds that each load lasts, after a fifth of it to warm up
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Seconds of random writes before our daemon's memory is looked at, a twelfth of them after the first time
    #[arg(long, default_value_t = 60.0)]
    churn_seconds: f64,
    /// Only these daemons; without ours or without stock ones there are no ratios
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Tell every sample
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("storebench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let cases = chosen(&options.cases)?;
    let place = Place::new(&options.xenstored, &options.stock, &options.preload)?;
    let duration = |seconds: f64| {
        Duration::try_from_secs_f64(seconds)
            .map_err(|_| error::Error(format!("{seconds} is no number of seconds")))
    };
    let load = duration(options.seconds)?;
    let churn = duration(options.churn_seconds)?;
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| options.only.is_empty() || options.only.contains(kind))
        .collect();
    let start = Instant::now();
    let mut samples = Samples::default();
    for case in &cases {
        // Round after round, so that a change of the machine's mood meets all of them.
        for round in 1..=options.runs {
            for kind in &kinds {
                let ours = *kind == Kind::Xlrs;
                if !ours && round > case.stock_runs {
                    continue;
                }
                let whole_churn = ours && round == 1;
                let settings = Settings {
                    load,
                    churn: if whole_churn { churn } else { churn / 12 },
                };
                let at = start.elapsed().as_secs_f64();
                let values = (case.run)(&place, *kind, &settings).map_err(|e| {
                    error::Error(format!("{} with {}: {e}", case.name, kind.name()))
                })?;
                let taken = start.elapsed().as_secs_f64() - at;
                if options.verbose {
                    let rows = case.rows.iter().zip(&values);
                    let said: Vec<String> = rows
                        .map(|(row, value)| format!("{} {value:.2} {}", row.name, row.unit))
                        .collect();
                    let said = said.join(", ");
                    eprintln!("[{at:6.1}] {} {round}: {said}", kind.name());
                } else if taken > LONG {
                    let (name, kind) = (case.name, kind.name());
                    eprintln!("[{at:6.1}] {name} {round}: {kind} took {taken:.0} s");
                }
                samples.add(case, *kind, &values);
            }
            if !options.verbose {
                let at = start.elapsed().as_secs_f64();
                eprintln!("[{at:6.1}] {} {round} of {}", case.name, options.runs);
            }
        }
    }
    if options.json {
        println!("{}", samples.json(&cases)?);
    } else {
        print!("{}", samples.table(&cases, &kinds));
        println!("{}", samples.aims(&cases));
    }
    Ok(())
}

/// The cases that were named, or that have a row so named.
fn chosen(names: &[String]) -> Result<Vec<&'static Case>> {
    let is_meant =
        |case: &Case, name: &str| case.name == name || case.rows.iter().any(|row| row.name == name);
    for name in names {
        if !CASES.iter().any(|case| is_meant(case, name)) {
            let known: Vec<&str> = CASES.iter().map(|case| case.name).collect();
            return fail(format!("no case {name:?}; there are {}", known.join(", ")));
        }
    }
    let all = names.is_empty();
    Ok(CASES
        .iter()
        .filter(|case| all || names.iter().any(|name| is_meant(case, name)))
        .collect())
}
