//! The commands of `xlrs store` that change something.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use clap::Args;
use xen_hal::{Permission, Store, TxId};
use xen_sys::Errno;
use xlrs::{Error, Kind, Result};
use xs_client::Connection;

use super::value::unescaped;
use super::{failed, together};
use crate::cli::ExitCode;
use crate::cli::common::print_bytes;

/// How long a command to the daemon may take: a live update, say.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Args)]
pub struct WriteArgs {
    /// Take values as they are, without escapes such as \n or \x00
    #[arg(short = 'R', long)]
    raw: bool,
    /// A path and its value, and so on
    #[arg(required = true, num_args = 2.., value_names = ["PATH", "VALUE"], allow_negative_numbers = true)]
    pairs: Vec<OsString>,
}

pub fn write(store: &Connection, args: &WriteArgs) -> Result<ExitCode> {
    let (pairs, []) = args.pairs.as_chunks::<2>() else {
        let last = args.pairs.last().map(|last| last.display().to_string());
        let last = last.unwrap_or_default();
        return Err(Error::new("write", last, "it has no value")
            .kind(Kind::Usage)
            .hint("name pairs of a path and a value; \"\" is an empty one"));
    };
    together(store, |store, tx| {
        for [path, value] in pairs {
            let path = &path.to_string_lossy();
            let written = match args.raw {
                true => store.write(tx, path, value.as_bytes()),
                false => store.write(tx, path, &unescaped(value.as_bytes())),
            };
            written.map_err(failed("write", path))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

#[derive(Args)]
pub struct MkdirArgs {
    /// Paths to make
    #[arg(required = true)]
    paths: Vec<String>,
}

pub fn mkdir(store: &Connection, args: &MkdirArgs) -> Result<ExitCode> {
    together(store, |store, tx| {
        for path in &args.paths {
            store.mkdir(tx, path).map_err(failed("make", path))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

#[derive(Args)]
pub struct RmArgs {
    /// Remove parents too that are left empty
    #[arg(short, long)]
    tidy: bool,
    /// Paths to remove
    #[arg(required = true)]
    paths: Vec<String>,
}

pub fn rm(store: &Connection, args: &RmArgs) -> Result<ExitCode> {
    together(store, |store, tx| {
        for path in &args.paths {
            store.rm(tx, path).map_err(failed("remove", path))?;
            if args.tidy {
                tidy(store, tx, path)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Removes the parents that have neither children nor a value.
fn tidy(store: &Connection, tx: Option<TxId>, path: &str) -> Result<()> {
    for parent in parents(path) {
        let children = store.list(tx, parent).map_err(failed("list", parent))?;
        if !children.is_empty() {
            return Ok(());
        }
        let value = store.read(tx, parent).map_err(failed("read", parent))?;
        if !value.is_empty() {
            return Ok(());
        }
        store.rm(tx, parent).map_err(failed("remove", parent))?;
    }
    Ok(())
}

/// The nodes above a path, the nearest first, without the root.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    fn above(path: &str) -> Option<&str> {
        path.rsplit_once('/').map(|(above, _)| above)
    }
    std::iter::successors(above(path), |path| above(path)).take_while(|path| !path.is_empty())
}

#[derive(Args)]
pub struct ChmodArgs {
    /// All nodes below it too
    #[arg(short, long)]
    recursive: bool,
    /// All nodes above it too, save the root
    #[arg(short, long)]
    upwards: bool,
    /// The node
    path: String,
    /// The owner and the right of everybody, such as n0; then others, such as r5
    #[arg(required = true)]
    permissions: Vec<String>,
}

fn permission(text: &String) -> Result<Permission> {
    Permission::parse(text.as_bytes()).ok_or_else(|| {
        Error::new("read the permission", text, "it makes no sense")
            .hint("it is a letter (n, r, w, b: none, read, write, both) and a domain's number, such as r5")
    })
}

pub fn chmod(store: &Connection, args: &ChmodArgs) -> Result<ExitCode> {
    let path = args.path.as_str();
    let list: Vec<_> = args
        .permissions
        .iter()
        .map(permission)
        .collect::<Result<_>>()?;
    together(store, |store, tx| {
        let set = |path: &str| {
            store
                .set_permissions(tx, path, &list)
                .map_err(failed("set the permissions of", path))
        };
        set(path)?;
        if args.upwards {
            parents(path).try_for_each(set)?;
        }
        let mut todo = vec![path.to_owned()];
        while args.recursive
            && let Some(path) = todo.pop()
        {
            let base = path.strip_suffix('/').unwrap_or(&path);
            for name in store.list(tx, &path).map_err(failed("list", &path))? {
                let child = format!("{base}/{name}");
                set(&child)?;
                todo.push(child);
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

#[derive(Args)]
pub struct ControlArgs {
    /// The command and what belongs to it
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

pub fn control(store: &Connection, args: &ControlArgs) -> Result<ExitCode> {
    store.set_timeout(CONTROL_TIMEOUT);
    let words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    let answer = store.control(&words).map_err(|error| {
        let errno = error.errno;
        let told = Error::store("give the store daemon the command", words.join(" "))(error);
        match errno {
            Errno::ENOSYS | Errno::EINVAL => {
                told.hint("`xlrs store control help` shows the commands that it knows")
            }
            _ => told,
        }
    })?;
    match answer.as_str() {
        "" => Ok(ExitCode::SUCCESS),
        text => print_bytes(format!("{}\n", text.trim_end_matches('\n')).as_bytes()),
    }
}
