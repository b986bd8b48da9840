//! Collects verdicts from several threads and tells them as they come.

use std::sync::Mutex;
use std::time::Duration;

/// How one test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It did what it should.
    Pass,
    /// What is tested did not do what it should.
    Fail(String),
    /// It could not be run here, for this reason.
    Skip(String),
    /// The lab broke, so nothing is known; counts as failed.
    Error(String),
}

/// Where a test runs: a skip on real Xen counts as a failure in CI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a process of this machine.
    Host,
    /// On real Xen.
    RealXen,
}

#[derive(Default)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
    failures: Vec<String>,
    skips: Vec<String>,
}

/// The verdicts so far.
pub struct Report {
    ci: bool,
    counts: Mutex<Counts>,
}

impl Report {
    /// No verdicts yet. With `ci`, a skip on real Xen is a failure.
    pub fn new(ci: bool) -> Report {
        Report {
            ci,
            counts: Mutex::default(),
        }
    }

    /// Takes and tells one verdict.
    pub fn take(&self, name: &str, place: Place, took: Duration, verdict: Verdict) {
        let verdict = match verdict {
            Verdict::Skip(reason) if self.ci && place == Place::RealXen => {
                Verdict::Fail(format!("skipped, which CI does not accept: {reason}"))
            }
            other => other,
        };
        let mut counts = self.counts.lock().unwrap_or_else(|e| e.into_inner());
        let seconds = took.as_secs_f64();
        match verdict {
            Verdict::Pass => {
                counts.passed += 1;
                println!("pass  {name} ({seconds:.1} s)");
            }
            Verdict::Skip(reason) => {
                counts.skipped += 1;
                counts.skips.push(format!("{name}: {reason}"));
                println!("skip  {name}: {reason}");
            }
            Verdict::Fail(reason) => {
                counts.failed += 1;
                counts.failures.push(name.into());
                println!("FAIL  {name} ({seconds:.1} s)\n{}", reason.trim_end());
            }
            Verdict::Error(reason) => {
                counts.failed += 1;
                counts.failures.push(format!("{name} (the lab broke)"));
                println!(
                    "ERROR {name} ({seconds:.1} s): the lab broke\n{}",
                    reason.trim_end()
                );
            }
        }
    }

    /// An error that belongs to no test.
    pub fn error(&self, name: &str, reason: &str) {
        self.take(
            name,
            Place::Host,
            Duration::ZERO,
            Verdict::Error(reason.into()),
        );
    }

    /// Many passes that were already told, as `cargo test` does.
    pub fn passed(&self, count: usize) {
        self.counts.lock().unwrap_or_else(|e| e.into_inner()).passed += count;
    }

    /// Names failures and skips again, prints the closing line, gives the exit status.
    pub fn close(&self) -> i32 {
        let counts = self.counts.lock().unwrap_or_else(|e| e.into_inner());
        println!();
        for name in &counts.failures {
            println!("failed: {name}");
        }
        for skip in &counts.skips {
            println!("skipped: {skip}");
        }
        println!(
            "{}",
            closing_line(counts.passed, counts.failed, counts.skipped)
        );
        i32::from(counts.failed > 0)
    }
}

fn closing_line(passed: usize, failed: usize, skipped: usize) -> String {
    let mut line = format!("{passed} passed, {failed} failed");
    if skipped > 0 {
        line += &format!(", {skipped} skipped");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_is_exact() {
        assert_eq!(closing_line(3, 0, 0), "3 passed, 0 failed");
        assert_eq!(closing_line(3, 1, 2), "3 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn in_ci_a_skip_on_real_xen_fails() {
        for (ci, place, status) in [
            (false, Place::RealXen, 0),
            (true, Place::RealXen, 1),
            (true, Place::Host, 0),
        ] {
            let report = Report::new(ci);
            report.take("x", place, Duration::ZERO, Verdict::Skip("why".into()));
            assert_eq!(report.close(), status, "{ci} {place:?}");
        }
    }

    #[test]
    fn a_broken_lab_is_no_pass() {
        let report = Report::new(false);
        report.passed(5);
        report.error("x", "broke");
        assert_eq!(report.close(), 1);
    }
}
