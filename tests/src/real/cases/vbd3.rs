//! Route C: a stock xl of 4.19 and later declares disks with `backendtype=tap` as vbd3, beside the kernel's
//! own.

use std::os::unix::fs::PermissionsExt;

use scenarios::block::round_trip;
use scenarios::{OrStop, Outcome, demand};
use xen_hal::StoreExt;

use crate::real::driver::Driver;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

/// libxl has one run; ours has nothing left to do.
const SCRIPT: &str = include_str!("../../../../blkback/scripts/block-xlrs");

/// A guest of xl with such a disk, and another that is attached while it runs.
pub fn by_xl(host: &Host) -> Outcome {
    let kernel = host.lab_file("/lab/guests/driver")?.display().to_string();
    let image = host.zero_file("disk.img", 8)?;
    let hot = host.zero_file("hot.img", 8)?;
    let script = host.scratch("block-xlrs");
    std::fs::write(&script, SCRIPT).or_broken("write the script")?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))
        .or_broken("make the script executable")?;
    let spec = |vdev: &str, image: &std::path::Path| {
        format!(
            "backendtype=tap,format=raw,vdev={vdev},access=rw,script={},target={}",
            script.display(),
            image.display()
        )
    };
    leaves_nothing(host, || {
        let text = format!(
            "name = \"tapped\"\ntype = \"pv\"\nkernel = \"{kernel}\"\nmemory = 32\n\
             disk = ['{}']\n",
            spec("xvda", &image)
        );
        let config = host.write_file("xl.cfg", text)?.display().to_string();
        host.step("xl create");
        host.run(&["xl", "create", &config])?.succeeded()?;
        let guest = Driver::adopt(host, "tapped")?;
        let state = |number| {
            let path = format!(
                "/local/domain/0/backend/vbd3/{}/{number}/state",
                guest.dom()
            );
            host.store()?.read_optional(None, &path).or_fail("read")
        };
        let mut file = std::fs::File::open(&image).or_broken("open the image")?;
        round_trip(&mut guest.disk(), &mut file, 0x7a7, 4)?;
        let connected = Some(b"4".to_vec());
        demand!(state(51712)? == connected, "it is not served as vbd3");
        host.step("xl block-attach and block-detach");
        let words = ["xl", "block-attach", "tapped", &spec("xvdb", &hot)];
        host.run(&words)?.succeeded()?;
        let used = guest.command("disk use 51728")?;
        demand!(used.is_ok(), "disk use: {used:?}");
        let mut file = std::fs::File::open(&hot).or_broken("open the image")?;
        round_trip(&mut guest.disk(), &mut file, 0x7a8, 4)?;
        demand!(state(51728)? == connected, "it is not served as vbd3");
        host.run(&["xl", "block-detach", "tapped", "xvdb"])?
            .succeeded()?;
        demand!(state(51728)?.is_none(), "it is still there");
        host.step("xl shutdown");
        host.run(&["xl", "shutdown", "-w", "tapped"])?.succeeded()?;
        host.run_toolstack(&["destroy", "tapped"])?;
        Ok(())
    })
}
