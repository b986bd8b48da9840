//! A live update's two ends in the system: the file with the state, and becoming another program.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon::live::{Handover, Own, Reader};
use crate::daemon::world::StoreWorld;
use crate::options::Options;
use crate::os::{self, Failure, PidFile};
use crate::server::Server;

/// The file's name, in whichever folder.
const NAME: &str = "state_dump";
/// Most bytes of a state that are read.
const MOST: u64 = 4 << 30;

/// Where a state may lie: where newer C xenstoreds and ours have it, then where C of 4.17 has it.
#[derive(Debug)]
pub struct StateFiles {
    run: PathBuf,
    root: Option<PathBuf>,
}

impl StateFiles {
    /// For a daemon of these options.
    pub fn of(options: &Options) -> StateFiles {
        let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let beside_socket = || options.socket.parent().unwrap_or(Path::new(".")).to_owned();
        let run = named("XENSTORED_RUNDIR").unwrap_or_else(beside_socket);
        let root = || named("XENSTORED_ROOTDIR").unwrap_or("/var/lib/xenstored".into());
        StateFiles {
            run: run.join(NAME),
            // Without Xen there is only what belongs to the socket.
            root: (!options.no_xen && options.fakexen.is_none()).then(|| root().join(NAME)),
        }
    }

    /// Takes the state, the newer one if there are two. Its file is left until [`remove`](Self::remove).
    pub fn read(&self) -> Result<Vec<u8>, Failure> {
        let mut found: Option<(File, fs::Metadata)> = None;
        for path in self.all() {
            let Ok(file) = File::open(path) else {
                continue;
            };
            let meta = file.metadata()?;
            let own = rustix::process::geteuid().as_raw();
            if meta.uid() != own || meta.mode() & 0o022 != 0 || !meta.is_file() {
                let path = path.display();
                return Err(format!("{path} may have been written by others: not read").into());
            }
            let is_newer = |known: &(File, fs::Metadata)| {
                (meta.mtime(), meta.mtime_nsec()) > (known.1.mtime(), known.1.mtime_nsec())
            };
            if found.as_ref().is_none_or(is_newer) {
                found = Some((file, meta));
            }
        }
        let run = self.run.display();
        let (file, meta) =
            found.ok_or(format!("{run}: no daemon has left a state to go on from"))?;
        let mut bytes = Vec::with_capacity(usize::try_from(meta.len().min(MOST))?);
        file.take(MOST).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Removes whatever states there are.
    pub fn remove(&self) {
        for path in self.all() {
            // Most often there is only one.
            let _ = fs::remove_file(path);
        }
    }

    /// Writes the state for a reader.
    fn write(&self, state: &[u8], reader: Reader) -> Result<(), String> {
        self.remove();
        let failed = |path: &Path, error| format!("cannot write {}: {error}", path.display());
        let write = || -> std::io::Result<()> {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            options.open(&self.run)?.write_all(state)
        };
        write().map_err(|error| failed(&self.run, error))?;
        if let Some(root) = self.root.as_deref().filter(|_| reader != Reader::Ours) {
            let folder = root.parent().unwrap_or(Path::new("/"));
            let link = || -> std::io::Result<()> {
                fs::create_dir_all(folder)?;
                std::os::unix::fs::symlink(&self.run, root)
            };
            link().map_err(|error| failed(root, error))?;
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.run), self.root.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }
}

/// Becomes another program, which goes on. Returns if that fails: then this one goes on, and has told the client why.
pub fn become_next<W: StoreWorld>(
    options: &Options,
    server: &mut Server<W>,
    handover: &Handover,
    pid_file: Option<&PidFile>,
) {
    let Err(why) = try_become(options, server, handover, pid_file);
    StateFiles::of(options).remove();
    server.daemon().take_back(handover, &why);
}

fn try_become<W: StoreWorld>(
    options: &Options,
    server: &mut Server<W>,
    handover: &Handover,
    pid_file: Option<&PidFile>,
) -> Result<std::convert::Infallible, String> {
    let listener = server.listener().try_clone_to_owned();
    let listener = listener.map_err(|error| format!("cannot keep the socket: {error}"))?;
    let own = Own {
        listener: std::os::fd::AsFd::as_fd(&listener),
        pid_file: pid_file.map(std::os::fd::AsFd::as_fd),
    };
    let daemon = server.daemon();
    let state = daemon.hand_over(handover, own)?;
    StateFiles::of(options).write(&state, handover.reader)?;
    drop(state);
    let kept = options.state();
    let aside = kept.as_deref().filter(|_| handover.reader != Reader::Ours);
    let bequeathed = daemon.bequeath(own, handover.reader, true);
    let bequeathed = bequeathed.and_then(|()| aside.map_or(Ok(()), put_aside));
    let error = match bequeathed {
        // Returns only if it fails.
        Ok(()) => format!(
            "cannot start {}: {}",
            handover.file.display(),
            exec(handover)
        ),
        Err(why) => why,
    };
    // What was undone on the way.
    let kept = daemon.bequeath(own, handover.reader, false);
    let kept = kept.and(aside.map_or(Ok(()), put_back));
    let signals = os::stop_signals()
        .map(drop)
        .map_err(|error| error.to_string());
    match kept.and(signals) {
        Ok(()) => Err(error),
        Err(other) => Err(format!("{error}; {other}")),
    }
}

/// A daemon of another kind does not go on with our file, nor may one of ours after it.
fn put_aside(state: &Path) -> Result<(), String> {
    let moved = fs::rename(state, aside(state));
    moved.map_err(|error| format!("cannot put {} aside: {error}", state.display()))
}

fn put_back(state: &Path) -> Result<(), String> {
    match fs::rename(aside(state), state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot put {} back: {error}", state.display()))
        }
        _ => Ok(()),
    }
}

fn aside(state: &Path) -> PathBuf {
    let mut path = state.to_owned().into_os_string();
    path.push(".left");
    path.into()
}

fn exec(handover: &Handover) -> std::io::Error {
    let own = || std::env::args_os().skip(1).collect();
    let mut arguments: Vec<OsString> = handover.arguments.clone().unwrap_or_else(own);
    if !arguments
        .iter()
        .any(|word| word == "-U" || word == "--live-update")
    {
        arguments.push("-U".into());
    }
    let mut command = Command::new(&handover.file);
    // What the service manager gave to the daemon that it started, it gave to that alone.
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    command.args(arguments).exec()
}
