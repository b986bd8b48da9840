//! What the lab reads: `scenarios list --json`, and the exit statuses.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_json::Value;

fn scenarios(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scenarios"))
        .args(arguments)
        .output()
        .expect("run scenarios")
}

#[test]
fn the_list_is_what_the_lab_expects() {
    let output = scenarios(&["list", "--json"]);
    assert!(output.status.success());
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut names = BTreeSet::new();
    for entry in list.as_array().unwrap() {
        let name = entry["name"].as_str().unwrap();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(name.chars().all(plain), "{name}");
        assert!(names.insert(name), "{name} is there twice");
        for (key, known) in [
            ("xen", ["4.14", "4.17", "4.20"].as_slice()),
            (
                "stock",
                &[
                    "xl",
                    "xenstored",
                    "oxenstored",
                    "console",
                    "blkback",
                    "netback",
                ],
            ),
        ] {
            for word in entry[key].as_array().unwrap() {
                assert!(
                    known.contains(&word.as_str().unwrap()),
                    "{name}: {key} {word}"
                );
            }
        }
        assert!(
            !entry["xen"].as_array().unwrap().is_empty(),
            "{name} runs nowhere"
        );
        let timeout_s = entry["timeout_s"].as_u64().unwrap();
        assert!((10..=900).contains(&timeout_s), "{name}: {timeout_s} s");
        assert!(!entry["about"].as_str().unwrap().is_empty(), "{name}");
    }
    assert!(names.len() >= 10, "{names:?}");
}

#[test]
fn statuses() {
    for (arguments, status) in [
        (["run", "no-such-scenario"].as_slice(), 2),
        (&["run"], 2),
        (&[], 2),
        (&["list"], 0),
    ] {
        let output = scenarios(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
    }
    if !std::path::Path::new("/dev/xen/privcmd").exists() {
        let output = scenarios(&["run", "store-ours"]);
        assert_eq!(
            output.status.code(),
            Some(77),
            "outside dom0 a scenario is skipped"
        );
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(
            said.lines().last().unwrap().contains("no Xen dom0"),
            "{said}"
        );
    }
}
