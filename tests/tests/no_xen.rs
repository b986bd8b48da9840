//! What `xlrs` says on a machine without Xen: commands that need it name what is missing and the remedy,
//! commands that do not need it work.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs `xlrs`, built if need be.
fn xlrs(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO"))
        .args([
            "run",
            "--quiet",
            "--offline",
            "-p",
            "xlrs",
            "--bin",
            "xlrs",
            "--",
        ])
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("run cargo")
}

fn is_dom0() -> bool {
    Path::new("/dev/xen/privcmd").exists() || Path::new("/proc/xen/privcmd").exists()
}

fn config(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("xlrs-{name}-{}.cfg", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn what_needs_xen_says_so() {
    if is_dom0() {
        println!("skipped: this is a Xen dom0");
        return;
    }
    // A kernel that exists, so that Xen is all that is missing.
    let guest = config(
        "no-xen",
        "name = \"a\"\nkernel = \"/bin/true\"\nmemory = 16\n",
    );
    let guest_text = guest.display().to_string();
    for arguments in [
        ["list"].as_slice(),
        &["info"],
        &["pause", "a"],
        &["destroy", "a"],
        &["shutdown", "a"],
        &["create", &guest_text],
    ] {
        let output = xlrs(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        let status = output.status.code();
        assert!(
            status.is_some_and(|code| (1..100).contains(&code)),
            "{arguments:?}: {status:?} {said}"
        );
        // What is missing, how that was seen, and what to do.
        for words in [
            "does not run on Xen",
            "/sys/hypervisor/type",
            "boot the kernel",
        ] {
            assert!(
                said.contains(words),
                "{arguments:?} does not say {words:?}: {said}"
            );
        }
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    }
    std::fs::remove_file(guest).unwrap();
}

#[test]
fn a_wrong_line_is_found_without_xen() {
    let guest = config("wrong-line", "name = \"a\"\nmemory = 16\nvcpus = = 1\n");
    let output = xlrs(&["create", &guest.display().to_string()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    let place = format!("{}:3:", guest.display());
    assert!(said.contains(&place) && said.contains("help:"), "{said}");
    std::fs::remove_file(guest).unwrap();
}

#[test]
fn help_needs_nothing() {
    for arguments in [["--help"].as_slice(), &["--version"], &["create", "--help"]] {
        let output = xlrs(arguments);
        assert!(output.status.success(), "{arguments:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
    }
}
