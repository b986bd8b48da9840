//! `cargo xtask bench blk-native`: blkback with a guest in its own process, beside fio with io_uring on the same file.
//! No emulation: real memory, a real file in the page cache, this machine's processors.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result, fail};
use crate::packages;
use crate::paths;
use crate::ui;

/// Options of `cargo xtask bench blk-native`.
#[derive(clap::Args)]
pub struct NativeArgs {
    /// How often each case is run on each side, in turns; medians are shown.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Seconds of each.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Where the file of 256 MiB is made.
    #[arg(long, default_value = "/dev/shm")]
    folder: PathBuf,
    /// Tell what is done, with times, and each sample.
    #[arg(long, short)]
    verbose: bool,
}

/// Name, read or write, bytes, depth.
const CASES: [(&str, &str, u32, u32); 5] = [
    ("blk-4k-qd1-read", "read", 4096, 1),
    ("blk-4k-qd32-read", "read", 4096, 32),
    ("blk-4k-qd32-write", "write", 4096, 32),
    ("blk-1m-read", "read", 1 << 20, 4),
    ("blk-1m-write", "write", 1 << 20, 4),
];
const FILE_MIB: u64 = 256;

/// Builds, fetches, measures.
pub fn run(args: &NativeArgs) -> Result<i32> {
    ui::init(args.verbose);
    let fio = packages::fio(&paths::lab_dir()?)?;
    let ours = build()?;
    let file = Image::new(&args.folder)?;
    println!(
        "{:20} {:>12} {:>12} {:>7}  requests/s",
        "case", "blkback", "fio", "ratio"
    );
    for (case, op, size, depth) in CASES {
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..args.runs {
            let own = our_rate(&ours, &file.0, op, size, depth, args.seconds)?;
            let theirs = fio_rate(&fio.root, &file.0, op, size, depth, args.seconds)?;
            ui::detail(format!("{case}: blkback {own:.0}, fio {theirs:.0}"));
            samples[0].push(own);
            samples[1].push(theirs);
        }
        let [own, theirs] = samples.map(median);
        println!("{case:20} {own:>12.0} {theirs:>12.0} {:>7.3}", own / theirs);
    }
    Ok(0)
}

/// The file, written once so that it is in memory; removed at the end.
struct Image(PathBuf);

impl Image {
    fn new(folder: &Path) -> Result<Image> {
        let path = folder.join(format!("xlrs-bench-{}.img", std::process::id()));
        let image = Image(path);
        let bytes = vec![0x5a; (FILE_MIB << 20) as usize];
        std::fs::write(&image.0, bytes).context(|| format!("writing {}", image.0.display()))?;
        Ok(image)
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

fn our_rate(
    program: &Path,
    file: &Path,
    op: &str,
    size: u32,
    depth: u32,
    seconds: u32,
) -> Result<f64> {
    let mut command = Command::new(program);
    command.arg(file).arg(op);
    command.args([size, depth, seconds].map(|number| number.to_string()));
    let text = output(command, "the load on blkback")?;
    text.trim()
        .parse()
        .context(|| format!("the load on blkback said {text:?}"))
}

fn fio_rate(
    root: &Path,
    file: &Path,
    op: &str,
    size: u32,
    depth: u32,
    seconds: u32,
) -> Result<f64> {
    let libraries = ["lib", "usr/lib"].map(|dir| {
        let dir = root.join(dir);
        format!("{0}:{0}/x86_64-linux-gnu", dir.display())
    });
    let mut command = Command::new(root.join("lib64/ld-linux-x86-64.so.2"));
    command.args(["--library-path", &libraries.join(":")]);
    command.arg(root.join("usr/bin/fio"));
    command.arg(format!("--filename={}", file.display()));
    command.args([
        "--name=bench".to_string(),
        "--ioengine=io_uring".to_string(),
        format!("--rw=rand{op}"),
        format!("--bs={size}"),
        format!("--iodepth={depth}"),
        format!("--size={FILE_MIB}M"),
        format!("--runtime={seconds}"),
        "--time_based".to_string(),
        // The file is in the page cache and stays there.
        "--invalidate=0".to_string(),
        "--output-format=json".to_string(),
    ]);
    let text = output(command, "fio")?;
    let json: serde_json::Value =
        serde_json::from_str(&text).context(|| format!("fio said {text:?}"))?;
    let rate = &json["jobs"][0][op]["iops"];
    rate.as_f64()
        .ok_or_else(|| Error(format!("fio told no rate: {rate}")))
}

fn output(mut command: Command, what: &str) -> Result<String> {
    let out = command.output().context(|| format!("running {what}"))?;
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
