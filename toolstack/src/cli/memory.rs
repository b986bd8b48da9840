//! Commands about guests' memory: `mem-set`, `mem-max`.

use clap::Args;
use xlrs::config::memory_kib;
use xlrs::{Error, Kind, Result, memory};

use super::common::Host;
use crate::cli::ExitCode;

#[derive(Args)]
pub struct MemoryArgs {
    /// The guest's name or number
    domain: String,
    /// So much memory: a number of MiB, or a number and a unit: 64, 64M, 1G, 65536K
    size: String,
}

pub fn set(args: &MemoryArgs) -> Result<ExitCode> {
    let kib = size(args)?;
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    memory::set_target(&host.control, &host.store, &info, kib)?;
    Ok(ExitCode::SUCCESS)
}

pub fn max(args: &MemoryArgs) -> Result<ExitCode> {
    let kib = size(args)?;
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    memory::set_max(&host.control, &host.store, &info, kib)?;
    Ok(ExitCode::SUCCESS)
}

fn size(args: &MemoryArgs) -> Result<u64> {
    memory_kib(&args.size).ok_or_else(|| {
        Error::new("read the size", &args.size, "it is no size")
            .kind(Kind::Invalid)
            .hint("a number of MiB, or a number and a unit: 64, 64M, 1G")
    })
}
