//! The command line: Debian's xenstored's, as far as it makes sense here.

use std::path::PathBuf;

use clap::Parser;

use crate::core::limits::{Limits, Quota, SOFT};

/// The xlrs store daemon
#[derive(Debug, Parser)]
#[command(name = "xenstored", version, max_term_width = 100)]
pub struct Options {
    /// Stay in the foreground
    #[arg(short = 'N', long)]
    pub no_fork: bool,
    /// Write the process number to this file, and keep it locked
    #[arg(short = 'F', long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Print the daemon's process number before going to the background
    #[arg(short = 'P', long)]
    pub output_pid: bool,
    /// Listen on this socket
    #[arg(long, value_name = "PATH", default_value = "/run/xenstored/socket")]
    pub socket: PathBuf,
    /// Serve sockets only: needs no Xen
    #[arg(long)]
    pub no_xen: bool,
    /// Serve the files in this folder in the place of Xen (see the crate fakexen); for tests and measuring
    #[arg(long, value_name = "DIR", conflicts_with = "no_xen")]
    pub fakexen: Option<PathBuf>,
    /// Keep the state in this file, which should lie in memory (tmpfs): a daemon that is started again goes on where
    /// this one stopped, however it ended [default: the socket's path with .state]
    #[arg(long, value_name = "FILE", conflicts_with = "no_state")]
    pub state: Option<PathBuf>,
    /// Keep nothing: the store ends with the daemon
    #[arg(long)]
    pub no_state: bool,
    /// Begin with an empty store, whatever an earlier daemon has kept
    #[arg(long)]
    pub fresh: bool,
    /// Start the daemon again at once if it is killed, and keep its clients' sockets meanwhile
    #[arg(long, conflicts_with = "no_state")]
    pub keep: bool,
    /// Started by --keep: the standard streams are given up once requests are served
    #[arg(long, hide = true)]
    pub detach: bool,
    /// Append messages to this file instead of the standard error
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Nodes that a guest may own
    #[arg(short = 'E', long, value_name = "N")]
    pub entry_nb: Option<u32>,
    /// Bytes that a guest's node may have
    #[arg(short = 'S', long, value_name = "BYTES")]
    pub entry_size: Option<u32>,
    /// Watches that a guest may have
    #[arg(short = 'W', long, value_name = "N")]
    pub watch_nb: Option<u32>,
    /// Transactions that a guest may have open
    #[arg(short = 't', long, value_name = "N")]
    pub transaction: Option<u32>,
    /// Entries that a guest's permission list may have
    #[arg(short = 'A', long, value_name = "N")]
    pub perm_nb: Option<u32>,
    /// Bytes that a path of a guest's may have
    #[arg(short = 'M', long, value_name = "BYTES")]
    pub path_max: Option<u32>,
    /// Set a quota: nodes, watches, outstanding, memory, transactions, transaction-nodes, permissions, path-max or node-size;
    /// 0 lifts it
    #[arg(short = 'Q', long, value_name = "NAME=N", value_parser = parse_quota)]
    pub quota: Vec<(&'static str, u32)>,
    /// Set a quota of which the log tells: memory
    #[arg(short = 'q', long, value_name = "NAME=N", value_parser = parse_soft_quota)]
    pub quota_soft: Vec<(&'static str, u32)>,
    /// Forget events that a guest has not taken for so long (watch-event); without, they wait as long as they fit
    #[arg(short = 'w', long, value_name = "watch-event=SECONDS", value_parser = parse_timeout)]
    pub timeout: Option<u32>,
    /// Go on in the place of the daemon that this process was until now, from the state that it has left; it starts
    /// this program so
    #[arg(short = 'U', long)]
    pub live_update: bool,
    /// Tell whether the state on the standard input can be gone on from, and end
    #[arg(long, hide = true)]
    pub check_state: bool,
    /// Log requests, replies and events to this file, as lines of JSON
    #[arg(short = 'T', long, value_name = "FILE")]
    pub trace_file: Option<String>,
    /// Log one kind of thing (io, obj), or do not: +KIND or -KIND
    #[arg(long, value_name = "+KIND|-KIND", allow_hyphen_values = true)]
    pub trace_control: Vec<String>,
    #[command(flatten)]
    ignored: Ignored,
}

/// Options of other store daemons that mean nothing here; naming one is no error.
#[derive(Debug, clap::Args)]
struct Ignored {
    #[arg(short = 'D', long, hide = true)]
    no_domain_init: bool,
    #[arg(short = 'I', long, hide = true, num_args = 0..=1, require_equals = true)]
    internal_db: Option<Option<String>>,
    #[arg(short = 'K', long, hide = true)]
    keep_orphans: bool,
    #[arg(short = 'L', long, hide = true)]
    preserve_local: bool,
    #[arg(short = 'R', long, hide = true)]
    no_recovery: bool,
    #[arg(short = 'v', long, hide = true)]
    verbose: bool,
    #[arg(short = 'm', long, hide = true)]
    master_domid: Option<String>,
    #[arg(short = 'p', long, hide = true)]
    priv_domid: Option<String>,
}

impl Options {
    /// Where the state is kept, if it is.
    pub fn state(&self) -> Option<PathBuf> {
        if self.no_state {
            return None;
        }
        let beside = || {
            let mut path = self.socket.clone().into_os_string();
            path.push(".state");
            path.into()
        };
        Some(self.state.clone().unwrap_or_else(beside))
    }

    /// What guests may use.
    pub fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        for (slot, value) in [
            (&mut limits.nodes, self.entry_nb),
            (&mut limits.node_size, self.entry_size),
            (&mut limits.watches, self.watch_nb),
            (&mut limits.transactions, self.transaction),
            (&mut limits.permissions, self.perm_nb),
            (&mut limits.path_max, self.path_max),
        ] {
            *slot = value.unwrap_or(*slot);
        }
        for (name, value) in self.quota.iter().chain(&self.quota_soft) {
            if let Some(quota) = Quota::find(name) {
                quota.set(&mut limits, *value);
            }
        }
        limits
    }

    /// The options given that have no effect.
    pub fn ignored(&self) -> Vec<&'static str> {
        let ignored = &self.ignored;
        let given = [
            (ignored.no_domain_init, "--no-domain-init"),
            (ignored.internal_db.is_some(), "--internal-db"),
            (ignored.keep_orphans, "--keep-orphans"),
            (ignored.preserve_local, "--preserve-local"),
            (ignored.no_recovery, "--no-recovery"),
            (ignored.verbose, "--verbose"),
            (ignored.master_domid.is_some(), "--master-domid"),
            (ignored.priv_domid.is_some(), "--priv-domid"),
        ];
        let given = given.into_iter().filter(|(given, _)| *given);
        given.map(|(_, name)| name).collect()
    }
}

/// Cuts `NAME=NUMBER`.
fn parse_pair(text: &str) -> Result<(&str, u32), String> {
    let (name, value) = text.split_once('=').ok_or("it is to be NAME=NUMBER")?;
    let value = value.parse().map_err(|_| format!("{value} is no number"))?;
    Ok((name, value))
}

fn parse_quota(text: &str) -> Result<(&'static str, u32), String> {
    let (name, value) = parse_pair(text)?;
    let quota = Quota::find(name).filter(|quota| !quota.is_soft());
    let quota = quota.ok_or_else(|| format!("there is no quota {name}"))?;
    Ok((quota.name, value))
}

fn parse_soft_quota(text: &str) -> Result<(&'static str, u32), String> {
    let (name, value) = parse_pair(text)?;
    let quota = Quota::find(&format!("{SOFT}{name}"));
    let quota = quota.ok_or_else(|| format!("there is no soft quota {name}"))?;
    Ok((quota.name, value))
}

fn parse_timeout(text: &str) -> Result<u32, String> {
    match parse_pair(text)? {
        ("watch-event", seconds) => Ok(seconds),
        (name, _) => Err(format!("there is no timeout {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn as_debian_starts_it() {
        Options::command().debug_assert();
        let options = Options::parse_from(["xenstored", "--pid-file", "/run/xenstored.pid"]);
        assert_eq!(options.pid_file, Some("/run/xenstored.pid".into()));
        assert_eq!(options.limits(), Limits::default());
        assert!(!options.no_fork);
        let options = Options::parse_from(["xenstored", "-N", "-I", "-R", "-E", "5", "-T", "/x"]);
        assert_eq!(options.limits().nodes, 5);
        assert_eq!(options.timeout, None);
        assert_eq!(options.trace_file.as_deref(), Some("/x"));
        assert_eq!(options.ignored(), ["--internal-db", "--no-recovery"]);
    }

    #[test]
    fn quotas() {
        let options = Options::parse_from([
            "xenstored",
            "-M1024",
            "--quota",
            "outstanding=7",
            "-Qmemory=0",
            "-Q",
            "node-permissions=9",
            "-q",
            "memory=123",
            "-w",
            "watch-event=30",
        ]);
        let limits = options.limits();
        let expected = Limits {
            path_max: 1024,
            outstanding: 7,
            memory: 0,
            permissions: 9,
            memory_soft: 123,
            ..Limits::default()
        };
        assert_eq!(limits, expected);
        assert_eq!(options.timeout, Some(30));
        for wrong in [
            ["-Q", "nodes"],
            ["-Q", "nothing=5"],
            ["-Q", "nodes=x"],
            ["-Q", "soft-memory=1"],
            ["-q", "nodes=5"],
            ["-w", "reply=5"],
            ["-w", "watch-event"],
        ] {
            let words = ["xenstored"].iter().chain(&wrong);
            assert!(Options::try_parse_from(words).is_err(), "{wrong:?}");
        }
    }
}
