//! Whether this can work at all, and if not, what to do about it.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Why no Xen control is possible here. Its text names what is missing and the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// The kernel does not run on Xen.
    NotXen,
    /// The kernel runs on Xen, but as an ordinary guest.
    NotDom0,
    /// A device node cannot be opened by this user.
    NotPermitted {
        /// Which.
        node: &'static str,
    },
    /// A device node is missing.
    NoNode {
        /// Which.
        node: &'static str,
        /// The module that makes it.
        module: &'static str,
    },
}

/// The nodes everything needs, and the modules that make them.
const NODES: &[(&str, &str)] = &[
    ("/dev/xen/privcmd", "xen-privcmd"),
    ("/dev/xen/gntdev", "xen-gntdev"),
    ("/dev/xen/evtchn", "xen-evtchn"),
];

/// Checks that this is a Xen dom0 whose device nodes can be opened.
///
/// # Errors
/// The first thing that is missing.
pub fn preflight() -> Result<(), NotReady> {
    check(Path::new("/"))
}

/// Why a program could not go on: what is missing here, if that is anything, which is then the reason for all else.
pub fn explained<E: From<NotReady>>(error: E) -> E {
    match preflight() {
        Ok(()) => error,
        Err(reason) => reason.into(),
    }
}

fn check(root: &Path) -> Result<(), NotReady> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    if read("sys/hypervisor/type").trim() != "xen" {
        return Err(NotReady::NotXen);
    }
    // Absent if xenfs is not mounted; then the nodes decide.
    let capabilities = read("proc/xen/capabilities");
    if !capabilities.is_empty() && !capabilities.contains("control_d") {
        return Err(NotReady::NotDom0);
    }
    for &(node, module) in NODES {
        let path = root.join(node.trim_start_matches('/'));
        match fs::OpenOptions::new().read(true).write(true).open(path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(NotReady::NotPermitted { node });
            }
            Err(_) => return Err(NotReady::NoNode { node, module }),
        }
    }
    Ok(())
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotReady::NotXen => write!(
                f,
                "this machine does not run on Xen (/sys/hypervisor/type does not say xen): boot the \
                 kernel through Xen, for example by choosing Debian's \"with Xen hypervisor\" entry"
            ),
            NotReady::NotDom0 => write!(
                f,
                "this is a Xen guest, not dom0 (/proc/xen/capabilities lacks control_d): run this in \
                 the host's dom0"
            ),
            NotReady::NotPermitted { node } => {
                write!(f, "no permission to open {node}: run this as root")
            }
            NotReady::NoNode { node, module } => {
                write!(
                    f,
                    "{node} is missing: load its module with `modprobe {module}`"
                )
            }
        }
    }
}

impl std::error::Error for NotReady {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let root = std::env::temp_dir().join(format!("xen-dom0-preflight-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(check(&root), Err(NotReady::NotXen));
        write("sys/hypervisor/type", "kvm\n");
        assert_eq!(check(&root), Err(NotReady::NotXen));
        write("sys/hypervisor/type", "xen\n");
        write("proc/xen/capabilities", "\n");
        assert_eq!(check(&root), Err(NotReady::NotDom0));
        write("proc/xen/capabilities", "control_d\n");
        write("dev/xen/privcmd", "");
        let error = check(&root).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/dev/xen/gntdev is missing: load its module with `modprobe xen-gntdev`"
        );
        write("dev/xen/gntdev", "");
        write("dev/xen/evtchn", "");
        assert_eq!(check(&root), Ok(()));
        fs::remove_dir_all(&root).unwrap();
    }
}
