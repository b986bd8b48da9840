//! Commands that change something small about a running guest: `rename`, `sysrq`, `trigger`,
//! `dump-core`, `config-update`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use xen_hal::{HostControl, Store, Trigger};
use xen_sys::VcpuId;
use xlrs::supervise::Marks;
use xlrs::userdata::{self, Userdata};
use xlrs::{Error, Kind, Result, dump, nodes, prepare, rename as renaming};

use super::check;
use super::common::Host;
use crate::cli::ExitCode;

#[derive(Args)]
pub struct RenameArgs {
    /// The guest's name or number
    domain: String,
    /// Its new name
    name: String,
}

#[derive(Args)]
pub struct SysrqArgs {
    /// The guest's name or number
    domain: String,
    /// The letter, such as `h`; what it does is up to the guest's kernel
    letter: String,
}

#[derive(Args)]
pub struct TriggerArgs {
    /// The guest's name or number
    domain: String,
    /// What it is sent; `power`, `sleep`, `reset` and `s3resume` are for HVM guests only
    #[arg(ignore_case = true)]
    trigger: TriggerWord,
    /// The vCPU that gets it
    #[arg(default_value_t = 0)]
    vcpu: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum TriggerWord {
    Nmi,
    Init,
    #[value(hide = true)]
    Reset,
    #[value(hide = true)]
    Power,
    #[value(hide = true)]
    Sleep,
    #[value(hide = true)]
    S3resume,
}

#[derive(Args)]
pub struct DumpArgs {
    /// The guest's name or number
    domain: String,
    /// The file that is written, in the ELF format of Xen's core dumps
    file: PathBuf,
    /// Let the guest run meanwhile: what is dumped is then not all of one moment
    #[arg(long)]
    live: bool,
    /// Destroy the guest afterwards
    #[arg(long, conflicts_with = "reset")]
    crash: bool,
    /// Accepted for scripts written for xm
    #[arg(long, hide = true)]
    reset: bool,
}

#[derive(Args)]
pub struct UpdateArgs {
    /// The guest's name or number
    domain: String,
    /// The configuration file, then more configuration as if it stood behind it
    #[arg(value_name = "FILE|KEY=VALUE")]
    words: Vec<String>,
    /// The configuration file
    #[arg(short = 'f', long, value_name = "FILE")]
    defconfig: Option<PathBuf>,
    /// Also show what it means
    #[arg(short, long)]
    debug: bool,
    /// Accepted for scripts written for xl
    #[arg(short, long, hide = true)]
    quiet: bool,
    #[arg(skip)]
    pub dry_run: bool,
}

pub fn rename(args: &RenameArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    renaming::rename(&host.store, info.dom, &info.uuid, &args.name)?;
    Ok(ExitCode::SUCCESS)
}

pub fn sysrq(args: &SysrqArgs) -> Result<ExitCode> {
    let mut letters = args.letter.chars();
    let (Some(letter), None) = (letters.next(), letters.next()) else {
        let error = Error::new("send a sysrq", &args.letter, "it is not one letter");
        return Err(error.kind(Kind::Invalid).hint("such as `xlrs sysrq web h`"));
    };
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    let path = format!("{}/control/sysrq", nodes::home(info.dom));
    let mut bytes = [0; 4];
    let text = letter.encode_utf8(&mut bytes);
    let written = host.store.write(None, &path, text.as_bytes());
    written.map_err(Error::store("send a sysrq to", &args.domain))?;
    Ok(ExitCode::SUCCESS)
}

pub fn trigger(args: &TriggerArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    let trigger = match args.trigger {
        TriggerWord::Nmi => Trigger::Nmi,
        TriggerWord::Init => Trigger::Init,
        TriggerWord::Reset => Trigger::Reset,
        TriggerWord::Power => Trigger::Power,
        TriggerWord::Sleep => Trigger::Sleep,
        TriggerWord::S3resume => {
            let error = Error::new("trigger", &args.domain, "a PV guest has no S3");
            return Err(error.kind(Kind::Invalid));
        }
    };
    let sent = host.control.trigger(info.dom, VcpuId(args.vcpu), trigger);
    sent.map_err(|error| {
        let error = Error::hal("trigger", &args.domain)(error);
        error.hint("PV guests take `nmi` and `init` only; `xlrs shutdown` asks one to power off")
    })?;
    Ok(ExitCode::SUCCESS)
}

pub fn dump_core(args: &DumpArgs) -> Result<ExitCode> {
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    dump::dump(&host.control, &info, &args.file, args.live)?;
    if args.crash {
        xlrs::destroy::destroy(&host.control, &host.store, info.dom)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the guest is when it is created again after a reboot.
pub fn config_update(args: &UpdateArgs) -> Result<ExitCode> {
    let (file, more) = check::split_words(args.defconfig.as_ref(), &args.words)?;
    let mut config = check::read(file.as_deref(), &more)?;
    let host = Host::open()?;
    let info = host.domain(&args.domain)?;
    config.uuid = Some(info.uuid);
    let guest = prepare::Prepared::new(config)?;
    if args.debug || args.dry_run {
        print!("{guest}");
    }
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if userdata::read(info.dom, &info.uuid, Userdata::Xlrs).is_none() {
        let cause = "it was not created by xlrs: nobody here would create it again";
        let error = Error::new("update the configuration of", &args.domain, cause);
        return Err(error.hint("`xl config-update` does it for guests of xl"));
    }
    eprintln!("setting dom{} configuration", info.dom);
    let marks = Marks {
        updated: true,
        ..Marks::of(&guest)
    };
    userdata::write(info.dom, &info.uuid, Userdata::Xlrs, &marks.encode())?;
    Ok(ExitCode::SUCCESS)
}
