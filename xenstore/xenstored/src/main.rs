//! The command `xenstored`.
#![forbid(unsafe_code)]

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use clap::Parser;
use xen_sys::{DomId, Port};
use xenstored::core::control::TraceCommand;
use xenstored::daemon::live;
use xenstored::daemon::world::{NoWorld, StoreWorld};
use xenstored::daemon::{Daemon, dom0, fakexen, log};
use xenstored::handover::{self, StateFiles};
use xenstored::journal::{self, Journal};
use xenstored::keeper;
use xenstored::manager::{Kept, Manager};
use xenstored::options::Options;
use xenstored::os::{self, Failure, Fork, Listener, PidFile, Ready};
use xenstored::server::{Ended, Server};

fn main() -> ExitCode {
    std::hint::black_box(os::note());
    let options = Options::parse();
    match run(&options) {
        Ok(code) => code,
        Err(error) => {
            log(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode, Failure> {
    if options.check_state {
        let mut state = Vec::new();
        std::io::stdin().read_to_end(&mut state)?;
        live::check(&state, options.limits())?;
        return Ok(ExitCode::SUCCESS);
    }
    if options.live_update {
        // Nothing is new but the program: neither the process nor what the service manager knows of it.
        return start(options, Ready::alone(options.detach), Kept::default());
    }
    // Before anything else is opened.
    let kept = os::kept_descriptors();
    if options.no_fork {
        return start(options, Ready::alone(options.detach), kept);
    }
    match os::fork()? {
        Fork::Daemon(ready) => start(options, ready, kept),
        Fork::Parent { ready, pid } => {
            if !os::wait_ready(ready) {
                return Ok(ExitCode::FAILURE);
            }
            if options.output_pid {
                println!("{pid}");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn start(options: &Options, ready: Ready, kept: Kept) -> Result<ExitCode, Failure> {
    if let Some(path) = &options.log_file {
        os::log_to(path)?;
    }
    os::raise_limits();
    os::steady_allocator();
    if options.keep && !options.live_update {
        return keeper::run(options, ready);
    }
    serve(options, ready, kept)?;
    Ok(ExitCode::SUCCESS)
}

fn serve(options: &Options, ready: Ready, kept: Kept) -> Result<(), Failure> {
    for option in options.ignored() {
        log(&format!("{option} has no effect in this daemon"));
    }
    if options.no_xen {
        serve_world(options, ready, kept, |_, _| Ok(NoWorld))
    } else if let Some(folder) = &options.fakexen {
        serve_world(options, ready, kept, |evtchn, _| {
            fakexen::open(folder, evtchn).map_err(|error| error.to_string())
        })
    } else {
        serve_world(options, ready, kept, |evtchn, ports| {
            dom0::open(evtchn, ports).map_err(|error| {
                let error = match xen_dom0::preflight() {
                    Ok(()) => error.to_string(),
                    Err(reason) => reason.to_string(),
                };
                format!(
                    "{error}; a store daemon needs dom0's device nodes (--no-xen serves sockets only)"
                )
            })
        })
    }
}

/// What is served, and what belongs to it as long as it is.
struct Place<W> {
    daemon: Daemon<W>,
    socket: OwnedFd,
    pid_file: Option<PidFile>,
    _listener: Listener,
}

fn serve_world<W: StoreWorld>(
    options: &Options,
    ready: Ready,
    kept: Kept,
    open: impl FnOnce(Option<OwnedFd>, &[(Port, DomId)]) -> Result<W, String>,
) -> Result<(), Failure> {
    let stop = os::stop_signals()?;
    let mut place = if options.live_update {
        go_on(options, open)?
    } else {
        let place = begin(options, kept, open)?;
        let has_log = options.log_file.is_some();
        ready.announce(has_log, place.daemon.manager())?;
        place
    };
    place.daemon.set_event_timeout(options.timeout.unwrap_or(0));
    trace(options, &mut place.daemon)?;
    let mut server = Server::new(place.daemon, place.socket, stop.as_fd())?;
    loop {
        match server.run()? {
            Ended::Stopped => return Ok(()),
            Ended::Update(update) => {
                handover::become_next(options, &mut server, &update, place.pid_file.as_ref());
            }
        }
    }
}

fn trace<W: StoreWorld>(options: &Options, daemon: &mut Daemon<W>) -> Result<(), Failure> {
    for kind in &options.trace_control {
        let command = match kind.split_at_checked(1) {
            Some(("+", kind)) => TraceCommand::Kind(kind, true),
            Some(("-", kind)) => TraceCommand::Kind(kind, false),
            _ => return Err(format!("--trace-control {kind}: it is to be +KIND or -KIND").into()),
        };
        daemon
            .trace(command)
            .map_err(|_| format!("--trace-control {kind}: there is no such kind"))?;
    }
    if let Some(file) = &options.trace_file {
        daemon
            .trace(TraceCommand::File(file))
            .map_err(|error| format!("cannot log to {file}: {error}"))?;
    }
    Ok(())
}

/// With what an earlier daemon has kept, or an empty store.
fn begin<W: StoreWorld>(
    options: &Options,
    mut kept: Kept,
    open: impl FnOnce(Option<OwnedFd>, &[(Port, DomId)]) -> Result<W, String>,
) -> Result<Place<W>, Failure> {
    let pid_file = options.pid_file.as_deref();
    let pid_file = pid_file.map(PidFile::write).transpose()?;
    let world = open(None, &[])?;
    let listener = kept.listener.take();
    let listener = listener.and_then(|socket| Listener::take_over(&options.socket, socket));
    let (listener, socket) = match listener {
        Some(listener) => listener,
        None => Listener::bind(&options.socket)?,
    };
    // First of all: clients that connect from now on wait, whatever happens to us.
    let mut manager = manager(options)?;
    if let Some(manager) = &mut manager {
        manager.keep_listener(socket.as_fd());
    }
    let state = options.state();
    if let Some(state) = state.as_deref().filter(|_| options.fresh) {
        journal::forget(state)?;
    }
    let (journal, recovered) = match &state {
        Some(state) => Journal::open(state, &mut |line| log(&line))?,
        None => (Journal::none(), None),
    };
    let limits = options.limits();
    let daemon = Daemon::keeping(world, limits, journal, recovered, manager, &mut kept)?;
    Ok(Place {
        daemon,
        socket,
        pid_file,
        _listener: listener,
    })
}

/// In the place of the daemon that this process was.
fn go_on<W: StoreWorld>(
    options: &Options,
    open: impl FnOnce(Option<OwnedFd>, &[(Port, DomId)]) -> Result<W, String>,
) -> Result<Place<W>, Failure> {
    let files = StateFiles::of(options);
    let state = files.read()?;
    let told = live::resume(&state, options.limits(), os::inherit, open)?;
    let journal = match &options.state() {
        Some(state) => Journal::take_over(state, &mut |line| log(&line))?,
        None => Journal::none(),
    };
    let mut daemon = told.daemon;
    daemon.keep_from_here(journal, manager(options)?, told.is_new, told.snapshot);
    files.remove();
    let (listener, socket) = match told.listener {
        Some(socket) => (Listener::keep(&options.socket), socket),
        None => Listener::bind(&options.socket)?,
    };
    if told.is_new {
        daemon.keep_listener(socket.as_fd());
    }
    let pid_file = match (options.pid_file.as_deref(), told.pid_file) {
        (Some(path), Some(file)) => Some(PidFile::keep(path, file)),
        (Some(path), None) => Some(PidFile::write(path)?),
        (None, _) => None,
    };
    Ok(Place {
        daemon,
        socket,
        pid_file,
        _listener: listener,
    })
}

fn manager(options: &Options) -> Result<Option<Manager>, Failure> {
    let manager = Manager::from_environment(options.state().is_some());
    Ok(manager.map_err(|error| format!("cannot talk to the service manager: {error}"))?)
}
