//! The command `scenarios`: lists the scenarios for real Xen, and runs one of them in the lab's dom0.
//!
//! - `scenarios list [--json]` works anywhere.
//! - `scenarios run NAME` runs one in dom0. The environment variable `XLRS_STOCK` says which stock parts
//!   are in place (a comma list of `xl`, `xenstored`, `console`, `blkback`, `netback`).
//!
//! Exit status: 0 passed, 1 failed, 77 skipped (the last line of output is the reason), 99 the lab broke.
#![forbid(unsafe_code)]

mod real;

use std::process::ExitCode;

use scenarios::Stop;

const USAGE: &str = "usage: scenarios list [--json] | scenarios run NAME";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["list"] => {
            for entry in real::entries() {
                println!("{:24} {}", entry.name, entry.about);
            }
            ExitCode::SUCCESS
        }
        ["list", "--json"] => {
            let json = serde_json::to_string_pretty(&real::entries());
            println!("{}", json.expect("plain data"));
            ExitCode::SUCCESS
        }
        ["run", name] => run(name),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(name: &str) -> ExitCode {
    let Some(entry) = real::entries().into_iter().find(|entry| entry.name == name) else {
        eprintln!("scenarios: no scenario is called {name}; `scenarios list` shows them");
        return ExitCode::from(2);
    };
    match real::run(&entry) {
        Ok(()) => {
            println!("passed: {name}");
            ExitCode::SUCCESS
        }
        // The reason is the last line.
        Err(Stop::Skipped(reason)) => {
            println!("{}", reason.replace('\n', " "));
            ExitCode::from(Stop::Skipped(reason).status())
        }
        Err(stop) => {
            println!("{stop}");
            ExitCode::from(stop.status())
        }
    }
}
