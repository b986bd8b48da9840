//! Who serves disks and network cards on this host: our daemons, which announce themselves in the
//! store, or the kernel's modules.

use std::path::Path;

use xen_hal::Store;

use crate::error::{Error, Kind, Result};
use crate::store::text;

/// A class of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Disks.
    Block,
    /// Network cards.
    Net,
}

/// Who serves a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Our daemon, with this process number.
    Daemon(u32),
    /// The kernel's module.
    Kernel,
}

impl Class {
    /// The directory of its devices in the store.
    pub const fn kind(self) -> &'static str {
        match self {
            Class::Block => "vbd",
            Class::Net => "vif",
        }
    }

    /// Our daemon's name.
    pub const fn daemon(self) -> &'static str {
        match self {
            Class::Block => "blkback",
            Class::Net => "netback",
        }
    }

    /// The kernel module's name in /sys/module.
    pub const fn module(self) -> &'static str {
        match self {
            Class::Block => "xen_blkback",
            Class::Net => "xen_netback",
        }
    }

    /// Who serves it now.
    ///
    /// # Errors
    /// Nobody does, or the store cannot be asked.
    pub fn server(self, store: &impl Store) -> Result<Server> {
        let pid = text(store, None, &self.node());
        self.server_by(pid.map_err(Error::store("ask who serves", self.kind()))?)
    }

    /// The node in which our daemon says that it runs.
    pub fn node(self) -> String {
        format!("/tool/xlrs/{}", self.daemon())
    }

    /// Who serves it now, if our daemon's [node](Self::node) has this value.
    ///
    /// # Errors
    /// Nobody does.
    pub fn server_by(self, pid: Option<String>) -> Result<Server> {
        if let Some(pid) = running(pid) {
            return Ok(Server::Daemon(pid));
        }
        // Built into the kernel, it shows up there, too.
        if Path::new("/sys/module").join(self.module()).exists() {
            return Ok(Server::Kernel);
        }
        let module = self.module().replace('_', "-");
        Err(Error::new(
            "find a back end for",
            self.kind(),
            format!(
                "neither our {} nor the kernel's {module} is running",
                self.daemon()
            ),
        )
        .hint(format!(
            "`xlrs host start` starts ours; `modprobe {module}` loads the kernel's"
        )))
    }
}

/// A process that has written its number into a node, if it still runs.
fn running(pid: Option<String>) -> Option<u32> {
    let pid = pid.and_then(|pid| pid.trim().parse::<u32>().ok());
    pid.filter(|pid| Path::new(&format!("/proc/{pid}")).exists())
}

/// Sees to it that our back end serves a disk, of which the back end's directory is named; `if_kernel` is the advice
/// if the kernel's does.
///
/// # Errors
/// Somebody else does, who is named, or nobody.
pub fn demand_ours(store: &impl Store, backend: &str, if_kernel: &str) -> Result<()> {
    const STEP: &str = "ask who serves";
    let mut parts = backend.trim_start_matches("/local/domain/").split('/');
    let (dom, class) = (parts.next(), parts.nth(1));
    let other = |who: String, hint: &str| {
        let error = Error::new(STEP, backend, who).kind(Kind::Invalid);
        Err(error.hint(hint))
    };
    match (dom, class) {
        (Some("0"), Some("vbd")) => match Class::Block.server(store)? {
            Server::Daemon(_) => Ok(()),
            Server::Kernel => other("the kernel's back end serves it".into(), if_kernel),
        },
        (Some("0"), Some("vbd3")) => {
            for node in ["/tool/xlrs/blkback", "/tool/xlrs/blkback-vbd3"] {
                let pid = text(store, None, node).map_err(Error::store(STEP, backend))?;
                if running(pid).is_some() {
                    return Ok(());
                }
            }
            other(
                "no blkback is running".into(),
                "`xlrs host start` starts it; beside the kernel's, `blkback --only vbd3`",
            )
        }
        (Some("0"), Some("qdisk")) => other(
            "QEMU serves it".into(),
            "QEMU's monitor has commands of its own for that, such as blockdev-snapshot-sync",
        ),
        (Some("0"), class) => other(
            format!("{} is no back end of ours", class.unwrap_or("that")),
            "only blkback can do this",
        ),
        (dom, _) => other(
            format!("domain {} serves it", dom.unwrap_or("?")),
            "ask there",
        ),
    }
}
