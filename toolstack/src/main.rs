//! The command `xlrs`.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    xlrs::times::begin();
    let cli = cli::Cli::read();
    let status = cli.exit_status();
    xlrs::times::mark("command line");
    let result = cli::run(cli);
    xlrs::times::print();
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xlrs: {error}");
            ExitCode::from(status(error.kind))
        }
    }
}
