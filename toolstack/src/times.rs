//! Where the time of a command goes: marks along the way, printed on request.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The environment variable that asks for the marks on the standard error.
pub const VARIABLE: &str = "XLRS_TIMES";

static MARKS: Mutex<Option<Marks>> = Mutex::new(None);

struct Marks {
    start: Instant,
    list: Vec<(&'static str, Duration)>,
    notes: Vec<String>,
}

/// Begins to count if the environment asks for it.
pub fn begin() {
    if std::env::var_os(VARIABLE).is_some()
        && let Ok(mut marks) = MARKS.lock()
    {
        *marks = Some(Marks {
            start: Instant::now(),
            list: Vec::new(),
            notes: Vec::new(),
        });
    }
}

/// Notes that a step has ended.
pub fn mark(step: &'static str) {
    if let Ok(mut marks) = MARKS.lock()
        && let Some(marks) = marks.as_mut()
    {
        let elapsed = marks.start.elapsed();
        marks.list.push((step, elapsed));
    }
}

/// Notes something else to be printed with the marks.
pub fn note(text: impl FnOnce() -> String) {
    if let Ok(mut marks) = MARKS.lock()
        && let Some(marks) = marks.as_mut()
    {
        marks.notes.push(text());
    }
}

/// Prints what each step has taken.
pub fn print() {
    if let Ok(mut marks) = MARKS.lock()
        && let Some(marks) = marks.take()
    {
        let mut before = Duration::ZERO;
        for (step, at) in marks.list {
            let (took, at_us) = (at - before, at.as_micros());
            eprintln!("{:>8} us  {:>8} us  {step}", took.as_micros(), at_us);
            before = at;
        }
        for note in marks.notes {
            eprintln!("{note}");
        }
    }
}
