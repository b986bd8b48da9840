//! Image formats under a guest: what it writes is in the image as qemu-img reads it.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pv_drivers::pattern;
use scenarios::block::BlockGuest;
use scenarios::{OrStop, Outcome, Stop, demand, demand_eq};

use crate::real::backend;
use crate::real::driver::Driver;
use crate::real::host::Host;
use crate::real::snapshot::leaves_nothing;

/// The host's, with its libraries: dom0 has none.
pub const QEMU_IMG: &str = "/lab/qemu-img/run";
/// What lets a stock xl use them.
const SCRIPT: &str = include_str!("../../../../blkback/scripts/block-xlrs");
/// An image's length, and that of the backing file, in sectors.
const SECTORS: u64 = 32768;
const BASE: u64 = 16384;
/// What stands in images before a guest has them, and what a guest writes.
const OLD: u64 = 17;
const NEW: u64 = 18;
const QEMU: Duration = Duration::from_secs(100);

/// An image: its format for xlrs and for qemu-img, how it is made of `base` (raw, half as long), whether it
/// has the base's content, and whether it may be written.
struct Image {
    name: &'static str,
    format: &'static str,
    qemu: &'static str,
    make: &'static str,
    has_base: bool,
    writable: bool,
}

const IMAGES: [Image; 7] = [
    Image {
        name: "qcow2",
        format: "qcow2",
        qemu: "qcow2",
        make: "create -q -f qcow2 disk 16M",
        has_base: false,
        writable: true,
    },
    Image {
        name: "qcow2 with a backing file",
        format: "qcow2",
        qemu: "qcow2",
        make: "create -q -f qcow2 -F raw -b base disk 16M",
        has_base: true,
        writable: true,
    },
    Image {
        name: "qcow2 with compressed clusters",
        format: "qcow2",
        qemu: "qcow2",
        make: "convert -q -c -f raw -O qcow2 whole disk",
        has_base: true,
        writable: true,
    },
    Image {
        name: "dynamic VHD",
        format: "vhd",
        qemu: "vpc",
        make: "convert -q -f raw -O vpc -o subformat=dynamic,force_size=on whole disk",
        has_base: true,
        writable: true,
    },
    Image {
        name: "fixed VHD",
        format: "vhd",
        qemu: "vpc",
        make: "create -q -f vpc -o subformat=fixed,force_size=on disk 16M",
        has_base: false,
        writable: true,
    },
    Image {
        name: "sparse VMDK",
        format: "vmdk",
        qemu: "vmdk",
        make: "convert -q -f raw -O vmdk -o subformat=monolithicSparse whole disk",
        has_base: true,
        writable: false,
    },
    Image {
        name: "stream-optimized VMDK",
        format: "vmdk",
        qemu: "vmdk",
        make: "convert -q -f raw -O vmdk -o subformat=streamOptimized whole disk",
        has_base: true,
        writable: false,
    },
];

/// The images of a scenario, in a folder of their own.
struct Folder<'a> {
    host: &'a Host,
    path: PathBuf,
}

/// Each format by xlrs in one running guest; then by a stock xl.
pub fn all(host: &Host) -> Outcome {
    host.lab_file(QEMU_IMG)?;
    let path = host.scratch("images");
    std::fs::create_dir(&path).or_broken("make a folder")?;
    let folder = Folder { host, path };
    let mut base = vec![0; (BASE * 512) as usize];
    pattern::fill(OLD, 0, &mut base);
    std::fs::write(folder.file("base"), &base).or_broken("write the base")?;
    base.resize((SECTORS * 512) as usize, 0);
    std::fs::write(folder.file("whole"), &base).or_broken("write the base")?;
    leaves_nothing(host, || {
        host.step("images may name files in no folder, so none is opened");
        let refused = &IMAGES[1];
        folder.make(refused)?;
        let guest = Driver::create(host, "formats", |config| config)?;
        let ran = folder.attach(refused)?;
        demand!(ran.status != 0, "a backing file was opened: {ran}");
        demand!(
            ran.stderr.contains("no folder is allowed"),
            "not refused for that: {ran}"
        );
        let allow = ["--backing", &folder.path.display().to_string()].map(String::from);
        let usual = backend::restart_with(host, &allow)?;
        for image in &IMAGES {
            host.step(image.name);
            folder.make(image)?;
            folder.attach(image)?.succeeded()?;
            let used = guest.command("disk use 51728")?;
            used.map_err(|error| Stop::Failed(format!("disk use: {error}")))?;
            folder.used_by(image, &guest)?;
            host.toolstack(&["block-detach", "formats", "xvdb"])?;
            folder.judge(image)?;
        }
        guest.shutdown()?;
        let script = host.scratch("block-xlrs");
        std::fs::write(&script, SCRIPT).or_broken("write the script")?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))
            .or_broken("make the script executable")?;
        for image in [&IMAGES[1], &IMAGES[3]] {
            host.step(format!("{}, by a stock xl", image.name));
            folder.make(image)?;
            folder.with_xl(image, &script)?;
            folder.judge(image)?;
        }
        backend::restart_as(host, &usual)
    })
}

impl Folder<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Runs qemu-img in the folder.
    fn qemu_img(&self, args: &str) -> Outcome<String> {
        let line = format!("cd {} && exec {QEMU_IMG} {args}", self.path.display());
        let ran = self.host.run_for(&["sh", "-c", &line], QEMU)?;
        Ok(ran.succeeded()?.stdout)
    }

    fn make(&self, image: &Image) -> Outcome {
        let _ = std::fs::remove_file(self.file("disk"));
        self.qemu_img(image.make).map(drop)
    }

    fn attach(&self, image: &Image) -> Outcome<crate::real::host::Ran> {
        let access = if image.writable { "rw" } else { "ro" };
        let spec = format!(
            "format={},vdev=xvdb,access={access},target={}",
            image.format,
            self.file("disk").display()
        );
        self.host.run_toolstack(&["block-attach", "formats", &spec])
    }

    /// Reads what is there before, and writes if that is allowed: across the end of the backing file, and
    /// beyond it.
    fn used_by(&self, image: &Image, guest: &Driver<'_>) -> Outcome {
        let mut disk = guest.disk();
        demand_eq!(disk.sectors_512()?, SECTORS, "sectors");
        if image.has_base {
            demand!(disk.holds(OLD, 0, BASE)?, "its content reads differently");
        }
        if !image.writable {
            let answer = guest.command("disk raw op=1 sector=0")?;
            demand!(answer.is_err(), "it was written: {answer:?}");
            demand!(disk.holds(OLD, 0, BASE)?, "its content has changed");
            return Ok(());
        }
        for (first, count) in written() {
            disk.fill(NEW, first, count)?;
            demand!(
                disk.holds(NEW, first, count)?,
                "what was written reads differently"
            );
        }
        Ok(())
    }

    /// What qemu-img says of the image, beside what must be in it.
    fn judge(&self, image: &Image) -> Outcome {
        let model = std::fs::File::create(self.file("model")).or_broken("make the model")?;
        model
            .set_len(SECTORS * 512)
            .or_broken("make the model as long as the disk")?;
        let put = |seed, first: u64, count: u64| {
            let mut bytes = vec![0; (count * 512) as usize];
            pattern::fill(seed, first, &mut bytes);
            model
                .write_all_at(&bytes, first * 512)
                .or_broken("write the model")
        };
        if image.has_base {
            put(OLD, 0, BASE)?;
        }
        if image.writable {
            for (first, count) in written() {
                put(NEW, first, count)?;
            }
        }
        if image.format == "qcow2" {
            let said = self.qemu_img("check -f qcow2 disk")?;
            demand!(
                said.contains("No errors were found"),
                "qemu-img check: {said}"
            );
        }
        self.qemu_img(&format!("compare -f {} -F raw disk model", image.qemu))
            .map(drop)
    }

    /// One guest of a stock xl, which runs the script for it.
    fn with_xl(&self, image: &Image, script: &Path) -> Outcome {
        let host = self.host;
        let kernel = host.lab_file("/lab/guests/driver")?;
        let config = host.write_file(
            "xl.cfg",
            format!(
                "name = \"by-xl\"\ntype = \"pv\"\nkernel = \"{}\"\nmemory = 32\n\
                 disk = ['format=raw,vdev=xvda,access=rw,script={},target={}:{}']\n",
                kernel.display(),
                script.display(),
                image.format,
                self.file("disk").display()
            ),
        )?;
        host.run(&["xl", "create", &config.display().to_string()])?
            .succeeded()?;
        let guest = Driver::adopt(host, "by-xl")?;
        self.used_by(image, &guest)?;
        guest.shutdown()
    }
}

/// Where a guest writes: first sector and count.
fn written() -> [(u64, u64); 3] {
    [(9, 700), (BASE - 300, 1000), (SECTORS - 64, 64)]
}
