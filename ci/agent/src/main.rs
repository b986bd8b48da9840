//! The lab's agent: runs in dom0 and executes what the host asks for over a virtio-serial port.
//!
//! `lab-agent serve` is the loop; `lab-agent seed` gives the kernel its first entropy at boot;
//! `lab-agent time FILE -- CMD...` runs a command and writes how long it took;
//! `lab-agent calls FILE -- CMD...` writes which of its functions ran.

mod calls;
mod commands;
mod entropy;
mod port;

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab_agent::frame::Decoder;
use lab_agent::message::Message;

use commands::Running;
use port::Sender;

fn main() {
    let verb = std::env::args().nth(1).unwrap_or_default();
    let result = match verb.as_str() {
        "serve" => serve(),
        "seed" => entropy::seed_at_boot(),
        "time" => time(),
        "calls" => calls(),
        _ => {
            eprintln!("usage: lab-agent serve | seed | time FILE -- CMD... | calls FILE -- CMD...");
            std::process::exit(2);
        }
    };
    if let Err(e) = result {
        eprintln!("lab-agent {verb}: {e}");
        std::process::exit(1);
    }
}

/// Runs a command, its stdout thrown away, and writes the microseconds from before its start to after
/// its end into a file. Exits with the command's status.
fn time() -> std::io::Result<()> {
    let (file, program, rest) = file_and_command()?;
    let mut command = std::process::Command::new(program);
    command.args(rest).stdout(std::process::Stdio::null());
    let begun = Instant::now();
    let status = command.status()?;
    let took = begun.elapsed();
    std::fs::write(file, format!("{:.3}\n", took.as_secs_f64() * 1e6))?;
    std::process::exit(status.code().unwrap_or(255));
}

/// Runs a command, its stdout thrown away, and writes the names of the functions that ran into a file, one a line.
/// Exits with the command's status.
fn calls() -> std::io::Result<()> {
    let (file, program, rest) = file_and_command()?;
    let (status, called) = calls::record(&program, &rest)?;
    std::fs::write(file, called.join("\n") + "\n")?;
    std::process::exit(status.code().unwrap_or(255));
}

/// What stands behind a verb: `FILE -- CMD...`.
fn file_and_command() -> std::io::Result<(String, String, Vec<String>)> {
    let mut args = std::env::args().skip(2);
    match (args.next(), args.next(), args.next()) {
        (Some(file), Some(dashes), Some(program)) if dashes == "--" => {
            Ok((file, program, args.collect()))
        }
        _ => Err(std::io::Error::other("wanted: FILE -- CMD...")),
    }
}

/// Takes messages from the port for ever.
fn serve() -> std::io::Result<()> {
    let (mut input, sender) = port::open(Duration::from_secs(20))?;
    let sender = Arc::new(sender);
    let mut running: HashMap<u32, Running> = HashMap::new();
    let mut decoder = Decoder::new();
    let mut buf = vec![0u8; 64 * 1024];
    loop {
        match input.read(&mut buf) {
            // Nobody is connected at the host's end.
            Ok(0) => std::thread::sleep(Duration::from_millis(5)),
            Ok(n) => decoder.push(&buf[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        while let Some(frame) = decoder.next_frame() {
            if let Some(message) = Message::from_frame(frame) {
                take(message, &mut running, &sender);
            }
        }
    }
}

fn take(message: Message, running: &mut HashMap<u32, Running>, sender: &Arc<Sender>) {
    match message {
        Message::Hello {
            nonce,
            unix_ns,
            seed,
        } => {
            if unix_ns != 0 {
                set_clock(unix_ns);
            }
            if let Err(e) = entropy::add(&seed) {
                eprintln!("lab-agent: adding entropy: {e}");
            }
            running.clear();
            sender.send(&Message::HelloAck { nonce });
        }
        Message::Spawn { id, command } => match Running::start(id, &command, sender) {
            Ok(started) => {
                running.insert(id, started);
            }
            Err(e) => {
                let name = command.argv.first().map_or("", String::as_str);
                sender.send(&Message::Failed {
                    id,
                    reason: format!("cannot run {name:?} in dom0: {e}"),
                });
            }
        },
        Message::Stdin { id, data } => {
            if let Some(r) = running.get(&id) {
                r.stdin(data);
            }
        }
        Message::StdinEof { id } => {
            if let Some(r) = running.get_mut(&id) {
                r.stdin_eof();
            }
        }
        Message::Resize { id, rows, cols } => {
            if let Some(r) = running.get(&id) {
                r.resize(rows, cols);
            }
        }
        Message::Signal { id, signal } => {
            if let Some(r) = running.get(&id) {
                r.signal(signal);
            }
        }
        // What only the agent itself says.
        _ => {}
    }
    running.retain(|_, r| !r.ended());
}

fn set_clock(unix_ns: u64) {
    let time = rustix::time::Timespec {
        tv_sec: (unix_ns / 1_000_000_000) as i64,
        tv_nsec: (unix_ns % 1_000_000_000) as i64,
    };
    if let Err(e) = rustix::time::clock_settime(rustix::time::ClockId::Realtime, time) {
        eprintln!("lab-agent: setting the clock: {e}");
    }
}
