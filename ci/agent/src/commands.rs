//! One running command: its process, its pipes or terminal, and the threads that carry its bytes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use lab_agent::frame::MAX_PAYLOAD;
use lab_agent::message::{Command, Message};
use rustix::process::{Pid, Signal};
use rustix::pty::OpenptFlags;

use crate::port::Sender;

/// After the command's own end: how long its output may be silent before what still holds the
/// pipe open (a daemon it started) is no longer waited for.
const QUIET_AFTER_EXIT: Duration = Duration::from_millis(100);

/// A command that was started.
pub struct Running {
    group: Option<Pid>,
    stdin: Option<mpsc::Sender<Vec<u8>>>,
    terminal: Option<OwnedFd>,
    ended: Arc<AtomicBool>,
}

impl Running {
    /// Starts the command and its threads.
    pub fn start(id: u32, command: &Command, sender: &Arc<Sender>) -> io::Result<Running> {
        let (mut child, terminal, outputs, input) = match command.pty {
            None => with_pipes(command)?,
            Some(size) => with_terminal(command, size)?,
        };
        let pid = child.id();
        sender.send(&Message::Started { id, pid });

        let activity = Arc::new(AtomicU64::new(0));
        let (done_tx, done_rx) = mpsc::channel();
        let count = outputs.len();
        for (stream, is_stderr) in outputs {
            let (sender, activity, done) = (sender.clone(), activity.clone(), done_tx.clone());
            thread::spawn(move || {
                forward(stream, id, is_stderr, &sender, &activity);
                let _ = done.send(());
            });
        }
        let stdin = input.map(|to| feed(to, id, sender.clone()));

        let ended = Arc::new(AtomicBool::new(false));
        let (flag, sender) = (ended.clone(), sender.clone());
        thread::spawn(move || {
            let status = child.wait();
            drain(&done_rx, count, &activity);
            flag.store(true, Ordering::Release);
            let status = status.map_or(255, shell_status);
            sender.send(&Message::Exit { id, status });
        });
        Ok(Running {
            group: Pid::from_raw(pid as i32),
            stdin,
            terminal,
            ended,
        })
    }

    /// Queues bytes for stdin; the window bounds how many there can be.
    pub fn stdin(&self, data: Vec<u8>) {
        if let Some(tx) = &self.stdin {
            let _ = tx.send(data);
        }
    }

    /// Closes stdin once what was queued has been written.
    pub fn stdin_eof(&mut self) {
        self.stdin = None;
    }

    /// Sets the terminal's size.
    pub fn resize(&self, rows: u16, cols: u16) {
        if let Some(fd) = &self.terminal {
            let _ = rustix::termios::tcsetwinsize(fd, winsize(rows, cols));
        }
    }

    /// Signals the command's whole process group.
    pub fn signal(&self, signal: u32) {
        let named = i32::try_from(signal).ok().and_then(Signal::from_named_raw);
        if let (Some(group), Some(signal), false) = (self.group, named, self.ended()) {
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }

    /// Whether the command's exit has been seen.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

type Started = (
    Child,
    Option<OwnedFd>,
    Vec<(Box<dyn Read + Send>, bool)>,
    Option<Box<dyn Write + Send>>,
);

fn process(program: &str, args: &[String], command: &Command) -> Process {
    let mut p = Process::new(program);
    let cwd = if command.cwd.is_empty() {
        "/root"
    } else {
        &command.cwd
    };
    p.args(args).current_dir(cwd);
    p.envs(command.env.iter().map(|(k, v)| (k, v)));
    p
}

fn no_program() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "empty command line")
}

fn with_pipes(command: &Command) -> io::Result<Started> {
    let (program, args) = command.argv.split_first().ok_or_else(no_program)?;
    let mut child = process(program, args, command)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut outputs: Vec<(Box<dyn Read + Send>, bool)> = Vec::new();
    if let Some(out) = child.stdout.take() {
        outputs.push((Box::new(out), false));
    }
    if let Some(err) = child.stderr.take() {
        outputs.push((Box::new(err), true));
    }
    let input = child
        .stdin
        .take()
        .map(|s| Box::new(s) as Box<dyn Write + Send>);
    Ok((child, None, outputs, input))
}

fn with_terminal(command: &Command, (rows, cols): (u16, u16)) -> io::Result<Started> {
    let master =
        rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    rustix::termios::tcsetwinsize(&master, winsize(rows, cols))?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
    let side = File::options().read(true).write(true).open(name)?;
    // busybox's setsid makes the terminal on its stdin the controlling one.
    let mut args = vec!["-c".to_string()];
    args.extend(command.argv.iter().cloned());
    if command.argv.is_empty() {
        return Err(no_program());
    }
    let child = process("setsid", &args, command)
        .stdin(side.try_clone()?)
        .stdout(side.try_clone()?)
        .stderr(side)
        .spawn()?;
    let read: Box<dyn Read + Send> = Box::new(File::from(master.try_clone()?));
    let write: Box<dyn Write + Send> = Box::new(File::from(master.try_clone()?));
    Ok((child, Some(master), vec![(read, false)], Some(write)))
}

fn winsize(rows: u16, cols: u16) -> rustix::termios::Winsize {
    rustix::termios::Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn forward(
    mut stream: Box<dyn Read + Send>,
    id: u32,
    is_stderr: bool,
    sender: &Sender,
    activity: &AtomicU64,
) {
    let mut buf = vec![0u8; MAX_PAYLOAD];
    loop {
        let n = match stream.read(&mut buf) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            // A terminal whose last process has gone gives EIO: its end of file.
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        let data = buf[..n].to_vec();
        sender.send(&if is_stderr {
            Message::Stderr { id, data }
        } else {
            Message::Stdout { id, data }
        });
        activity.fetch_add(1, Ordering::Relaxed);
    }
}

fn feed(mut to: Box<dyn Write + Send>, id: u32, sender: Arc<Sender>) -> mpsc::Sender<Vec<u8>> {
    let (tx, rx) = mpsc::channel::<Vec<u8>>();
    thread::spawn(move || {
        let mut open = true;
        for data in rx {
            // A command that no longer reads: its bytes are dropped, the host is not held up.
            open = open && to.write_all(&data).is_ok();
            sender.send(&Message::StdinCredit {
                id,
                bytes: data.len() as u32,
            });
        }
    });
    tx
}

/// Waits for the output threads to reach the end, or for silence.
fn drain(done: &Receiver<()>, count: usize, activity: &AtomicU64) {
    let mut left = count;
    let mut seen = activity.load(Ordering::Relaxed);
    while left > 0 {
        match done.recv_timeout(QUIET_AFTER_EXIT) {
            Ok(()) => left -= 1,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let now = activity.load(Ordering::Relaxed);
                if now == seen {
                    return;
                }
                seen = now;
            }
        }
    }
}

fn shell_status(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(127))
}
