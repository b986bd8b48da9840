//! A Debian guest whose shell takes commands: Linux's own front ends, as a tester uses them.

use std::cell::RefCell;
use std::time::Duration;

use scenarios::{Outcome, Stop};

use crate::real::guest::{Config, Guest};
use crate::real::host::Host;

const KERNEL: &str = "/lab/debian/vmlinuz";
const RAMDISK: &str = "/lab/debian/initrd";
/// A kernel's boot under emulation.
const BOOT: Duration = Duration::from_secs(240);
/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(60);

/// A running Debian guest with a shell on its console.
pub struct Linux<'a> {
    guest: RefCell<Guest<'a>>,
}

impl<'a> Linux<'a> {
    /// Boots one with what `with` adds to its configuration, and waits until its shell listens.
    pub fn boot(
        host: &'a Host,
        name: &str,
        memory_mib: u32,
        with: impl FnOnce(Config) -> Config,
    ) -> Outcome<Linux<'a>> {
        let [kernel, ramdisk] = [host.lab_file(KERNEL)?, host.lab_file(RAMDISK)?];
        let config = with(Config::new(name, &kernel.display().to_string(), memory_mib))
            .string("ramdisk", &ramdisk.display().to_string())
            .string("cmdline", "console=hvc0");
        let mut guest = Guest::create(host, config)?;
        guest.console.wait_for("lab: guest up", BOOT)?;
        let linux = Linux {
            guest: RefCell::new(guest),
        };
        // From now on only what commands write is seen, not what is typed nor what the kernel says.
        linux.demand("stty -echo; PS1=; PS2=; dmesg -n 1")?;
        Ok(linux)
    }

    /// The domain's number.
    pub fn dom(&self) -> u16 {
        self.guest.borrow().dom
    }

    /// Has its shell run a line: the exit status, and what was written.
    pub fn run(&self, line: &str) -> Outcome<(i32, String)> {
        let mut guest = self.guest.borrow_mut();
        guest
            .console
            .send(&format!("{line}\necho \"lab-done $?\""))?;
        let mut said = Vec::new();
        let status = guest.console.wait_line(line, COMMAND, |answer| {
            let status = answer
                .split_once("lab-done ")
                .and_then(|(_, status)| status.trim().parse().ok());
            if status.is_none() {
                said.push(answer.trim_end().to_owned());
            }
            status
        })?;
        Ok((status, said.join("\n")))
    }

    /// The same, and it must succeed; what was written.
    pub fn demand(&self, line: &str) -> Outcome<String> {
        match self.run(line)? {
            (0, said) => Ok(said),
            (status, said) => Err(Stop::Failed(format!(
                "in the guest: `{line}` ended with {status}: {said}"
            ))),
        }
    }

    /// Destroys it.
    pub fn destroy(self) -> Outcome {
        self.guest.into_inner().destroy()
    }
}
