//! A guest whose boot loader is GRUB, itself a PV guest: the kernel comes from the disk.

use std::time::Duration;

use scenarios::{OrStop, Outcome, demand};

use crate::real::cases::callers::unpack_extras;
use crate::real::guest::{Config, Guest};
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

/// GRUB, a kernel's boot and a read of 64 MiB, under emulation.
const TIMEOUT: Duration = Duration::from_secs(300);

/// What GRUB finds on the disk.
const GRUB_CFG: &str = "set timeout=0\nmenuentry 'Debian' {\n    linux /boot/vmlinuz console=hvc0 from=grub lab.run=true\n    \
                        initrd /boot/initrd\n}\n";

/// Boots Debian's kernel and ramdisk from an ext4 file system.
pub fn boot(host: &Host) -> Outcome {
    unpack_extras(host)?;
    let [kernel, ramdisk] = [
        host.lab_file("/lab/debian/vmlinuz")?,
        host.lab_file("/lab/debian/initrd")?,
    ];
    host.step("make a disk with a kernel and grub.cfg");
    let tree = host.scratch("tree");
    let boot = tree.join("boot");
    std::fs::create_dir_all(boot.join("grub")).or_broken("make a folder")?;
    std::fs::copy(kernel, boot.join("vmlinuz")).or_broken("copy the kernel")?;
    std::fs::copy(ramdisk, boot.join("initrd")).or_broken("copy the ramdisk")?;
    std::fs::write(boot.join("grub/grub.cfg"), GRUB_CFG).or_broken("write grub.cfg")?;
    let image = host.zero_file("grub.img", 96)?;
    let image_text = image.display().to_string();
    host.make_ext4(&image, &tree)?;
    std::fs::remove_dir_all(&tree).or_broken("remove a folder")?;
    leaves_nothing(host, || {
        let text = format!(
            "name='grub'\ntype='pv'\nfirmware='pvgrub64'\nmemory=192\nvcpus=1\ndisk=['{image_text},raw,xvda,w']\n"
        );
        let mut guest = Guest::create(host, Config::text("grub", text))?;
        host.step("GRUB starts the kernel");
        guest.console.wait_for("Linux version", TIMEOUT)?;
        let line = guest.console.wait_for("Command line:", TIMEOUT)?;
        demand!(line.contains("from=grub"), "{line}");
        guest.console.wait_for("lab: exit 0", TIMEOUT)?;
        host.step("it powers off by itself");
        guest.wait_gone()
    })
}
