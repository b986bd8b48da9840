//! Commands that change running guests, and what becomes of guests that end.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use scenarios::{OrStop, Outcome, demand};
use xen_hal::StoreExt;

use crate::real::driver::Driver;
use crate::real::guest::{Config, Guest, find};
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

const KERNEL: &str = "/lab/guests/driver";
const DUMPS: &str = "/var/lib/xen/dump";
const AUTOSTART: &str = "/etc/xlrs/auto";
const WAIT: Duration = Duration::from_secs(60);
/// A kernel's boot under emulation.
const BOOT: Duration = Duration::from_secs(240);

/// Dumps, restarts under another name, autostart, `run`, and attachments that are killed half way.
pub fn all(host: &Host) -> Outcome {
    let kernel = host.lab_file(KERNEL)?.display().to_string();
    leaves_nothing(host, || {
        dumped(host)?;
        crashed(host)?;
        set_aside(host)?;
        looping(host)?;
        host.step("run without a configuration file");
        let words = [
            "run",
            &kernel,
            "--name",
            "quick",
            "--memory",
            "24M",
            "vcpus=2",
            "cpus=\"0\"",
            "cpu_weight=300",
        ];
        host.toolstack(&words)?;
        let row = find(host, "quick")?.or_fail("quick is not in the list")?;
        demand!(row[2] == "24" && row[3] == "1" || row[3] == "2", "{row:?}");
        let share = host.toolstack(&["sched-credit2", "-d", "quick"])?;
        demand!(share.stdout.contains(" 300 "), "{share}");
        host.toolstack(&["destroy", "quick"])?;
        autostarted(host, &kernel)
    })?;
    killed(host)
}

/// An ELF core file with at least this much of memory.
fn check_dump(path: &Path, mib: u64) -> Outcome {
    let what = path.display();
    let mut file = std::fs::File::open(path).or_fail(format!("open {what}"))?;
    let mut head = [0u8; 18];
    std::io::Read::read_exact(&mut file, &mut head).or_fail(format!("read {what}"))?;
    demand!(head.starts_with(b"\x7fELF\x02"), "{what} is no ELF file");
    demand!(head[16] == 4, "{what} is no core file");
    let len = file.metadata().or_broken(format!("look at {what}"))?.len();
    demand!(
        (mib << 20..(mib + 2) << 20).contains(&len),
        "{what} has {len} bytes for a guest of {mib} MiB"
    );
    Ok(())
}

fn dumped(host: &Host) -> Outcome {
    host.step("dump-core");
    let driver = Driver::create(host, "dumped", |config| config)?;
    let file = host.scratch("core");
    host.toolstack(&["dump-core", "dumped", &file.display().to_string()])?;
    check_dump(&file, 32)?;
    // What the guest has is in it: its own command line's neighbour, the magic of start_info.
    let bytes = std::fs::read(&file).or_broken("read the dump")?;
    let magic = b"xen-3.0-x86_64";
    demand!(
        bytes.windows(magic.len()).any(|part| part == magic),
        "start_info is not in the dump"
    );
    std::fs::remove_file(&file).or_broken("remove the dump")?;
    driver.ping()?;
    driver.shutdown()
}

fn crashed(host: &Host) -> Outcome {
    host.step("on_crash=coredump-destroy");
    let mut driver = Driver::create(host, "cored", |config| {
        config.string("on_crash", "coredump-destroy")
    })?;
    driver.tell("crash")?;
    driver.guest().wait_gone()?;
    let path = PathBuf::from(DUMPS).join("cored");
    check_dump(&path, 32)?;
    let log = supervisor_log()?;
    let place = |line: &&str| {
        line.contains("cored") && line.contains("vCPU 0 was in kernel mode at rip 0x")
    };
    let place = log.lines().find(place);
    println!(
        "    {}",
        place.or_fail("where it crashed is not in the log")?
    );
    std::fs::remove_file(&path).or_broken("remove the dump")?;
    std::fs::remove_dir(DUMPS).or_broken("remove the folder of dumps")
}

fn set_aside(host: &Host) -> Outcome {
    host.step("on_crash=rename-restart");
    let mut driver = Driver::create(host, "aside", |config| {
        config.string("on_crash", "rename-restart")
    })?;
    let before = driver.dom();
    driver.tell("crash")?;
    let kept = host.wait_for("the guest is set aside and made again", WAIT, || {
        let list = host.toolstack(&["list"])?.stdout;
        let rows: Vec<Vec<String>> = list
            .lines()
            .map(|row| row.split_whitespace().map(String::from).collect())
            .collect();
        let kept = rows.iter().find(|row| row[0].starts_with("aside-2"));
        let new = rows.iter().find(|row| row[0] == "aside");
        Ok(match (kept, new) {
            (Some(kept), Some(new)) if new[1] != before.to_string() => Some(kept.clone()),
            _ => None,
        })
    })?;
    demand!(
        kept[1] == before.to_string() && kept[4].contains("sc"),
        "{kept:?}"
    );
    let dumped = host.scratch("aside-core");
    host.toolstack(&["dump-core", &kept[0], &dumped.display().to_string()])?;
    check_dump(&dumped, 32)?;
    std::fs::remove_file(&dumped).or_broken("remove the dump")?;
    host.toolstack(&["destroy", &kept[0]])?;
    host.toolstack(&["destroy", "aside"])?;
    driver.guest().wait_gone()
}

/// A guest that ends as soon as it is up, each time. Between two of its lives it is there and can be destroyed.
fn looping(host: &Host) -> Outcome {
    host.step("a guest that ends again and again");
    // It says a few lines and powers off.
    let kernel = host.lab_file("/lab/guests/hello")?;
    let config = Config::new("looping", &kernel.display().to_string(), 16);
    let config = config
        .string("on_poweroff", "restart")
        .string("cmdline", "exit");
    let file = config.write(host, "looping.cfg")?.display().to_string();
    host.toolstack(&["create", "-q", &file])?;
    // The first time it is created again at once, then after 1 s, then after 2 s: it lies there meanwhile.
    let said = host.wait_for("its third life's end", WAIT, || {
        let log = supervisor_log()?;
        let said = |line: &&str| line.contains("looping") && line.contains("is created again in");
        let said: Vec<String> = log.lines().filter(said).map(String::from).collect();
        Ok((said.len() > 1).then_some(said))
    })?;
    println!("    {}", said.join("\n    "));
    demand!(
        said[0].contains("again in 1 s") && said[1].contains("again in 2 s"),
        "{said:?}"
    );
    let row = find(host, "looping")?.or_fail("it is not there")?;
    demand!(row[4].contains('s'), "it is no ended guest: {row:?}");
    host.toolstack(&["shutdown", "-w", "looping"])?;
    std::thread::sleep(Duration::from_millis(2500));
    let after = find(host, "looping")?;
    demand!(after.is_none(), "after its end came {after:?}");
    Ok(())
}

fn supervisor_log() -> Outcome<String> {
    std::fs::read_to_string("/var/log/xlrs/supervisor.log").or_broken("read the supervisor's log")
}

/// The supervisor's process.
fn supervisor(host: &Host) -> Outcome<Option<String>> {
    let pid = host
        .store()?
        .read_optional(None, "/tool/xlrs/supervisor")
        .or_broken("read the supervisor's number")?;
    Ok(pid.map(|pid| String::from_utf8_lossy(&pid).into_owned()))
}

/// A supervisor that starts for the first time since a boot starts the guests in the folder.
fn autostarted(host: &Host, kernel: &str) -> Outcome {
    host.step("autostart");
    std::fs::create_dir_all(AUTOSTART).or_broken("make the folder")?;
    let file = Path::new(AUTOSTART).join("10-auto.cfg");
    let broken = Path::new(AUTOSTART).join("05-broken.cfg");
    let text = format!("name=\"auto\"\nkernel=\"{kernel}\"\nmemory=32\n");
    std::fs::write(&file, text).or_broken("write a configuration")?;
    std::fs::write(&broken, "name=\n").or_broken("write a configuration")?;
    let _ = std::fs::remove_file("/run/xlrs/autostarted");
    let restart = || {
        let old = supervisor(host)?.or_broken("no supervisor runs")?;
        host.run(&["kill", "-9", &old])?.succeeded()?;
        host.toolstack(&["host", "start", "--quiet"])?;
        host.wait_for("another supervisor", WAIT, || {
            Ok(supervisor(host)?.filter(|new| *new != old))
        })
    };
    restart()?;
    let first = host.wait_for("the guest is started", WAIT, || find(host, "auto"))?;
    // Once after a boot is enough, and the guest goes on.
    restart()?;
    let second = find(host, "auto")?.or_fail("auto is gone")?;
    demand!(first[1] == second[1], "{first:?}, then {second:?}");
    host.toolstack(&["destroy", "auto"])?;
    restart()?;
    std::thread::sleep(Duration::from_millis(500));
    demand!(find(host, "auto")?.is_none(), "auto was started twice");
    std::fs::remove_dir_all(AUTOSTART).or_broken("remove the folder")
}

/// `kill -9` at many moments of block-attach and block-detach.
fn killed(host: &Host) -> Outcome {
    host.step("block-attach and block-detach, killed");
    let image = host.zero_file("hot.img", 4)?.display().to_string();
    let driver = Driver::create(host, "killed", |config| config)?;
    let spec = format!("{image},raw,xvdb,w");
    let attach = ["block-attach", "killed", &spec];
    let detach = ["block-detach", "-f", "killed", "xvdb"];
    leaves_nothing(host, || {
        for after_ms in (0..40).map(|step| step * 2) {
            for words in [attach.as_slice(), &detach] {
                let mut child = Command::new("xlrs")
                    .args(words)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .or_broken("run xlrs")?;
                std::thread::sleep(Duration::from_millis(after_ms));
                let _ = child.kill();
                child.wait().or_broken("wait for xlrs")?;
            }
        }
        // The next command finds its way, whatever there is.
        let listed = |host: &Host| -> Outcome<bool> {
            let list = host.toolstack(&["block-list", "killed"])?.stdout;
            Ok(list.contains("51728"))
        };
        host.wait_for("an attachment that is whole", WAIT, || {
            if listed(host)? {
                host.run_toolstack(&detach)?;
                return Ok(None);
            }
            let ran = host.run_toolstack(&attach)?;
            Ok((ran.status == 0).then_some(()))
        })?;
        host.toolstack(&detach)?;
        demand!(!listed(host)?, "the disk is still there");
        Ok(())
    })?;
    driver.ping()?;
    driver.shutdown()
}

/// A Linux guest gets and loses a disk and a card, and grows and shrinks, while it runs.
pub fn hotplug(host: &Host) -> Outcome {
    let [kernel, ramdisk] = ["/lab/debian/vmlinuz", "/lab/debian/initrd"];
    let (kernel, ramdisk) = (host.lab_file(kernel)?, host.lab_file(ramdisk)?);
    let bridge = host.bridge()?;
    let image = host.zero_file("hot.img", 8)?;
    let work = "while [ ! -b /dev/xvdb ]; do sleep 1; done; echo lab-hot | dd of=/dev/xvdb bs=512 conv=sync; \
                sync; echo lab: disk written; while [ -b /dev/xvdb ]; do sleep 1; done; \
                echo lab: disk gone; while [ ! -d /sys/class/net/eth0 ]; do sleep 1; done; \
                echo lab: card there; while [ -d /sys/class/net/eth0 ]; do sleep 1; done; \
                echo lab: card gone; cat /proc/meminfo; sleep 100000";
    leaves_nothing(host, || {
        let config = Config::new("hot", &kernel.display().to_string(), 160)
            .string("ramdisk", &ramdisk.display().to_string())
            .line("maxmem = 256")
            // Quoted, as a kernel panics that finds more than 32 words it does not know.
            .line(&format!("cmdline = 'console=hvc0 lab.run=eval \"{work}\"'"));
        let mut guest = Guest::create(host, config)?;
        guest.console.wait_for("lab: guest up", BOOT)?;
        host.step("block-attach");
        let spec = format!("{},raw,xvdb,w", image.display());
        host.toolstack(&["block-attach", "hot", &spec])?;
        guest.console.wait_for("lab: disk written", WAIT)?;
        host.step("block-detach, which the guest agrees to");
        host.toolstack(&["block-detach", "hot", "xvdb"])?;
        guest.console.wait_for("lab: disk gone", WAIT)?;
        let bytes = std::fs::read(&image).or_broken("read the image")?;
        demand!(
            bytes.starts_with(b"lab-hot\n"),
            "what the guest wrote is not in the image"
        );
        host.step("network-attach and -detach");
        host.toolstack(&["network-attach", "hot", &format!("bridge={bridge}")])?;
        guest.console.wait_for("lab: card there", WAIT)?;
        host.toolstack(&["network-detach", "hot", "0"])?;
        guest.console.wait_for("lab: card gone", WAIT)?;
        host.step("less memory, then more than at the start");
        for mib in ["128", "224"] {
            host.toolstack(&["mem-set", "hot", mib])?;
            let what = format!("the guest has {mib} MiB");
            host.wait_for(&what, WAIT, || {
                let row = find(host, "hot")?.or_fail("hot is not in the list")?;
                Ok((row[2] == mib).then_some(()))
            })?;
        }
        guest.destroy()
    })
}
