//! `xlrs store` beside Debian's xenstore-* tools, natively: both on our daemon, which serves a socket
//! without Xen. The tools are those of the lab's packages; where there are none yet, it is said.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use scenarios::store_tools::{Said, same};
use scenarios::{OrStop, Outcome};
use serde_json::{Value, json};

/// Our programs, built if need be.
fn programs() -> PathBuf {
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--offline",
            "-p",
            "xlrs",
            "-p",
            "xenstored",
        ])
        .arg("--bins")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("run cargo");
    assert!(status.success(), "cargo build failed");
    let test = std::env::current_exe().expect("this program has a path");
    let folder = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    folder.to_owned()
}

/// The folders of stock packages that the lab has unpacked.
fn stock() -> Vec<PathBuf> {
    let lab = std::env::var_os("XLRS_LAB_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab"),
        PathBuf::from,
    );
    let packages = std::fs::read_dir(lab.join("packages"));
    let folders = packages.into_iter().flatten().flatten();
    let mut folders: Vec<_> = folders.map(|entry| entry.path()).collect();
    folders.retain(|folder| folder.join("usr/bin/xenstore-ls").exists());
    folders.sort();
    folders
}

/// Ends with the test.
struct Daemon(Child, PathBuf);

impl Daemon {
    fn start(program: &Path, test: &str) -> Daemon {
        let folder = std::env::temp_dir().join(format!("store-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("socket");
        let child = Command::new(program)
            .args(["--no-fork", "--no-xen", "--socket"])
            .arg(&socket)
            .spawn()
            .expect("start xenstored");
        let begun = Instant::now();
        while !socket.exists() {
            assert!(begun.elapsed() < Duration::from_secs(10), "no socket");
            std::thread::sleep(Duration::from_millis(5));
        }
        Daemon(child, folder)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended already if these fail.
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = std::fs::remove_dir_all(&self.1);
    }
}

/// A stock tool, with the libraries and the loader of its packages where they bring them.
fn tool(stock: &Path, name: &str, socket: &Path) -> Command {
    let libraries = stock.join("usr/lib/x86_64-linux-gnu");
    let loader = libraries.join("ld-linux-x86-64.so.2");
    let program = stock.join(format!("usr/bin/xenstore-{name}"));
    let mut command = if loader.exists() {
        let mut command = Command::new(loader);
        command.arg("--library-path").arg(&libraries).arg(program);
        command
    } else {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", &libraries);
        command
    };
    command.env("XENSTORED_PATH", socket);
    command
}

fn said(command: &mut Command) -> Outcome<Said> {
    let output = command.output().or_broken(format!("run {command:?}"))?;
    Ok(Said {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        status: output.status.code().unwrap_or(-1),
    })
}

#[test]
fn xlrs_store_prints_what_the_stock_tools_print() {
    let stock = stock();
    if stock.is_empty() {
        println!("skipped: the lab has no stock packages yet (`cargo xtask lab` fetches them)");
        return;
    }
    let programs = programs();
    let daemon = Daemon::start(&programs.join("xenstored"), "tools");
    let socket = daemon.1.join("socket");
    for stock in stock {
        let works = tool(&stock, "exists", &socket).arg("/").status();
        if !works.is_ok_and(|status| status.success()) {
            println!("skipped: {} does not run on this system", stock.display());
            continue;
        }
        same(|ours, name, words| {
            let mut command = if ours {
                let mut command = Command::new(programs.join("xlrs"));
                command.args(["store", "--socket"]).arg(&socket).arg(name);
                command
            } else {
                tool(&stock, name, &socket)
            };
            said(command.args(words))
        })
        .unwrap_or_else(|stop| panic!("{}: {stop}", stock.display()));
        println!("the same as the tools of {}", stock.display());
    }
}

#[test]
fn xlrs_store_prints_json() {
    let programs = programs();
    let daemon = Daemon::start(&programs.join("xenstored"), "json");
    let socket = daemon.1.join("socket");
    let run = |line: &str| {
        let mut command = Command::new(programs.join("xlrs"));
        command.args(["store", "--socket"]).arg(&socket);
        said(command.args(line.split(' '))).unwrap()
    };
    let written = run(r#"write /a 1 /a/b/c two\x20"words" /a/odd \xff\x00"#);
    assert_eq!(written.status, 0);
    for (line, expected) in [
        (
            "read --json /a /a/b/c /a/odd /a/b",
            json!([
                {"path": "/a", "value": "1"},
                {"path": "/a/b/c", "value": "two \"words\""},
                {"path": "/a/odd", "value_hex": "ff00"},
                {"path": "/a/b", "value": ""},
            ]),
        ),
        (
            "list --json /a /a/odd",
            json!([
                {"path": "/a", "children": ["b", "odd"]},
                {"path": "/a/odd", "children": []},
            ]),
        ),
    ] {
        let said = run(line);
        assert_eq!(said.status, 0, "{line}");
        let found: Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!(found, expected, "{line}");
    }
    // What is there is not told without what is not.
    for (line, status) in [
        ("read --json /a /nope", 1),
        ("list --json /a /nope", 1),
        ("read --json --raw /a", 2),
        ("list --json -p /a", 2),
        // A command line that the stock tools, too, refuse.
        ("write /a 1 /b", 2),
    ] {
        let said = run(line);
        assert_eq!((said.stdout.as_str(), said.status), ("", status), "{line}");
    }
}
