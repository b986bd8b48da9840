//! `cargo xtask test`: everything that can be tested, in three tiers, and one closing line.

mod bare;
mod plain;
mod real;
mod report;

use crate::builds::Profile;
use crate::error::Result;
use crate::lab::Prepared;
use crate::packages::XenVersion;
use crate::ui;

use report::Report;

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub struct TestArgs {
    /// Only these tiers: 0 plain cargo test, 1 our guest on bare Xen, 2 scenarios in dom0.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(0..=2))]
    tier: Vec<u8>,
    /// Only this Xen release (tiers 1 and 2); all by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    xen: Vec<XenVersion>,
    /// Labs at a time; by default one per CPU, at most 2.
    #[arg(long, short)]
    jobs: Option<usize>,
    /// Say what would be run on real Xen, and run nothing.
    #[arg(long)]
    list: bool,
    /// Keep the folders of all runs, not only of those that fail.
    #[arg(long)]
    keep: bool,
    /// Tell what is done, with times.
    #[arg(long, short)]
    verbose: bool,
    /// Seed of the property tests, or `random`. The same for every run by default, so that a run judges the change and
    /// not the day's luck.
    #[arg(long, default_value = "1")]
    seed: Seed,
    /// Only tests and scenarios whose name contains this.
    filter: Option<String>,
}

/// Where the property tests' random numbers come from.
#[derive(Clone, Copy)]
enum Seed {
    Fixed(u64),
    Random,
}

impl std::str::FromStr for Seed {
    type Err = &'static str;

    fn from_str(word: &str) -> std::result::Result<Seed, Self::Err> {
        match word.parse() {
            Ok(seed) => Ok(Seed::Fixed(seed)),
            Err(_) if word == "random" => Ok(Seed::Random),
            Err(_) => Err("neither a number nor the word random"),
        }
    }
}

impl TestArgs {
    fn has_tier(&self, tier: u8) -> bool {
        self.tier.is_empty() || self.tier.contains(&tier)
    }

    fn versions(&self) -> Vec<XenVersion> {
        if self.xen.is_empty() {
            XenVersion::ALL.to_vec()
        } else {
            self.xen.clone()
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.filter.as_deref().is_none_or(|f| name.contains(f))
    }

    fn jobs(&self) -> usize {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
        self.jobs.unwrap_or(cpus.min(2)).max(1)
    }
}

/// Runs the tests; 0 if none failed.
pub fn run(args: &TestArgs) -> Result<i32> {
    ui::init(args.verbose);
    let ci = std::env::var("CI").is_ok_and(|v| v == "true");
    let report = Report::new(ci);
    if args.has_tier(0) && !args.list {
        plain::run(args, &report);
    }
    if args.has_tier(1) || args.has_tier(2) {
        match Prepared::new(&args.versions(), false, Some(Profile::Checked), args.keep) {
            Ok(prepared) => {
                if args.has_tier(1) {
                    bare::run(args, &prepared, &report);
                }
                if args.has_tier(2) {
                    real::run(args, &prepared, &report);
                }
            }
            Err(e) => report.error("getting the lab ready", &e.to_string()),
        }
    }
    Ok(if args.list { 0 } else { report.close() })
}

/// Runs `work` on each item, at most `jobs` at a time, in order of the list.
fn in_parallel<T: Sync>(items: &[T], jobs: usize, work: impl Fn(&T) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) =
                    items.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    work(item);
                }
            });
        }
    });
}
