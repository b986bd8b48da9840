//! Connects a command in dom0 with this terminal, or with plain pipes.

use std::io::{Read, Write};
use std::time::Duration;

use lab_agent::message::Command;
use rustix::termios::{OptionalActions, Termios};

use crate::channel::{Event, Stdin};
use crate::error::{Context, Result, fail};
use crate::lab::Lab;
use crate::ui;

/// Ctrl-]: leaves an interactive command.
const LEAVE: u8 = 0x1d;

/// Runs a command with our stdin, stdout and stderr; gives its exit status.
pub fn run(lab: &Lab, mut command: Command) -> Result<i32> {
    if !ui::is_interactive() {
        let running = lab.spawn(command)?;
        let stdin = running.stdin();
        std::thread::spawn(move || copy_stdin(&stdin));
        loop {
            match running.next(None)? {
                Some(Event::Exit(status)) => return Ok(status),
                Some(event) => show(event)?,
                None => {}
            }
        }
    }
    let size = size();
    command.pty = Some(size);
    let term = std::env::var("TERM").unwrap_or_else(|_| "linux".into());
    command.env.push(("TERM".into(), term));
    let raw = Raw::enter()?;
    let running = lab.spawn(command)?;
    let stdin = running.stdin();
    let (left_tx, left) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        copy_keys(&stdin);
        let _ = left_tx.send(());
    });
    let mut known = size;
    let status = loop {
        match running.next(Some(Duration::from_millis(200)))? {
            Some(Event::Exit(status)) => break status,
            Some(event) => show(event)?,
            None => {}
        }
        let now = self::size();
        if now != known {
            known = now;
            running.resize(now.0, now.1)?;
        }
        if left.try_recv().is_ok() {
            break 0;
        }
    };
    drop(raw);
    Ok(status)
}

fn show(event: Event) -> Result<()> {
    match event {
        Event::Stdout(data) => {
            let mut out = std::io::stdout().lock();
            out.write_all(&data)
                .and_then(|()| out.flush())
                .context(|| "writing to stdout".into())
        }
        Event::Stderr(data) => std::io::stderr()
            .write_all(&data)
            .context(|| "writing to stderr".into()),
        Event::Failed(reason) => fail(reason),
        Event::Exit(_) => Ok(()),
    }
}

fn copy_stdin(to: &Stdin) {
    let mut buf = [0u8; 16 * 1024];
    let mut from = std::io::stdin().lock();
    while let Ok(n @ 1..) = from.read(&mut buf) {
        if to.write(&buf[..n]).is_err() {
            return;
        }
    }
    let _ = to.close();
}

fn copy_keys(to: &Stdin) {
    let mut buf = [0u8; 1024];
    let mut from = std::io::stdin().lock();
    while let Ok(n @ 1..) = from.read(&mut buf) {
        let keys = &buf[..n];
        let end = keys.iter().position(|k| *k == LEAVE);
        if to.write(&keys[..end.unwrap_or(n)]).is_err() || end.is_some() {
            return;
        }
    }
}

fn size() -> (u16, u16) {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(s) if s.ws_row > 0 && s.ws_col > 0 => (s.ws_row, s.ws_col),
        _ => (24, 80),
    }
}

/// The terminal in raw mode; dropped: as it was.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Raw> {
        let was = rustix::termios::tcgetattr(std::io::stdin())
            .context(|| "reading the terminal's mode".into())?;
        let mut raw = was.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .context(|| "setting the terminal's mode".into())?;
        Ok(Raw(was))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
