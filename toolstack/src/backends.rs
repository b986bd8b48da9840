//! Who serves disks and network cards on this host: our daemons, which announce themselves in the
//! store, or the kernel's modules.

use std::path::Path;

use xen_hal::Store;

use crate::error::{Error, Result};
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
        if let Some(pid) = pid.and_then(|pid| pid.trim().parse::<u32>().ok())
            && Path::new(&format!("/proc/{pid}")).exists()
        {
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
