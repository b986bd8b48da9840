//! Where things lie on a host, all below one root that tests may move.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Pid files, and the lock on creating guests.
pub const RUN: &str = "/run/xlrs";
/// Shells, and which are wished for.
pub const POOL: &str = "/run/xlrs/pool";
/// What creations have for themselves while they last; in a folder of its own, which nobody watches.
pub const CLAIMS: &str = "/run/xlrs/lock/claims";
/// libxl's files about running guests, ours among them, and the lock on removing guests.
pub const USERDATA: &str = "/var/lib/xen";
/// Which domain numbers were given back and when; libxl does not use one again within a minute.
pub const HISTORY: &str = "/run/xen/domid-history";
/// The memory of guests that have crashed.
pub const DUMPS: &str = "/var/lib/xen/dump";
/// Configurations of guests that are started after each boot.
pub const AUTOSTART: &str = "/etc/xlrs/auto";
/// Tells that they were started since this boot.
pub const AUTOSTARTED: &str = "/run/xlrs/autostarted";
/// What our daemons have to say.
pub const LOGS: &str = "/var/log/xlrs";
/// What guests have said on their consoles.
pub const CONSOLE_LOGS: &str = "/var/log/xen/console";

static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// Moves what this library writes below another root, once for the whole process: for tests.
pub fn set_root(root: &Path) {
    // Whoever came first has said the same, or the test is wrong.
    let set = ROOT.get_or_init(|| root.to_owned());
    assert_eq!(set, root);
}

/// An absolute path below the root.
pub fn at(path: &str) -> PathBuf {
    match ROOT.get() {
        None => PathBuf::from(path),
        Some(root) => root.join(path.trim_start_matches('/')),
    }
}
