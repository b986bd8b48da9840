//! `xlrs store`: looks into the store and changes it, as the stock xenstore-* tools do and in their format.

mod change;
mod look;
mod tree;
mod value;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use xen_hal::{StoreExt, TxId};
use xen_sys::Errno;
use xlrs::{Error, Result};
use xs_client::Connection;
use xs_wire::StoreError;

use crate::cli::ExitCode;

#[derive(Args)]
pub struct StoreArgs {
    /// Talk to the daemon at this socket or device; else to $XENSTORED_PATH or the host's
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show the tree below a path
    Ls(look::LsArgs),
    /// Print values
    Read(look::ReadArgs),
    /// Print the names of nodes' children
    List(look::ListArgs),
    /// Tell by the exit status whether all of these nodes exist
    Exists(look::ExistsArgs),
    /// Print the path of each change at or below a path
    Watch(look::WatchArgs),
    /// Write values, all of them or none
    Write(change::WriteArgs),
    /// Make empty nodes, all of them or none
    Mkdir(change::MkdirArgs),
    /// Remove nodes with all below them, all of them or none
    Rm(change::RmArgs),
    /// Set a node's permissions: n, r, w or b (none, read, write, both) and a domain's number
    #[command(
        after_help = "The first entry names the owner; its letter is the right of all who are not listed."
    )]
    Chmod(change::ChmodArgs),
    /// Give the daemon a command, such as `check` or `help`
    Control(change::ControlArgs),
}

pub fn store(args: StoreArgs) -> Result<ExitCode> {
    connect(&args).and_then(|store| match args.verb {
        Verb::Ls(args) => look::ls(&store, &args),
        Verb::Read(args) => look::read(&store, &args),
        Verb::List(args) => look::list(&store, &args),
        Verb::Exists(args) => look::exists(&store, &args),
        Verb::Watch(args) => look::watch(&store, &args),
        Verb::Write(args) => change::write(&store, &args),
        Verb::Mkdir(args) => change::mkdir(&store, &args),
        Verb::Rm(args) => change::rm(&store, &args),
        Verb::Chmod(args) => change::chmod(&store, &args),
        Verb::Control(args) => change::control(&store, &args),
    })
}

fn connect(args: &StoreArgs) -> Result<Connection> {
    match &args.socket {
        None => super::store(),
        Some(path) => {
            Connection::open(path).map_err(|error| Error::new("reach the store daemon", "", error))
        }
    }
}

/// Does all of it in one transaction.
fn together<T>(
    store: &Connection,
    mut body: impl FnMut(&Connection, Option<TxId>) -> Result<T>,
) -> Result<T> {
    StoreExt::transaction(store, |store, tx| body(store, Some(tx)))
}

/// Says what was tried on which path, and what may help.
fn failed<'a>(step: &'static str, path: &'a str) -> impl FnOnce(StoreError) -> Error + 'a {
    move |error| {
        let errno = error.errno;
        let told = Error::store(step, path)(error);
        match errno {
            Errno::ENOENT => {
                let above = |path: &str| match path.rsplit_once('/') {
                    Some((above, _)) if !above.is_empty() => above.to_owned(),
                    _ => "/".to_owned(),
                };
                // To remove what is absent is no mistake: the node above it is absent.
                let above = match step {
                    "remove" => above(&above(path)),
                    _ => above(path),
                };
                told.hint(format!("`xlrs store ls -f {above}` shows what is there"))
            }
            Errno::EINVAL => told.hint(
                "a path is absolute, or relative to /local/domain/0; names are of letters, digits and -_@ \
                 with one / between them and none at the end",
            ),
            Errno::EACCES | Errno::EPERM => {
                told.hint("`xlrs store ls -p` shows who may do what")
            }
            Errno::EAGAIN => told.hint("others change the same nodes all the time; try again"),
            _ => told,
        }
    }
}
