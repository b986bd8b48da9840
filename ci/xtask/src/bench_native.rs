//! `cargo xtask bench blk-native`: blkback with a guest in its own process, beside fio with io_uring on the same file.
//! No emulation: real memory, a real file, this machine's processors.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::error::{Context, Error, Result, fail};
use crate::packages;
use crate::paths;
use crate::ui;

/// Options of `cargo xtask bench blk-native`.
#[derive(clap::Args)]
pub struct NativeArgs {
    /// How often each case is run on each side, in turns; medians are shown.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Seconds of each.
    #[arg(long, default_value_t = 1)]
    seconds: u32,
    /// Where the file of 256 MiB is made [default: below target/, on a disk if that is on one].
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Tell what is done, with times, and each sample.
    #[arg(long, short)]
    verbose: bool,
}

/// What is done to the file.
#[derive(Clone, Copy)]
struct Load {
    write: bool,
    size: u32,
    depth: u32,
    /// By the page cache, where the file is, or past it.
    direct: bool,
    /// The guest sleeps until each event; else it looks at its ring again and again.
    sleeps: bool,
}

const FILE_MIB: u64 = 256;
/// What a run may take beyond its time.
const SLACK: Duration = Duration::from_secs(30);

impl Load {
    /// All cases. The page cache comes first: what goes past it throws out what is in it.
    fn all() -> Vec<Load> {
        let mut all = Vec::new();
        for direct in [false, true] {
            for (size, depth) in [(4096, 1), (4096, 32), (1 << 20, 4)] {
                for write in [false, true] {
                    let sleeps = false;
                    all.push(Load {
                        write,
                        size,
                        depth,
                        direct,
                        sleeps,
                    });
                }
            }
            if !direct {
                for depth in [1, 32] {
                    let (write, size, sleeps) = (false, 4096, true);
                    all.push(Load {
                        write,
                        size,
                        depth,
                        direct,
                        sleeps,
                    });
                }
            }
        }
        all
    }

    fn op(&self) -> &'static str {
        if self.write { "write" } else { "read" }
    }

    fn name(&self) -> String {
        let size = match self.size {
            4096 => "4k",
            _ => "1m",
        };
        let direct = if self.direct { "-direct" } else { "" };
        let sleeps = if self.sleeps { "-asleep" } else { "" };
        format!("blk-{size}-qd{}-{}{direct}{sleeps}", self.depth, self.op())
    }
}

/// Builds, fetches, measures.
pub fn run(args: &NativeArgs) -> Result<i32> {
    ui::init(args.verbose);
    let lab = paths::lab_dir()?;
    let fio = packages::fio(&lab)?;
    let ours = build()?;
    let image = Image::new(args.folder.as_deref().unwrap_or(&lab))?;
    println!(
        "{:24} {:>12} {:>12} {:>7}  requests/s",
        "case", "blkback", "fio", "ratio"
    );
    for load in Load::all() {
        let name = load.name();
        if load.direct && !image.takes_direct() {
            println!(
                "{name:24} not measured: no O_DIRECT in {}",
                image.0.display()
            );
            continue;
        }
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..args.runs {
            image.settle(&load)?;
            let own = our_rate(&ours, &image.0, &load, args.seconds)?;
            image.settle(&load)?;
            let theirs = fio_rate(&fio.root, &image.0, &load, args.seconds)?;
            ui::detail(format!("{name}: blkback {own:.0}, fio {theirs:.0}"));
            samples[0].push(own);
            samples[1].push(theirs);
        }
        let [own, theirs] = samples.map(median);
        println!("{name:24} {own:>12.0} {theirs:>12.0} {:>7.3}", own / theirs);
    }
    Ok(0)
}

/// The file; removed at the end.
struct Image(PathBuf);

impl Image {
    fn new(folder: &Path) -> Result<Image> {
        let path = folder.join(format!("bench-{}.img", std::process::id()));
        let image = Image(path);
        let bytes = vec![0x5a; (FILE_MIB << 20) as usize];
        std::fs::write(&image.0, bytes).context(|| format!("writing {}", image.0.display()))?;
        Ok(image)
    }

    fn takes_direct(&self) -> bool {
        let flags = OFlags::DIRECT.bits() as i32;
        let mut options = File::options();
        options.read(true).custom_flags(flags).open(&self.0).is_ok()
    }

    /// Nothing is left to be written, and what goes by the page cache finds all of the file there.
    fn settle(&self, load: &Load) -> Result<()> {
        let what = || format!("reading {}", self.0.display());
        let mut file = File::open(&self.0).context(what)?;
        file.sync_all().context(what)?;
        if !load.direct {
            let mut part = vec![0; 1 << 20];
            while file.read(&mut part).context(what)? > 0 {}
        }
        Ok(())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn build() -> Result<PathBuf> {
    let workspace = paths::workspace();
    let words = [
        "build",
        "--release",
        "-p",
        "blkback",
        "--example",
        "native",
        "--quiet",
    ];
    let done = ui::slow("building blkback", || {
        Command::new("cargo")
            .args(words)
            .current_dir(&workspace)
            .status()
            .context(|| "running cargo".into())
    })?;
    if !done.success() {
        return fail("blkback's example native does not build");
    }
    Ok(workspace.join("target/release/examples/native"))
}

fn our_rate(program: &Path, file: &Path, load: &Load, seconds: u32) -> Result<f64> {
    let mut command = Command::new(program);
    command.arg(file).arg(load.op());
    command.args([load.size, load.depth, seconds].map(|number| number.to_string()));
    command.args(load.direct.then_some("direct"));
    command.args(load.sleeps.then_some("sleep"));
    let text = output(command, seconds, "the load on blkback")?;
    text.trim()
        .parse()
        .context(|| format!("the load on blkback said {text:?}"))
}

fn fio_rate(root: &Path, file: &Path, load: &Load, seconds: u32) -> Result<f64> {
    let libraries = ["lib", "usr/lib"].map(|dir| {
        let dir = root.join(dir);
        format!(
            "{0}:{0}/x86_64-linux-gnu:{0}/x86_64-linux-gnu/ceph",
            dir.display()
        )
    });
    let mut command = Command::new(root.join("lib64/ld-linux-x86-64.so.2"));
    command.args(["--library-path", &libraries.join(":")]);
    command.arg(root.join("usr/bin/fio"));
    command.arg(format!("--filename={}", file.display()));
    command.args([
        "--name=bench".to_string(),
        "--ioengine=io_uring".to_string(),
        format!("--rw=rand{}", load.op()),
        format!("--bs={}", load.size),
        format!("--iodepth={}", load.depth),
        format!("--direct={}", u8::from(load.direct)),
        format!("--size={FILE_MIB}M"),
        format!("--runtime={seconds}"),
        "--time_based".to_string(),
        // The file is in the page cache and stays there.
        "--invalidate=0".to_string(),
        "--output-format=json".to_string(),
    ]);
    let text = output(command, seconds, "fio")?;
    let json: serde_json::Value =
        serde_json::from_str(&text).context(|| format!("fio said {text:?}"))?;
    let rate = &json["jobs"][0][load.op()]["iops"];
    rate.as_f64()
        .ok_or_else(|| Error(format!("fio told no rate: {rate}")))
}

/// What a program says that is to take so many seconds.
fn output(mut command: Command, seconds: u32, what: &str) -> Result<String> {
    let running = || format!("running {what}");
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context(running)?;
    let limit = Duration::from_secs(seconds.into()) + SLACK;
    let begun = Instant::now();
    while child.try_wait().context(running)?.is_none() {
        if begun.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return fail(format!("{what} had not ended after {limit:?}: {command:?}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let out = child.wait_with_output().context(running)?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        return fail(format!("{what}: {}\n{said}", out.status));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
