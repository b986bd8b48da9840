//! The commands of `xlrs store` that change nothing.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Map, Value, json};
use xen_hal::{Store, StoreExt, TxId};
use xlrs::{Error, Result};
use xs_client::Connection;
use xs_wire::StoreError;

use super::tree::{Layout, Tree, contents, walk};
use super::value::escaped;
use super::{failed, together};
use crate::cli::ExitCode;
use crate::cli::common::{print_bytes, print_json};

#[derive(Args)]
pub struct LsArgs {
    /// Print whole paths, and values in full
    #[arg(short = 'f', long)]
    full: bool,
    /// Print permissions
    #[arg(short, long)]
    permissions: bool,
    /// Print JSON: an object in an object for each node, with value (or value_hex), permissions and
    /// children
    #[arg(long, conflicts_with_all = ["full", "permissions"])]
    json: bool,
    /// Where to begin
    #[arg(default_value = "/")]
    path: String,
}

pub fn ls(store: &Connection, args: &LsArgs) -> Result<ExitCode> {
    let path = args.path.as_str();
    if args.json {
        let value = store.read(None, path).map_err(failed("read", path))?;
        let permissions = store.permissions(None, path);
        let mut tree = Tree::new(path, &value, &permissions.map_err(failed("read", path))?);
        walk(store, path, true, |node| {
            tree.add(node);
            Ok(())
        })
        .map_err(failed("list", path))?;
        return print_json(&tree.finish());
    }
    let layout = Layout::new(args.full, args.permissions);
    let mut out = BufWriter::new(io::stdout().lock());
    let walked = walk(store, path, args.permissions, |node| {
        layout.print(&mut out, node).map_err(Stop::Output)
    });
    let printed = match walked {
        Err(Stop::Store(error)) => {
            // What was found so far first.
            let _ = out.flush();
            return Err(failed("list", path)(error));
        }
        Err(Stop::Output(error)) => Err(error),
        Ok(()) => out.flush(),
    };
    match printed {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            // What is left in the buffer has nowhere to go.
            let _ = out.into_parts();
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(Error::system("print", "to the standard output", &error)),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

enum Stop {
    Store(StoreError),
    Output(io::Error),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Stop {
        Stop::Store(error)
    }
}

#[derive(Args)]
pub struct ReadArgs {
    /// Print the path before each value
    #[arg(short, long)]
    path: bool,
    /// Print the bytes as they are, nothing escaped and no end of line
    #[arg(short = 'R', long)]
    raw: bool,
    /// Print JSON: an object for each path, with path and value (or value_hex)
    #[arg(long, conflicts_with_all = ["path", "raw"])]
    json: bool,
    /// Paths to read, all at one moment
    #[arg(required = true)]
    paths: Vec<String>,
}

pub fn read(store: &Connection, args: &ReadArgs) -> Result<ExitCode> {
    if args.json {
        return as_json(store, &args.paths, |tx, path| {
            let value = store.read(tx, path).map_err(failed("read", path))?;
            Ok(contents(Some(&value), None))
        });
    }
    in_order(store, &args.paths, |tx, path, out| {
        let value = store.read(tx, path).map_err(failed("read", path))?;
        if args.path {
            out.extend_from_slice(format!("{path}: ").as_bytes());
        }
        if args.raw {
            out.extend_from_slice(&value);
        } else {
            out.extend_from_slice(escaped(&value).as_bytes());
            out.push(b'\n');
        }
        Ok(())
    })
}

#[derive(Args)]
pub struct ListArgs {
    /// Print whole paths
    #[arg(short, long)]
    path: bool,
    /// Print JSON: an object for each path, with path and the names of its children
    #[arg(long, conflicts_with = "path")]
    json: bool,
    /// Nodes whose children to list, all at one moment
    #[arg(required = true)]
    paths: Vec<String>,
}

pub fn list(store: &Connection, args: &ListArgs) -> Result<ExitCode> {
    if args.json {
        return as_json(store, &args.paths, |tx, path| {
            let names = store.list(tx, path).map_err(failed("list", path))?;
            Ok(Map::from_iter([("children".to_owned(), json!(names))]))
        });
    }
    in_order(store, &args.paths, |tx, path, out| {
        for name in store.list(tx, path).map_err(failed("list", path))? {
            if args.path {
                out.extend_from_slice(format!("{path}/").as_bytes());
            }
            out.extend_from_slice(format!("{name}\n").as_bytes());
        }
        Ok(())
    })
}

/// Prints what `one` has to say of each path, up to the first that fails.
fn in_order(
    store: &Connection,
    paths: &[String],
    one: impl Fn(Option<TxId>, &str, &mut Vec<u8>) -> Result<()>,
) -> Result<ExitCode> {
    let (out, end) = together(store, |_, tx| {
        let mut out = Vec::new();
        let end = paths.iter().try_for_each(|path| one(tx, path, &mut out));
        Ok((out, end))
    })?;
    let printed = print_bytes(&out)?;
    end.map(|()| printed)
}

/// Prints what `one` knows of each path, or nothing if any fails: half an answer is none.
fn as_json(
    store: &Connection,
    paths: &[String],
    one: impl Fn(Option<TxId>, &str) -> Result<Map<String, Value>>,
) -> Result<ExitCode> {
    let list = together(store, |_, tx| {
        let object = |path: &String| {
            let mut object = Map::from_iter([("path".to_owned(), json!(path))]);
            object.append(&mut one(tx, path)?);
            Ok(Value::Object(object))
        };
        paths.iter().map(object).collect::<Result<_>>()
    })?;
    print_json(&Value::Array(list))
}

#[derive(Args)]
pub struct ExistsArgs {
    /// Paths to look for
    #[arg(required = true)]
    paths: Vec<String>,
}

pub fn exists(store: &Connection, args: &ExistsArgs) -> Result<ExitCode> {
    let all = together(store, |store, tx| {
        for path in &args.paths {
            let value = store.read_optional(tx, path);
            if value.map_err(failed("look for", path))?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    Ok(if all {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[derive(Args)]
pub struct WatchArgs {
    /// End after this many events; each watch has one at once
    #[arg(short = 'n', long, value_name = "N")]
    number: Option<u64>,
    /// End after this time; with status 1 if fewer than -n events came
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Print a JSON object a line: path (what changed) and watch (what was watched)
    #[arg(long)]
    json: bool,
    /// Paths to watch
    #[arg(required = true)]
    paths: Vec<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

pub fn watch(store: &Connection, args: &WatchArgs) -> Result<ExitCode> {
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    for (index, path) in args.paths.iter().enumerate() {
        let set = store.watch(path, &index.to_string());
        set.map_err(failed("watch", path))?;
    }
    let mut left = args.number.unwrap_or(u64::MAX);
    while left > 0 {
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let event = store.wait_event(timeout);
        let Some(event) = event.map_err(Error::store("wait for", "a change"))? else {
            break;
        };
        left -= 1;
        let line = if args.json {
            let watched = event.token.parse().ok();
            let watched = watched.and_then(|index: usize| args.paths.get(index));
            format!("{}\n", json!({"path": event.path, "watch": watched}))
        } else {
            format!("{}\n", event.path)
        };
        let mut out = io::stdout().lock();
        match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            Err(error) => return Err(Error::system("print", "to the standard output", &error)),
            Ok(()) => {}
        }
    }
    if left > 0 && args.number.is_some() {
        let cause = format!("{left} fewer came than was asked for");
        return Err(Error::new("wait for", "changes", cause));
    }
    Ok(ExitCode::SUCCESS)
}
