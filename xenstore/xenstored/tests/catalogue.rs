//! The table of attacks in README.md names tests that are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The text of all files below a folder.
fn texts(folder: &Path, to: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts(&path, to);
        } else if path.extension().is_some_and(|end| end == "rs") {
            *to += &fs::read_to_string(&path).unwrap();
        }
    }
}

#[test]
fn every_test_of_the_table_is_there() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = String::new();
    texts(&home.join("src"), &mut all);
    texts(&home.join("tests"), &mut all);
    let table = fs::read_to_string(home.join("tests/README.md")).unwrap();
    // What stands between backquotes and has no dot is a test.
    let quoted = table.split('`').skip(1).step_by(2);
    let names: BTreeSet<&str> = quoted
        .filter(|name| name.contains('_') || ["transactions", "watches", "quotas"].contains(name))
        .filter(|name| !name.contains('.') && name.chars().any(char::is_lowercase))
        .collect();
    assert!(names.len() > 30, "{names:?}");
    let missing: Vec<_> = names
        .into_iter()
        .filter(|name| !all.contains(&format!("fn {name}(")))
        .collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");
}
