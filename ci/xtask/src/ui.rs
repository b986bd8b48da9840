//! What a person sees: status lines on stderr, never on stdout.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static VERBOSE: AtomicBool = AtomicBool::new(false);
static START: OnceLock<Instant> = OnceLock::new();

/// Notes the start, and whether details are wanted.
pub fn init(verbose: bool) {
    START.get_or_init(Instant::now);
    VERBOSE.store(verbose, Ordering::Relaxed);
}

/// Whether `--verbose` was given.
pub fn verbose() -> bool {
    VERBOSE.load(Ordering::Relaxed)
}

/// A line about something that takes time or that the user should know.
pub fn status(text: impl AsRef<str>) {
    let since = START.get_or_init(Instant::now).elapsed();
    eprintln!("[{:7.2}] {}", since.as_secs_f64(), text.as_ref());
}

/// A line only for `--verbose`.
pub fn detail(text: impl AsRef<str>) {
    if verbose() {
        status(text);
    }
}

/// Runs `work`; if it takes over a second, says what it is and, at the end, how long it took.
pub fn slow<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (tx, rx) = std::sync::mpsc::channel::<()>();
    let name = what.to_string();
    let begun = Instant::now();
    let teller = std::thread::spawn(move || {
        let mut said = false;
        let mut next = Duration::from_secs(1);
        while rx.recv_timeout(next) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            if !said {
                status(format!("{name} ..."));
                said = true;
                next = Duration::from_secs(30);
            } else {
                status(format!(
                    "{name} ... still, after {:.0} s",
                    begun.elapsed().as_secs_f64()
                ));
            }
        }
        said
    });
    let out = work();
    drop(tx);
    if teller.join().unwrap_or(false) {
        status(format!("{what}: {:.1} s", begun.elapsed().as_secs_f64()));
    }
    out
}

/// Whether a person sits at both ends.
pub fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// The last lines of a text, indented, for an error report.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    all[from..]
        .iter()
        .map(|l| format!("    {l}\n"))
        .collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "    b\n    c\n");
        assert_eq!(tail("a", 5), "    a\n");
        assert_eq!(tail("", 5), "");
    }
}
