//! The command as it is typed, with wrong files.

use std::path::Path;
use std::process::{Command, Output};

fn check(path: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xlrs"))
        .arg("check")
        .arg(path)
        .output()
        .unwrap()
}

#[test]
fn what_is_no_configuration_is_refused_by_name() {
    let program = Path::new(env!("CARGO_BIN_EXE_xlrs"));
    let folder = program.parent().unwrap();
    for (path, part) in [
        // Without a limit it would be read until memory ends.
        (Path::new("/dev/zero"), "longer than 1 MiB"),
        (program, "longer than 1 MiB"),
        (folder, "EISDIR"),
        (Path::new("/no/such.cfg"), "ENOENT"),
    ] {
        let output = check(path);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(part), "{said}");
        assert!(said.contains(&path.display().to_string()), "{said}");
        assert!(said.contains("help:"), "{said}");
    }
}

/// Who names a store need not be on Xen, and is told about the store.
#[test]
fn a_store_that_cannot_be_reached_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_xlrs"))
        .args(["store", "ls"])
        .env("XENSTORED_PATH", "/no/such/socket")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/no/such/socket (No such file"), "{said}");
}
