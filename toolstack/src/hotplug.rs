//! Custom `script=` of disks and cards: run as libxl runs it, with the same arguments and environment. Files,
//! block devices and bridged cards need none.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use xen_hal::Store;

use crate::error::{Error, Result};
use crate::store::text;

/// Where scripts without a folder lie.
const FOLDER: &str = "/etc/xen/scripts";
/// What the toolstack does itself.
const OWN: [&str; 2] = ["block", "vif-bridge"];
/// How long a script may take (libxl, `LIBXL_HOTPLUG_TIMEOUT`).
const TIMEOUT: Duration = Duration::from_secs(40);

/// What a script is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The device is coming.
    Add,
    /// It is going.
    Remove,
}

/// A device with a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device<'a> {
    /// The script.
    pub script: &'a Path,
    /// The directory of its back end.
    pub backend: &'a str,
    /// A card's interface in dom0, and its gateway device; none for a disk.
    pub card: Option<(&'a str, &'a str)>,
}

/// The script that must be run for `script=`, if it is none of those whose work is done here.
pub fn custom(script: Option<&str>) -> Option<PathBuf> {
    let path = Path::new(FOLDER).join(script?);
    let own = OWN.iter().any(|name| path == Path::new(FOLDER).join(name));
    (!own && path != Path::new("/bin/true")).then_some(path)
}

impl Device<'_> {
    fn arguments(&self, call: Call) -> &'static [&'static str] {
        match (self.card, call) {
            (None, Call::Add) => &["add"],
            (None, Call::Remove) => &["remove"],
            (Some(_), Call::Add) => &["online", "type_if=vif"],
            (Some(_), Call::Remove) => &["offline", "type_if=vif"],
        }
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let kind = if self.card.is_some() { "vif" } else { "vbd" };
        let mut out = vec![
            ("script", self.script.display().to_string()),
            ("XENBUS_TYPE", kind.to_string()),
            // As seen from dom0.
            (
                "XENBUS_PATH",
                self.backend
                    .trim_start_matches("/local/domain/0/")
                    .to_string(),
            ),
            ("XENBUS_BASE_PATH", "backend".to_string()),
        ];
        if let Some((interface, gateway)) = self.card {
            out.push(("netdev", gateway.to_string()));
            out.push(("vif", interface.to_string()));
        }
        out
    }

    /// Runs the script and waits for its end.
    ///
    /// # Errors
    /// It cannot be run, takes longer than 40 s, or fails; then with what it wrote to `hotplug-error`.
    pub fn run(&self, store: &impl Store, call: Call) -> Result<()> {
        let script = self.script.display();
        let failed = |e: &std::io::Error| Error::system("run the script", script.to_string(), e);
        let mut child = Command::new(self.script)
            .args(self.arguments(call))
            .envs(self.environment())
            .stdin(Stdio::null())
            .spawn()
            .map_err(|e| failed(&e))?;
        match wait(&mut child).map_err(|e| failed(&e))? {
            Some(status) if status.success() => Ok(()),
            ended => {
                let said = text(store, None, &format!("{}/hotplug-error", self.backend));
                let said = said.ok().flatten().map(|said| format!(": {said}"));
                let how = match ended {
                    None => format!("it was not done after {} s", TIMEOUT.as_secs()),
                    Some(status) => format!("it ended with {status}"),
                };
                let cause = how + &said.unwrap_or_default();
                let arguments = self.arguments(call).join(" ");
                Err(Error::new("run the script", format!("{script} {arguments}"), cause)
                    .hint("run it by hand with XENBUS_PATH and the other variables of libxl set, or leave script= out"))
            }
        }
    }
}

/// Waits until the process has ended; `None` if it had to be killed.
fn wait(child: &mut Child) -> std::io::Result<Option<ExitStatus>> {
    let pid = Pid::from_child(child);
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    let limit = Timespec {
        tv_sec: TIMEOUT.as_secs() as i64,
        tv_nsec: 0,
    };
    let in_time = loop {
        match poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&limit)) {
            Ok(ready) => break ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if !in_time {
        child.kill()?;
        child.wait()?;
        return Ok(None);
    }
    child.wait().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scripts_of_others_are_run() {
        for (script, path) in [
            (None, None),
            (Some("block"), None),
            (Some("/etc/xen/scripts/vif-bridge"), None),
            (Some("/bin/true"), None),
            (Some("block-nbd"), Some("/etc/xen/scripts/block-nbd")),
            (Some("/opt/vif"), Some("/opt/vif")),
        ] {
            assert_eq!(custom(script), path.map(PathBuf::from), "{script:?}");
        }
    }

    #[test]
    fn arguments_and_environment_are_libxls() {
        let script = Path::new("/etc/xen/scripts/vif-route");
        let card = Device {
            script,
            backend: "/local/domain/0/backend/vif/5/0",
            card: Some(("vif5.0", "eth0")),
        };
        assert_eq!(card.arguments(Call::Add), ["online", "type_if=vif"]);
        let names: Vec<_> = card
            .environment()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(
            names,
            [
                "script",
                "XENBUS_TYPE",
                "XENBUS_PATH",
                "XENBUS_BASE_PATH",
                "netdev",
                "vif"
            ]
        );
        let disk = Device { card: None, ..card };
        assert_eq!(disk.arguments(Call::Remove), ["remove"]);
        assert_eq!(disk.environment()[1], ("XENBUS_TYPE", "vbd".into()));
        assert_eq!(disk.environment()[2].1, "backend/vif/5/0");
    }
}
