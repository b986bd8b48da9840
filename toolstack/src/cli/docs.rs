//! Shell completions and manual pages, made from the description of the command line.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use clap_complete::Shell;
use xlrs::{Error, Result};

use super::common::print_bytes;
use crate::cli::ExitCode;

#[derive(Args)]
pub struct DocsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Print completions for a shell, to be put where it looks for them
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write manual pages, one for each command, into a folder
    Man {
        /// The folder
        folder: PathBuf,
    },
}

pub fn docs(args: &DocsArgs) -> Result<ExitCode> {
    let mut command = super::description();
    command.build();
    match &args.what {
        What::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(*shell, &mut command, "xlrs", &mut out);
            print_bytes(&out)
        }
        What::Man { folder } => {
            std::fs::create_dir_all(folder)
                .map_err(|e| Error::system("make the folder", folder.display(), &e))?;
            pages(&command, "xlrs", folder)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The page of a command and those of the commands below it.
fn pages(command: &clap::Command, name: &str, folder: &Path) -> Result<()> {
    let path = folder.join(format!("{name}.1"));
    let failed = |e| Error::system("write", path.display(), &e);
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command.clone()).title(name);
    man.render(&mut page).map_err(failed)?;
    std::fs::write(&path, page).map_err(failed)?;
    for below in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        if below.get_name() != "help" {
            pages(below, &format!("{name}-{}", below.get_name()), folder)?;
        }
    }
    Ok(())
}
