//! The command `xenstored`.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Parser;
use xenstored::daemon::world::{NoWorld, StoreWorld};
use xenstored::daemon::{Daemon, dom0, fakexen, log};
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
    if options.no_fork {
        serve(options, Ready::default())?;
        return Ok(ExitCode::SUCCESS);
    }
    match os::fork()? {
        Fork::Daemon(ready) => {
            serve(options, ready)?;
            Ok(ExitCode::SUCCESS)
        }
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

fn serve(options: &Options, ready: Ready) -> Result<(), Failure> {
    if let Some(path) = &options.log_file {
        os::log_to(path)?;
    }
    for option in options.ignored() {
        log(&format!("{option} has no effect in this daemon"));
    }
    os::raise_limits();
    let _pid_file = options
        .pid_file
        .as_deref()
        .map(PidFile::write)
        .transpose()?;
    if options.no_xen {
        serve_world(options, ready, NoWorld)
    } else if let Some(folder) = &options.fakexen {
        serve_world(options, ready, fakexen::open(folder)?)
    } else {
        let world = dom0::open().map_err(|error| {
            format!(
                "{error}; a store daemon needs dom0's device nodes (--no-xen serves sockets only)"
            )
        })?;
        serve_world(options, ready, world)
    }
}

fn serve_world<W: StoreWorld>(options: &Options, ready: Ready, world: W) -> Result<(), Failure> {
    let stop = os::stop_signals()?;
    let (_listener, socket) = Listener::bind(&options.socket)?;
    let mut daemon = Daemon::new(world, options.limits());
    daemon.connect_kernel()?;
    let mut server = Server::new(daemon, socket, stop.as_fd())?;
    ready.announce(options.log_file.is_some())?;
    server.run()?;
    Ok(())
}
