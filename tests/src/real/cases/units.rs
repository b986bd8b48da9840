//! Our units under a real systemd, which runs dom0's daemons from a namespace of its own.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use scenarios::{OrStop, Outcome, Stop, demand};
use xen_hal::Store;

use crate::real::cases::callers::unpack_extras;
use crate::real::driver::Driver;
use crate::real::host::{Host, Ran};

const WAIT: Duration = Duration::from_secs(60);

/// What is started, in this order.
const UNITS: [&str; 6] = [
    "xenstored",
    "xlrs-console",
    "blkback",
    "netback",
    "xlrs",
    "xlrs-guests",
];

/// Started, killed one by one under a guest, and at the end the guest is shut down.
pub fn all(host: &Host) -> Outcome {
    unpack_extras(host)?;
    host.step("the daemons of the lab stop, systemd starts");
    host.toolstack(&["host", "stop"])?;
    for program in ["xlrs", "xenstored", "blkback", "netback"] {
        let line = format!("ln -sf /lab/bin/{program} /usr/sbin/{program}");
        host.run(&["sh", "-c", &line])?.succeeded()?;
    }
    host.run(&[
        "sh",
        "-c",
        "mkdir -p /etc/systemd/system && cp /lab/units/* /etc/systemd/system/",
    ])?
    .succeeded()?;
    let names: Vec<String> = UNITS.iter().map(|unit| format!("{unit}.service")).collect();
    let with = |words: &[&str]| -> Vec<String> {
        let words = words.iter().map(|word| word.to_string());
        words.chain(names.iter().cloned()).collect()
    };
    let run = |words: Vec<String>| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        host.run(&words)?.succeeded()
    };
    let verified = run(with(&["systemd-analyze", "verify", "--man=no"]))?;
    demand!(
        !verified.stderr.contains(".service:"),
        "systemd finds fault: {verified}"
    );
    run(with(&["systemctl", "--root=/", "enable"]))?;
    let systemd = Systemd::start(host)?;
    for unit in UNITS {
        host.wait_for(&format!("{unit} runs"), WAIT, || {
            let ran = systemd.ask(&["is-active", unit])?;
            Ok((ran.stdout.trim() == "active").then_some(()))
        })
        .map_err(|stop| systemd.with_status(stop, unit))?;
    }

    host.step("a guest with a disk");
    let image = host.zero_file("disk.img", 16)?;
    let driver = Driver::create(host, "unit", |config| config.disk(&image))?;
    driver.fill_and_check(1, 0, 1024)?;

    host.step(
        "the store daemon is killed: this connection goes on, with its watch and its transaction",
    );
    let store = host.store()?;
    let read = |path: &str| -> Outcome<String> {
        let value = store.read(None, path).or_fail(format!("read {path}"))?;
        Ok(String::from_utf8_lossy(&value).into_owned())
    };
    store.write(None, "/unit/a", b"1").or_fail("write")?;
    store.watch("/unit/a", "mine").or_fail("watch")?;
    store.next_event().or_fail("the first event")?;
    let transaction = store.start().or_fail("begin a transaction")?;
    store
        .write(Some(transaction), "/unit/b", b"2")
        .or_fail("write in a transaction")?;
    for times in 1..=5 {
        systemd.kill("xenstored", times)?;
        demand!(read("/unit/a")? == "1", "/unit/a is not what it was");
    }
    store
        .end(transaction, true)
        .or_fail("commit after the daemon's death")?;
    demand!(read("/unit/b")? == "2", "/unit/b was not committed");
    store.write(None, "/unit/a", b"3").or_fail("write")?;
    let event = host.wait_for("the watch's event", WAIT, || {
        store.next_event().or_fail("take an event")
    })?;
    demand!(
        event.path == "/unit/a" && event.token == "mine",
        "{event:?}"
    );
    store.rm(None, "/unit").or_fail("remove")?;

    for unit in ["blkback", "netback"] {
        host.step(format!("{unit} is killed"));
        systemd.kill(unit, 1)?;
    }
    driver.fill_and_check(2, 2048, 1024)?;
    driver.ping()?;
    // The guest's terminal goes with the daemon, so that there is no more talk after it.
    for unit in ["xlrs-console", "xlrs"] {
        host.step(format!("{unit} is killed"));
        systemd.kill(unit, 1)?;
    }
    host.step("xlrs-guests stops: the guest shuts down");
    systemd.ask(&["stop", "xlrs-guests"])?.succeeded()?;
    // It has ended; the supervisor removes it.
    host.wait_for("the guest is gone", WAIT, || {
        let listed = host.run(&["xlrs", "domid", "unit"])?;
        Ok((listed.status != 0).then_some(()))
    })?;
    let stop = ["stop", "xlrs", "netback", "blkback", "xlrs-console"];
    systemd.ask(&stop)?.succeeded().map(|_| ())
}

/// systemd as the first process of a namespace; killed with it at the end.
struct Systemd<'a> {
    host: &'a Host,
    unshare: Child,
    pid: String,
}

impl<'a> Systemd<'a> {
    fn start(host: &'a Host) -> Outcome<Systemd<'a>> {
        // A new /proc, without what Xen has below the old one: that is for our unit to mount.
        let init = "umount /proc/xen && mount -t proc proc /proc && \
                    exec /usr/lib/systemd/systemd --log-target=console --show-status=0";
        let unshare = Command::new("unshare")
            .args(["--pid", "--mount", "--cgroup", "--fork", "--kill-child"])
            .args(["sh", "-c", init])
            .env("container", "lab")
            .stdin(Stdio::null())
            .spawn()
            .or_broken("run unshare")?;
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let mut systemd = Systemd {
            host,
            unshare,
            pid: String::new(),
        };
        systemd.pid = host.wait_for("systemd", WAIT, || {
            let pid = std::fs::read_to_string(&children).unwrap_or_default();
            Ok(Some(pid.trim().to_string()).filter(|pid| !pid.is_empty()))
        })?;
        Ok(systemd)
    }

    /// Runs systemctl in the namespace: from outside systemd does not see who asks.
    fn ask(&self, words: &[&str]) -> Outcome<Ran> {
        let enter = [
            "nsenter",
            "--target",
            &self.pid,
            "--pid",
            "--mount",
            "systemctl",
        ];
        self.host.run(&[&enter, words].concat())
    }

    /// Kills a unit's process, and waits until systemd has started it so many times again.
    fn kill(&self, unit: &str, times: u32) -> Outcome {
        self.ask(&["kill", "--signal=KILL", "--kill-whom=main", unit])?
            .succeeded()?;
        let wanted = format!("NRestarts={times}\nActiveState=active\n");
        let show = ["show", "-p", "NRestarts", "-p", "ActiveState", unit];
        self.host
            .wait_for(&format!("{unit} runs again"), WAIT, || {
                Ok((self.ask(&show)?.stdout == wanted).then_some(()))
            })
            .map_err(|stop| self.with_status(stop, unit))
    }

    /// What systemd says of a unit, for a failure.
    fn with_status(&self, stop: Stop, unit: &str) -> Stop {
        let said = self.ask(&["status", "--no-pager", unit]);
        let said = said.map_or_else(|_| String::new(), |ran| ran.stdout + &ran.stderr);
        Stop::Failed(format!("{}\n{said}", stop.reason()))
    }
}

impl Drop for Systemd<'_> {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}
