//! Route C: a stock xl of 4.19 and later declares disks with `backendtype=tap` as vbd3, beside the kernel's
//! own.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Signal, kill_process, test_kill_process};
use scenarios::block::round_trip;
use scenarios::{OrStop, Outcome, demand};
use xen_hal::StoreExt;

use crate::real::backend;
use crate::real::driver::Driver;
use crate::real::guest::read_node;
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
        beside_the_kernels(host, &kernel, spec)
    })
}

/// A guest of xl with a disk of ours and one of the kernel's back end, which is loaded meanwhile.
fn beside_the_kernels(host: &Host, kernel: &str, spec: impl Fn(&str, &Path) -> String) -> Outcome {
    let [tapped, plain] = [
        host.zero_file("tapped.img", 8)?,
        host.zero_file("plain.img", 8)?,
    ];
    let (pid, usual) = backend::process()?;
    host.step("with the kernel's back end loaded ours serves vbd3 alone");
    kill_process(pid, Signal::TERM).or_broken("end the back end")?;
    host.wait_for("the back end ends", Duration::from_secs(10), || {
        Ok(test_kill_process(pid).is_err().then_some(()))
    })?;
    host.run(&["modprobe", "xen-blkback"])?.succeeded()?;
    let words: Vec<&str> = usual.iter().map(String::as_str).collect();
    let refused = host.run(&words)?;
    demand!(
        refused.status == 1 && refused.stderr.contains("--only vbd3"),
        "not refused: {refused}"
    );
    let mut alone = usual.clone();
    alone.extend(["--only", "vbd3"].map(String::from));
    backend::start(&alone)?;
    let text = format!(
        "name = \"both\"\ntype = \"pv\"\nkernel = \"{kernel}\"\nmemory = 32\n\
         disk = ['{}', 'format=raw,vdev=xvdb,access=rw,target={}']\n",
        spec("xvda", &tapped),
        plain.display()
    );
    let config = host.write_file("both.cfg", text)?.display().to_string();
    host.run(&["xl", "create", &config])?.succeeded()?;
    let guest = Driver::adopt(host, "both")?;
    for (number, class, image) in [(51712, "vbd3", &tapped), (51728, "vbd", &plain)] {
        let used = guest.command(&format!("disk use {number}"))?;
        demand!(used.is_ok(), "disk use {number}: {used:?}");
        let mut file = std::fs::File::open(image).or_broken("open the image")?;
        round_trip(&mut guest.disk(), &mut file, number, 4)?;
        let back = format!("/local/domain/0/backend/{class}/{}/{number}", guest.dom());
        let state = read_node(&host.store()?, &format!("{back}/state"))?;
        demand!(state == "4", "{back} is in state {state}");
    }
    let mut broker = std::fs::read_dir("/run/xlrs/blkback").or_broken("list the accounts")?;
    let ours = broker.all(|entry| {
        let name = entry.map(|entry| entry.file_name().into_string());
        matches!(name, Ok(Ok(name)) if name.contains("-51712-"))
    });
    demand!(ours, "ours serves a disk of the kernel's, too");
    host.run(&["xl", "shutdown", "-w", "both"])?.succeeded()?;
    host.run_toolstack(&["destroy", "both"])?;
    host.run(&["rmmod", "xen-blkback"])?.succeeded()?;
    backend::restart_as(host, &usual)
}
