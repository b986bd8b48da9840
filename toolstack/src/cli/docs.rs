//! Shell completions and manual pages, made from the description of the command line.

use std::path::{Path, PathBuf};

use std::fmt::Write as _;

use clap::{Args, Subcommand, ValueEnum};
use xlrs::{Error, Result};

use super::common::print;
use super::complete::{self, Next};
use crate::cli::ExitCode;

/// A shell, and how completions get into it.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    /// into /usr/share/bash-completion/completions/xlrs, or `source <(xlrs docs completions bash)`
    Bash,
    /// into a file _xlrs in one of the folders in $fpath
    Zsh,
    /// into ~/.config/fish/completions/xlrs.fish
    Fish,
}

/// The status that tells a shell to offer files.
const FILES: u8 = 10;

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
    /// Print what may follow on a command line; the completions call it
    #[command(hide = true)]
    Complete {
        /// What has been typed so far, behind the program's name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
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
        What::Completions { shell } => print(match shell {
            Shell::Bash => include_str!("../../completions/xlrs.bash"),
            Shell::Zsh => include_str!("../../completions/xlrs.zsh"),
            Shell::Fish => include_str!("../../completions/xlrs.fish"),
        }),
        What::Complete { words } => match complete::complete(&command, words, &complete::names) {
            Next::File => Ok(ExitCode(FILES)),
            Next::Words(found) => {
                let mut out = String::new();
                for (word, about) in found {
                    let _ = writeln!(out, "{word}\t{about}");
                }
                print(&out)
            }
        },
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
