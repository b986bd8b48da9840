//! Brings a dom0 up and down without systemd: folders, device nodes, the store daemon, dom0's own nodes,
//! console daemon, back ends, supervisor, in this order.

mod ground;
mod part;
mod process;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xen_hal::{Store, StoreExt};
use xs_client::Connection;

use crate::error::{Error, Kind, Result};

pub use ground::prepare_ground;
pub use part::{Part, State};
pub use process::Program;

/// How long a daemon may take to become ready, or to end.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is wanted of a host.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Parts that somebody else starts.
    pub stock: BTreeSet<Part>,
    /// Where our programs are, if not beside this one or in PATH.
    pub programs: Option<PathBuf>,
    /// Folders below which images may name backing files.
    pub backing: Vec<PathBuf>,
}

/// Starts what does not run yet; tells `say` about each part. `preflight` checks that this is a dom0.
///
/// # Errors
/// The first part that could not be started; those before it go on running.
pub fn start(
    wanted: &Wanted,
    preflight: impl FnOnce() -> Result<()>,
    mut say: impl FnMut(&str),
) -> Result<()> {
    if crate::os::effective_user() != 0 {
        return Err(
            Error::new("start the host's daemons", "", "only root can do that")
                .hint("sudo xlrs host start"),
        );
    }
    prepare_ground(preflight)?;
    for part in Part::ALL {
        let begun = Instant::now();
        let stock = wanted.stock.contains(&part);
        let told = match (stock, part.state()) {
            (true, _) => {
                part.await_stock(TIMEOUT)?;
                "left to the stock one".to_string()
            }
            (false, State::Running { pid }) => format!("runs already, process {pid}"),
            (false, State::Foreign { what }) => {
                return Err(
                    Error::new("start", part.name(), format!("{what} serves already"))
                        .kind(Kind::Exists)
                        .hint(part.foreign_hint()),
                );
            }
            (false, State::Stopped { .. }) => {
                let pid = part.start(wanted, TIMEOUT)?;
                format!("started, process {pid}, {} ms", begun.elapsed().as_millis())
            }
        };
        say(&format!("{:<10} {told}", part.name()));
        if part == Part::Xenstored {
            // By the socket: the kernel's device would not tell whether the daemon is new.
            let store = connect()?;
            write_dom0_nodes(&store)?;
        }
    }
    Ok(())
}

/// Stops our parts, the last started first; tells `say` about each. `guests` is how many are running.
///
/// # Errors
/// Guests are running and `force` is not given, or a part does not end.
pub fn stop(guests: usize, force: bool, mut say: impl FnMut(&str)) -> Result<()> {
    if crate::os::effective_user() != 0 {
        return Err(
            Error::new("stop the host's daemons", "", "only root can do that")
                .hint("sudo xlrs host stop"),
        );
    }
    if !force && guests > 0 {
        return Err(Error::new(
            "stop the host's daemons",
            "",
            format!("{guests} guests are running and need them"),
        )
        .hint("`xlrs shutdown --all --wait` first, or use --force"));
    }
    for part in Part::ALL.into_iter().rev() {
        let told = match part.state() {
            State::Running { pid } => {
                let begun = Instant::now();
                process::end(part.name(), pid, TIMEOUT)?;
                format!("stopped, {} ms", begun.elapsed().as_millis())
            }
            State::Foreign { what } => format!("left alone: {what}"),
            State::Stopped { .. } => "was not running".to_string(),
        };
        say(&format!("{:<10} {told}", part.name()));
    }
    Ok(())
}

/// How each part is, as rows for people or for programs; and whether all is well.
pub fn status() -> (Vec<(Part, State)>, bool) {
    let rows: Vec<_> = Part::ALL.map(|part| (part, part.state())).into();
    let well = rows
        .iter()
        .all(|(_, state)| !matches!(state, State::Stopped { .. }));
    (rows, well)
}

/// The same as JSON.
pub fn status_json(rows: &[(Part, State)]) -> Value {
    let rows = rows.iter().map(|(part, state)| match state {
        State::Running { pid } => {
            json!({"part": part.name(), "state": "running", "pid": pid})
        }
        State::Foreign { what } => {
            json!({"part": part.name(), "state": "stock", "by": what})
        }
        State::Stopped { why } => {
            json!({"part": part.name(), "state": "stopped", "why": why, "remedy": part.remedy()})
        }
    });
    Value::Array(rows.collect())
}

fn connect() -> Result<Connection> {
    Connection::open(xs_client::SOCKET.as_ref())
        .map_err(|e| Error::new("reach the store daemon", "", e))
}

/// What xen-init-dom0 writes, and the folders that libxl makes with the first guest: who compares the
/// store before and after a guest finds no difference.
fn write_dom0_nodes(store: &impl Store) -> Result<()> {
    store.transaction::<(), Error>(|store, tx| {
        let tx = Some(tx);
        for (path, value) in [
            ("/local/domain/0/domid", "0"),
            ("/local/domain/0/name", "Domain-0"),
            ("/local/pool/0/name", "Pool-0"),
        ] {
            if store.read_optional(tx, path)?.is_none() {
                store.write(tx, path, value.as_bytes())?;
            }
        }
        for path in [
            "/vm",
            "/libxl",
            "/tool/xlrs",
            crate::index::FOLDERS[0],
            crate::index::FOLDERS[1],
            "/local/domain/0/backend/vbd",
            "/local/domain/0/backend/vif",
            "/local/domain/0/backend/console",
        ] {
            store.mkdir(tx, path)?;
        }
        Ok(())
    })?;
    ground::write_dom0_json()
}
