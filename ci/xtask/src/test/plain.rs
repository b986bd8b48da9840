//! Tier 0: `cargo test` of the workspace, format, lints, and that the guest images build.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use super::report::{Place, Report, Verdict};
use super::{Seed, TestArgs};
use crate::builds;
use crate::error::{Context, Result};
use crate::packages::{self, XenVersion};
use crate::paths;
use crate::ui;

/// Runs tier 0.
pub fn run(args: &TestArgs, report: &Report) {
    let workspace = paths::workspace();
    let images = workspace.join("pvguest/images");
    timed(args, report, "cargo fmt --check", || {
        for dir in [&workspace, &images] {
            if !dir.join("Cargo.toml").exists() {
                continue;
            }
            if let Some(bad) = component(dir, "fmt", &["fmt", "--all", "--check"]) {
                return bad;
            }
        }
        Verdict::Pass
    });
    cargo_test(args, report, &workspace);
    timed(args, report, "cargo clippy -D warnings", || {
        let lint = [
            "clippy",
            "-q",
            "--keep-going",
            "--workspace",
            "--all-targets",
            "--",
            "-Dwarnings",
        ];
        component(&workspace, "clippy", &lint).unwrap_or(Verdict::Pass)
    });
    if images.join("Cargo.toml").exists() {
        timed(
            args,
            report,
            "guest images build",
            || match builds::guests(&images) {
                Ok(found) if found.is_empty() => Verdict::Fail("no image came out".into()),
                Ok(_) => Verdict::Pass,
                Err(e) => Verdict::Fail(e.to_string()),
            },
        );
    }
}

fn timed(args: &TestArgs, report: &Report, name: &str, work: impl FnOnce() -> Verdict) {
    if args.wants(name) {
        let begun = Instant::now();
        let verdict = work();
        report.take(name, Place::Host, begun.elapsed(), verdict);
    }
}

/// Runs a cargo command that belongs to a component; nothing if all is well.
fn component(dir: &Path, name: &str, args: &[&str]) -> Option<Verdict> {
    let there = builds::cargo_command(dir, None)
        .args([name, "--version"])
        .output()
        .is_ok_and(|o| o.status.success());
    if !there {
        return Some(Verdict::Skip(format!("cargo has no component {name} here")));
    }
    let out = match builds::cargo_command(dir, None).args(args).output() {
        Ok(out) => out,
        Err(e) => return Some(Verdict::Error(format!("running cargo {name}: {e}"))),
    };
    if out.status.success() {
        return None;
    }
    let words = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    Some(Verdict::Fail(ui::tail(&words, 40)))
}

fn cargo_test(args: &TestArgs, report: &Report, workspace: &Path) {
    let begun = Instant::now();
    match follow_cargo_test(args, workspace) {
        Ok(seen) => {
            report.passed(seen.passed);
            println!(
                "pass  cargo test: {} tests ({:.1} s)",
                seen.passed,
                begun.elapsed().as_secs_f64()
            );
            for (name, reason) in &seen.ignored {
                report.take(
                    name,
                    Place::Host,
                    begun.elapsed(),
                    Verdict::Skip(reason.clone()),
                );
            }
            for name in &seen.failed {
                let why = Verdict::Fail(format!("    see `cargo test {name}`"));
                report.take(name, Place::Host, begun.elapsed(), why);
            }
            if !seen.status_ok && seen.failed.is_empty() {
                let why = Verdict::Fail(ui::tail(&seen.words, 60));
                report.take("cargo test --workspace", Place::Host, begun.elapsed(), why);
            } else if !seen.failed.is_empty() {
                println!("{}", ui::tail(&seen.words, 80));
            }
        }
        Err(e) => report.error("cargo test --workspace", &e.to_string()),
    }
}

/// What `cargo test` told.
#[derive(Debug, Default)]
struct Seen {
    passed: usize,
    failed: Vec<String>,
    ignored: Vec<(String, String)>,
    words: String,
    status_ok: bool,
}

impl Seen {
    fn line(&mut self, line: &str) {
        if line.starts_with("running ") || line.starts_with("test result: ok") {
            return;
        }
        if let Some(rest) = line.strip_prefix("test ")
            && let Some((name, verdict)) = rest.rsplit_once(" ... ")
        {
            let name = name.trim_end_matches(" - should panic").to_string();
            if verdict == "ok" {
                self.passed += 1;
                return;
            }
            if let Some(why) = verdict.strip_prefix("ignored") {
                let why = why.trim_start_matches([',', ' ']);
                let why = if why.is_empty() {
                    "ignored, no reason given"
                } else {
                    why
                };
                self.ignored.push((name, why.into()));
                return;
            }
            if verdict.starts_with("FAILED") {
                self.failed.push(name);
            }
        }
        if !line.trim().is_empty() {
            self.words += line;
            self.words.push('\n');
        }
    }
}

fn follow_cargo_test(args: &TestArgs, workspace: &Path) -> Result<Seen> {
    let lab = paths::lab_dir()?;
    let mut command = builds::cargo_command(workspace, None);
    command.env("XLRS_XEN_HEADERS", packages::headers(&lab)?);
    // Stock xl, which the configuration is compared with.
    let stock = packages::xen(&lab, XenVersion::V4_17, false)?;
    command.env("XLRS_STOCK_ROOT", stock.root);
    match args.seed {
        Seed::Fixed(seed) => command.env("PROPTEST_RNG_SEED", seed.to_string()),
        Seed::Random => command.env_remove("PROPTEST_RNG_SEED"),
    };
    command.args(["test", "--workspace", "--no-fail-fast", "--"]);
    if let Some(filter) = &args.filter {
        command.arg(filter);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    ui::slow("cargo test --workspace", || {
        let mut child = command.spawn().context(|| "running cargo test".into())?;
        let errors = child.stderr.take();
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            for line in errors
                .into_iter()
                .flat_map(|e| BufReader::new(e).lines())
                .map_while(|l| l.ok())
            {
                let word = line.split_whitespace().next().unwrap_or("");
                if !["Compiling", "Running", "Doc-tests", "Finished"].contains(&word) {
                    text += &line;
                    text.push('\n');
                }
            }
            text
        });
        let mut seen = Seen::default();
        for line in child
            .stdout
            .take()
            .into_iter()
            .flat_map(|o| BufReader::new(o).lines())
        {
            let line = line.context(|| "reading what cargo test says".into())?;
            seen.line(&line);
        }
        let status = child.wait().context(|| "waiting for cargo test".into())?;
        seen.words += &errors.join().unwrap_or_default();
        seen.status_ok = status.success();
        Ok(seen)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_tests_words_are_counted() {
        let mut seen = Seen::default();
        for line in [
            "running 4 tests",
            "test a::b ... ok",
            "test c - should panic ... ok",
            "test d ... FAILED",
            "test e ... ignored, needs Xen",
            "test f ... ignored",
            "test src/lib.rs - g (line 3) ... ok",
            "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out",
            "---- d stdout ----",
        ] {
            seen.line(line);
        }
        assert_eq!(seen.passed, 3);
        assert_eq!(seen.failed, ["d"]);
        let ignored: Vec<_> = seen
            .ignored
            .iter()
            .map(|(n, w)| format!("{n}: {w}"))
            .collect();
        assert_eq!(ignored, ["e: needs Xen", "f: ignored, no reason given"]);
        assert!(seen.words.contains("---- d stdout ----"));
        assert!(!seen.words.contains("test a::b"));
    }
}
