//! The command `xenstored`.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Parser;
use xenstored::daemon::world::{NoWorld, StoreWorld};
use xenstored::daemon::{Daemon, dom0, fakexen, log};
use xenstored::journal::{self, Journal};
use xenstored::keeper;
use xenstored::manager::{Kept, Manager};
use xenstored::options::Options;
use xenstored::os::{self, Failure, Fork, Listener, PidFile, Ready};
use xenstored::server::Server;

fn main() -> ExitCode {
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
    if options.keep {
        return keeper::run(options, ready);
    }
    serve(options, ready, kept)?;
    Ok(ExitCode::SUCCESS)
}

fn serve(options: &Options, ready: Ready, kept: Kept) -> Result<(), Failure> {
    for option in options.ignored() {
        log(&format!("{option} has no effect in this daemon"));
    }
    let _pid_file = options
        .pid_file
        .as_deref()
        .map(PidFile::write)
        .transpose()?;
    if options.no_xen {
        serve_world(options, ready, kept, NoWorld)
    } else if let Some(folder) = &options.fakexen {
        serve_world(options, ready, kept, fakexen::open(folder)?)
    } else {
        let world = dom0::open().map_err(|error| {
            format!(
                "{error}; a store daemon needs dom0's device nodes (--no-xen serves sockets only)"
            )
        })?;
        serve_world(options, ready, kept, world)
    }
}

fn serve_world<W: StoreWorld>(
    options: &Options,
    ready: Ready,
    mut kept: Kept,
    world: W,
) -> Result<(), Failure> {
    let stop = os::stop_signals()?;
    let listener = kept.listener.take();
    let listener = listener.and_then(|socket| Listener::take_over(&options.socket, socket));
    let (_listener, socket) = match listener {
        Some(listener) => listener,
        None => Listener::bind(&options.socket)?,
    };
    let state = options.state();
    if let Some(state) = state.as_deref().filter(|_| options.fresh) {
        journal::forget(state)?;
    }
    let (journal, recovered) = match &state {
        Some(state) => Journal::open(state, &mut |line| log(&line))?,
        None => (Journal::none(), None),
    };
    let manager = Manager::from_environment(state.is_some())
        .map_err(|error| format!("cannot talk to the service manager: {error}"))?;
    let limits = options.limits();
    let mut daemon = Daemon::keeping(world, limits, journal, recovered, manager, &mut kept)?;
    let has_log = options.log_file.is_some();
    ready.announce(has_log, daemon.manager())?;
    daemon.keep_listener(socket.as_fd());
    let mut server = Server::new(daemon, socket, stop.as_fd())?;
    server.run()?;
    Ok(())
}
