//! `cargo xtask record-order`: which functions of `xlrs` run when guests are created, for `toolstack/create.order`.

use std::collections::BTreeSet;

use crate::bench::{Boot, measure};
use crate::builds::Profile;
use crate::error::{Result, fail};
use crate::lab::Prepared;
use crate::packages::XenVersion;
use crate::paths;
use crate::ui;

/// The recording, below the workspace.
pub const FILE: &str = "toolstack/create.order";

/// Options of `cargo xtask record-order`.
#[derive(clap::Args)]
pub struct RecordArgs {
    /// Keep the run's folder.
    #[arg(long)]
    keep: bool,
    /// Tell what is done, with times.
    #[arg(long, short)]
    verbose: bool,
}

/// Creates guests with and without devices, on our daemons and on the stock ones, and writes which functions ran, in the
/// order in which they were first called.
pub fn run(args: &RecordArgs) -> Result<i32> {
    ui::init(args.verbose);
    let xen = XenVersion::V4_17;
    let prepared = Prepared::new(&[xen], false, Some(Profile::Release), args.keep)?;
    let common = concat!(
        include_str!("../bench/common"),
        include_str!("../bench/order-common")
    );
    let mut recorded = String::new();
    let mut seen = BTreeSet::new();
    for (name, script) in [
        (
            "recording with our daemons",
            include_str!("../bench/order-ours"),
        ),
        (
            "recording with stock daemons",
            include_str!("../bench/order-stock"),
        ),
    ] {
        let boot = Boot::new(name, common, script);
        let said = ui::slow(name, || measure(&prepared, xen, &boot))?;
        for line in said.lines().filter(|line| seen.insert(line.to_string())) {
            recorded += line;
            recorded.push('\n');
        }
    }
    if !seen.contains("main") {
        return fail("the recording does not even name main");
    }
    let file = paths::workspace().join(FILE);
    paths::write_atomically(&file, recorded.as_bytes())?;
    println!("{}: {} functions", file.display(), seen.len());
    Ok(0)
}
