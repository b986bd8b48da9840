//! Programs that call `xl` get ours by that name, and notice nothing: Debian's xendomains and Ganeti. A shell that
//! completes its command lines calls it, too.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use scenarios::{OrStop, Outcome, demand};

use crate::real::cases::completions;
use crate::real::host::{Host, Ran};
use crate::real::snapshot::leaves_nothing;

const KERNEL: &str = "/lab/guests/driver";
const WAIT: Duration = Duration::from_secs(60);

/// Unpacks what only some scenarios need into this dom0.
pub fn unpack_extras(host: &Host) -> Outcome {
    let archive = host.lab_file("/lab/debian/extras.cpio")?;
    let line = format!("cd / && busybox cpio -idu < {}", archive.display());
    host.run(&["sh", "-c", &line])?.succeeded().map(|_| ())
}

/// A folder in which `xl` is ours.
fn our_xl(host: &Host) -> Outcome<String> {
    let folder = host.scratch("bin");
    std::fs::create_dir_all(&folder).or_broken("make a folder")?;
    let ours = host.run(&["which", "xlrs"])?.succeeded()?.stdout;
    symlink(ours.trim(), folder.join("xl")).or_broken("name xlrs xl")?;
    Ok(format!("PATH={}:/usr/sbin:/usr/bin", folder.display()))
}

/// All of them.
pub fn all(host: &Host) -> Outcome {
    unpack_extras(host)?;
    let path = our_xl(host)?;
    let said = host.run(&["env", &path, "xl", "--version"])?.succeeded()?;
    demand!(said.stdout.contains("xlrs"), "xl is not ours: {said}");
    leaves_nothing(host, || completions::in_bash(host))?;
    leaves_nothing(host, || xendomains(host, &path))?;
    leaves_nothing(host, || ganeti(&Ganeti { host, path: &path }))
}

/// The init script with its own settings starts what is in /etc/xen/auto, once, and at the end shuts it down:
/// its try to save comes first, and is told that there is no saving yet.
fn xendomains(host: &Host, path: &str) -> Outcome {
    host.step("xendomains: start");
    let auto = Path::new("/etc/xen/auto");
    let kernel = host.lab_file(KERNEL)?;
    let names = ["first", "second"];
    for name in names {
        let text = format!(
            "# {name}\nname = '{name}'\nkernel = '{}'\nmemory = 32\n",
            kernel.display()
        );
        std::fs::write(auto.join(format!("{name}.cfg")), text).or_broken("write a file")?;
    }
    let call = |what: &str| {
        let words = ["env", path, "/etc/init.d/xendomains", what];
        host.run(&words)?.succeeded()
    };
    let started = call("start")?;
    for name in names {
        let line = format!("Starting Xen domain {name} (from /etc/xen/auto/{name}.cfg)");
        demand!(started.stdout.contains(&line), "{started}");
        host.run(&["xlrs", "domid", name])?.succeeded()?;
    }
    demand!(!started.stdout.contains("failed"), "{started}");
    host.step("xendomains: start again");
    let again = call("start")?;
    demand!(again.stdout.contains("first already running"), "{again}");
    host.step("xendomains: stop");
    let stopped = call("stop")?;
    for name in names {
        demand!(
            stopped
                .stdout
                .contains(&format!("Saving Xen domain {name} ("))
                && stopped
                    .stdout
                    .contains(&format!("Shutting down Xen domain {name} (")),
            "{stopped}"
        );
        std::fs::remove_file(auto.join(format!("{name}.cfg"))).or_broken("remove a file")?;
        host.wait_for("the guest is gone", WAIT, || {
            let ran = host.run(&["xlrs", "domid", name])?;
            Ok((ran.status != 0).then_some(()))
        })?;
    }
    let _ = std::fs::remove_dir("/var/lib/xen/save");
    Ok(())
}

/// Calls as Ganeti's hypervisor for Xen PV does, and what it makes of the answers.
struct Ganeti<'a> {
    host: &'a Host,
    path: &'a str,
}

/// A row of `xl list` as it is taken apart: exactly six words.
#[derive(Debug)]
struct Row {
    name: String,
    domid: u32,
    memory: u32,
    vcpus: u32,
    state: String,
    _seconds: f64,
}

impl Ganeti<'_> {
    fn xl(&self, words: &[&str]) -> Outcome<Ran> {
        self.host.run(&[&["env", self.path, "xl"], words].concat())
    }

    fn instances(&self) -> Outcome<Vec<Row>> {
        let said = self.xl(&["list"])?.succeeded()?;
        let mut rows = Vec::new();
        for line in said.stdout.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            demand!(words.len() == 6, "a row has not six words: {line:?}");
            let number = |at: usize| words[at].parse::<u32>().or_fail(format!("{line:?}"));
            rows.push(Row {
                name: words[0].into(),
                domid: number(1)?,
                memory: number(2)?,
                vcpus: number(3)?,
                state: words[4].into(),
                _seconds: words[5].parse().or_fail(format!("{line:?}"))?,
            });
        }
        Ok(rows)
    }

    fn instance(&self, name: &str) -> Outcome<Option<Row>> {
        Ok(self.instances()?.into_iter().find(|row| row.name == name))
    }

    /// Lines `key : value` of info; those that it asks for are there, as numbers.
    fn node(&self) -> Outcome {
        let said = self.xl(&["info"])?.succeeded()?;
        for key in [
            "total_memory",
            "free_memory",
            "nr_cpus",
            "nr_nodes",
            "cores_per_socket",
            "threads_per_core",
            "xen_major",
            "xen_minor",
        ] {
            let line = said.stdout.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                (name.trim() == key).then(|| value.trim().to_string())
            });
            let value = line.or_fail(format!("info says nothing of {key}"))?;
            value
                .parse::<u64>()
                .or_fail(format!("{key} is {value:?}"))?;
        }
        Ok(())
    }
}

fn ganeti(ganeti: &Ganeti<'_>) -> Outcome {
    let host = ganeti.host;
    host.step("Ganeti: help, info, list");
    ganeti.xl(&["help"])?.succeeded()?;
    ganeti.node()?;
    let rows = ganeti.instances()?;
    demand!(rows.len() == 1 && rows[0].domid == 0, "{rows:?}");

    host.step("Ganeti: create, paused");
    let kernel = host.lab_file(KERNEL)?;
    let bridge = host.bridge()?;
    let image = host.zero_file("ganeti.img", 8)?;
    // As it is written by Ganeti, keys that xl ignores included.
    let text = format!(
        "# this is autogenerated by Ganeti, please do not edit\n#\nkernel = '{}'\nmemory = 32\nmaxmem = 48\nvcpus = 1\n\
         cpu = \"0\"\ncpu_cap=50\ncpu_weight=300\nname = 'inst1.example.com'\n\
         vif = ['mac=aa:00:00:5c:00:01, bridge={bridge}']\ndisk = ['file:{},xvda,w']\nroot = '/dev/xvda'\n\
         on_poweroff = 'destroy'\non_reboot = 'restart'\non_crash = 'restart'\nextra = 'ro'\nbootargs=''\n",
        kernel.display(),
        image.display()
    );
    let file = host
        .write_file("inst1.example.com", text)?
        .display()
        .to_string();
    let name = "inst1.example.com";
    ganeti.xl(&["create", "-p", &file])?.succeeded()?;
    let row = ganeti.instance(name)?.or_fail("it is not in the list")?;
    demand!(
        row.state.contains('p') && row.memory == 32 && row.vcpus == 1,
        "{row:?}"
    );
    // Twice is an error.
    demand!(
        ganeti.xl(&["create", "-p", &file])?.status != 0,
        "created twice"
    );
    ganeti.xl(&["unpause", name])?.succeeded()?;

    host.step("Ganeti: mem-set, rename, debug R");
    ganeti.xl(&["mem-set", name, "32"])?.succeeded()?;
    ganeti
        .xl(&["rename", name, "inst2.example.com"])?
        .succeeded()?;
    ganeti
        .xl(&["rename", "inst2.example.com", name])?
        .succeeded()?;
    // It kills a stopped node's hypervisor with R; another key will do here.
    ganeti.xl(&["debug", "r"])?.succeeded()?;

    host.step("Ganeti: reboot, until another number is in the list");
    ganeti.xl(&["reboot", name])?.succeeded()?;
    let old = row.domid;
    host.wait_for("another number", WAIT, || {
        Ok(ganeti.instance(name)?.filter(|row| row.domid != old))
    })?;

    host.step("Ganeti: shutdown with a limit, destroy");
    let line = format!("{} timeout 60 xl shutdown -w {name}", ganeti.path);
    host.run(&["sh", "-c", &line])?.succeeded()?;
    host.wait_for("the instance is gone", WAIT, || {
        Ok(ganeti.instance(name)?.is_none().then_some(()))
    })?;
    ganeti.xl(&["create", &file])?.succeeded()?;
    ganeti.xl(&["destroy", name])?.succeeded()?;
    demand!(ganeti.instance(name)?.is_none(), "destroyed, but listed");
    // What is not there cannot be stopped, and that is told.
    for verb in ["destroy", "shutdown", "reboot", "pause", "unpause"] {
        let ran = ganeti.xl(&[verb, name])?;
        demand!(ran.status == 1 && ran.stderr.contains(name), "{ran}");
    }
    Ok(())
}
