//! The daemon as a program, for tests of its clients.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use xs_client::Connection;

/// Longer than anything takes.
pub const LONG: Duration = Duration::from_secs(20);

/// A daemon in a folder of its own; both go when it is dropped.
pub struct Daemon {
    pub folder: PathBuf,
    pub child: Child,
}

impl Daemon {
    pub fn start(name: &str) -> Daemon {
        let folder = std::env::temp_dir().join(format!("clients-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let child = spawn(&folder);
        Daemon { folder, child }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    pub fn connect(&self) -> Connection {
        Connection::open(&self.socket()).unwrap()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Starts a daemon in this folder and waits until it serves.
pub fn spawn(folder: &Path) -> Child {
    let socket = folder.join("socket");
    let child = Command::new(env!("CARGO_BIN_EXE_xenstored"))
        .args(["--no-fork", "--no-xen", "--no-state", "--socket"])
        .arg(&socket)
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while Connection::open(&socket).is_err() {
        assert!(begun.elapsed() < LONG, "it does not come up");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
