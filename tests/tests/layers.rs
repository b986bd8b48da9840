//! The workspace's shape, from `cargo metadata` and the sources: who may use whom, what licences are in
//! the tree, and where `unsafe` may be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The layers, lowest first; each may use those below and its own. A package not listed is a program.
const LAYERS: [(&str, &[&str]); 4] = [
    ("ABI", &["xen-sys"]),
    (
        "contracts",
        &["xen-ring", "xs-wire", "xs-stream", "xen-hal", "pv-layout"],
    ),
    (
        "logic",
        &[
            "pv-drivers",
            "xen-backend",
            "blkback",
            "netback",
            "xenstored",
            // A socket's end: nothing of Xen is behind it.
            "xs-client",
            "xlrs",
        ],
    ),
    ("worlds", &["xen-dom0", "xen-fake", "fakexen", "pvguest"]),
];

/// Packages of the logic layer that are programs too: their libraries keep to the layer, their `main.rs`
/// (with its modules, and `src/daemon`) may name a world.
const WITH_PROGRAM: [&str; 5] = ["xen-backend", "blkback", "netback", "xenstored", "xlrs"];

/// Crates that may hold `unsafe`, and why.
const MAY_BE_UNSAFE: [(&str, &str); 13] = [
    ("xen-sys", "what its layouts promise may need unsafe impls"),
    ("xen-ring", "shared memory"),
    ("xen-hal", "a lease is shared memory"),
    ("xen-dom0", "ioctls and mappings of /dev/xen"),
    ("xen-fake", "mappings of the memory file"),
    ("fakexen", "mappings of ring files"),
    ("pvguest", "the guest kernel"),
    ("xen-backend", "fork and signals of a daemon"),
    ("xenstored", "fork and signals of a daemon"),
    (
        "blkback",
        "io_uring, vectored transfers and a mapped file on guests' pages",
    ),
    ("netback", "ioctls on TAP devices and bridges"),
    ("xlrs", "fork of the daemons it starts"),
    ("lab-agent", "the ioctl that feeds entropy"),
];

/// A crate root that is no longer than this only says what will be there.
const EMPTY_LINES: usize = 6;

/// Licences that every crate in the tree must offer at least one choice of.
const PERMISSIVE: [&str; 13] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "0BSD",
    "Zlib",
    "BSL-1.0",
    "CC0-1.0",
    "Unlicense",
    "Unicode-3.0",
];

#[test]
fn nobody_uses_what_is_above() {
    let tree = Tree::load("Cargo.toml");
    for (name, package) in &tree.own {
        let Some(layer) = layer(name) else { continue };
        for dependency in &package.dependencies {
            let above = layer_of_dependency(&tree, dependency).is_some_and(|other| other > layer);
            let in_program = WITH_PROGRAM.contains(&name.as_str()) && is_world(dependency);
            assert!(
                !above || in_program,
                "{name} ({}) depends on {dependency}, which is above it",
                LAYERS[layer].0
            );
        }
    }
}

#[test]
fn libraries_of_logic_name_no_world() {
    let tree = Tree::load("Cargo.toml");
    let (_, worlds) = LAYERS[3];
    let words: Vec<String> = worlds.iter().map(|name| name.replace('-', "_")).collect();
    let mut looked_at = 0;
    for name in LAYERS[2].1 {
        let Some(package) = tree.own.get(*name) else {
            continue;
        };
        for file in rust_files(&package.folder.join("src")) {
            let inside = file.strip_prefix(package.folder.join("src")).unwrap();
            if is_of_program(&package.folder, inside) {
                continue;
            }
            looked_at += 1;
            let text = code_without_tests(&file);
            for word in &words {
                let used =
                    text.contains(&format!("{word}::")) || text.contains(&format!("use {word}"));
                assert!(!used, "{} names the world {word}", file.display());
            }
        }
    }
    assert!(looked_at >= 5, "only {looked_at} files were found");
}

#[test]
fn every_licence_is_permissive() {
    let mut count = 0;
    for manifest in ["Cargo.toml", "pvguest/images/Cargo.toml"] {
        if !root().join(manifest).exists() {
            continue;
        }
        for (name, licence) in &Tree::load(manifest).licences {
            assert!(permits(licence), "{name} is under {licence:?}");
            count += 1;
        }
    }
    assert!(count > 20, "only {count} packages were found");
}

#[test]
fn licence_expressions_are_read_right() {
    for (expression, ok) in [
        ("MIT OR Apache-2.0", true),
        ("MIT/Apache-2.0", true),
        ("GPL-2.0-only", false),
        ("GPL-2.0 OR MIT", true),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("MIT AND GPL-2.0", false),
        ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", true),
        ("LGPL-2.1", false),
        ("", false),
    ] {
        assert_eq!(permits(expression), ok, "{expression:?}");
    }
}

#[test]
fn unsafe_is_forbidden_where_it_is_not_needed() {
    let tree = Tree::load("Cargo.toml");
    let mut without = Vec::new();
    for (name, package) in &tree.own {
        if MAY_BE_UNSAFE.iter().any(|(allowed, _)| allowed == name) {
            continue;
        }
        for root in &package.roots {
            let text = std::fs::read_to_string(root).unwrap();
            let empty = text.lines().count() <= EMPTY_LINES;
            if !empty && !text.contains("#![forbid(unsafe_code)]") {
                without.push(root.display().to_string());
            }
        }
    }
    assert!(
        without.is_empty(),
        "these do not forbid unsafe code; if one needs any, say why in {}:\n  {}",
        file!(),
        without.join("\n  ")
    );
}

/// What a test asks of a workspace.
struct Tree {
    /// The workspace's own packages.
    own: BTreeMap<String, Package>,
    /// Name and licence of every package in the tree.
    licences: BTreeMap<String, String>,
}

struct Package {
    folder: PathBuf,
    /// The root files of its libraries and programs.
    roots: Vec<PathBuf>,
    /// The names of what it depends on, tests not counted.
    dependencies: BTreeSet<String>,
}

impl Tree {
    fn load(manifest: &str) -> Tree {
        let output = Command::new(env!("CARGO"))
            .args([
                "metadata",
                "--format-version",
                "1",
                "--locked",
                // What this platform builds has been downloaded; what others need has not.
                "--filter-platform",
                "x86_64-unknown-linux-gnu",
                "--manifest-path",
            ])
            .arg(root().join(manifest))
            .output()
            .expect("run cargo metadata");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "cargo metadata {manifest}: {stderr}"
        );
        let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
        let members: BTreeSet<&str> = list(&metadata["workspace_members"])
            .map(|id| id.as_str().unwrap())
            .collect();
        let mut tree = Tree {
            own: BTreeMap::new(),
            licences: BTreeMap::new(),
        };
        for package in list(&metadata["packages"]) {
            let name = text(&package["name"]);
            let licence = package["license"].as_str().unwrap_or_default();
            let version = format!("{name} {}", text(&package["version"]));
            tree.licences.insert(version, licence.to_owned());
            if members.contains(text(&package["id"]).as_str()) {
                tree.own.insert(name, Package::read(package));
            }
        }
        tree
    }
}

impl Package {
    fn read(package: &Value) -> Package {
        let is_program = |kind: &Value| ["lib", "bin", "proc-macro"].contains(&text(kind).as_str());
        let roots = list(&package["targets"])
            .filter(|target| list(&target["kind"]).any(is_program))
            .map(|target| PathBuf::from(text(&target["src_path"])))
            .collect();
        let dependencies = list(&package["dependencies"])
            .filter(|dependency| dependency["kind"].is_null())
            .map(|dependency| text(&dependency["name"]))
            .collect();
        let manifest = PathBuf::from(text(&package["manifest_path"]));
        Package {
            folder: manifest.parent().unwrap().to_owned(),
            roots,
            dependencies,
        }
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, names)| names.contains(&name))
}

/// A package of our own that is in no layer is a program, which is above all.
fn layer_of_dependency(tree: &Tree, name: &str) -> Option<usize> {
    let own = tree.own.contains_key(name);
    layer(name).or(own.then_some(LAYERS.len()))
}

fn is_world(name: &str) -> bool {
    LAYERS[3].1.contains(&name)
}

/// Whether a file below `src` belongs to the program beside the library: `main.rs`, its modules, the daemon's world.
fn is_of_program(folder: &Path, file: &Path) -> bool {
    let main = std::fs::read_to_string(folder.join("src/main.rs")).unwrap_or_default();
    let modules = main
        .lines()
        .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    let first = file.iter().next().unwrap().to_string_lossy();
    let first = first.trim_end_matches(".rs");
    let mut named = ["main", "bin", "daemon"].into_iter().chain(modules);
    named.any(|name| name == first)
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// A file without its comments and without the unit tests at its end, which may use the fake.
fn code_without_tests(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let end = text.find("#[cfg(test)]").unwrap_or(text.len());
    let code = text[..end].lines();
    let code = code.filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

/// Whether an SPDX expression offers a choice in which every licence is permissive.
fn permits(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let expression = expression.trim();
    if let Some((left, right)) = split(expression, " OR ") {
        return permits(left) || permits(right);
    }
    if let Some((left, right)) = split(expression, " AND ") {
        return permits(left) && permits(right);
    }
    match expression
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
    {
        Some(inner) => permits(inner),
        None => PERMISSIVE.contains(&expression),
    }
}

/// Splits at the first `operator` that is in no parentheses.
fn split<'a>(expression: &'a str, operator: &str) -> Option<(&'a str, &'a str)> {
    let at = expression
        .match_indices(operator)
        .map(|(at, _)| at)
        .find(|&at| {
            let before = &expression[..at];
            before.matches('(').count() == before.matches(')').count()
        })?;
    Some((&expression[..at], &expression[at + operator.len()..]))
}
