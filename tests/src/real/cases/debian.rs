//! A Debian kernel as PV guest.

use std::time::Duration;

use pv_drivers::pattern;
use scenarios::{Outcome, demand};

use crate::real::guest::{Config, Guest};
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

const KERNEL: &str = "/lab/debian/vmlinuz";
const RAMDISK: &str = "/lab/debian/initrd";
/// A kernel's boot and a copy, under emulation.
const TIMEOUT: Duration = Duration::from_secs(240);

/// Mounts its disk, copies a file, pings dom0; the file's copy is compared in dom0.
pub fn copy_and_ping(host: &Host) -> Outcome {
    let [kernel, ramdisk] = [host.lab_file(KERNEL)?, host.lab_file(RAMDISK)?];
    let bridge = host.bridge()?;
    let image = host.zero_file("root.img", 64)?;
    let tree = host.scratch("tree");
    let mut content = vec![0; 2 << 20];
    pattern::fill(11, 0, &mut content);
    std::fs::create_dir(&tree).map_err(broken)?;
    std::fs::write(tree.join("original"), &content).map_err(broken)?;
    let image_text = image.display().to_string();
    host.step("make an ext4 file system with a file of 2 MiB");
    host.make_ext4(&image, &tree)?;
    let work = "mount -t ext4 /dev/xvda /mnt && cp /mnt/original /mnt/copy && sync && \
                md5sum /mnt/original /mnt/copy && ping -c 3 -w 30 10.0.0.1 && umount /mnt";
    leaves_nothing(host, || {
        let config = Config::new("debian", &kernel.display().to_string(), 192)
            .string("ramdisk", &ramdisk.display().to_string())
            .string(
                "cmdline",
                &format!("console=hvc0 lab.disk lab.ip=10.0.0.2/24 lab.run={work}"),
            )
            .disk(&image)
            .vif(bridge);
        let mut guest = Guest::create(host, config)?;
        host.step("the kernel boots");
        guest.console.wait_for("lab: guest up", TIMEOUT)?;
        host.step("it mounts, copies, pings");
        let line = guest.console.wait_for("lab: exit", TIMEOUT)?;
        demand!(
            line.trim_end().ends_with("exit 0"),
            "{line}; the console:\n{}",
            guest.console.tail()
        );
        demand!(
            guest.console.has_seen(" 0% packet loss")?,
            "ping lost packets:\n{}",
            guest.console.tail()
        );
        host.step("it powers off by itself");
        guest.wait_gone()
    })?;
    host.step("compare the copy in the image");
    let mounted = host.scratch("mounted");
    std::fs::create_dir(&mounted).map_err(broken)?;
    let mounted_text = mounted.display().to_string();
    host.run(&[
        "mount",
        "-t",
        "ext4",
        "-o",
        "ro,loop",
        &image_text,
        &mounted_text,
    ])?
    .succeeded()?;
    let copied = std::fs::read(mounted.join("copy"));
    host.run(&["umount", &mounted_text])?.succeeded()?;
    let copied = copied.map_err(broken)?;
    demand!(
        copied == content,
        "the copy has {} bytes that are not those of the original",
        copied.len()
    );
    Ok(())
}

fn broken(error: std::io::Error) -> scenarios::Stop {
    scenarios::Stop::Broken(error.to_string())
}
