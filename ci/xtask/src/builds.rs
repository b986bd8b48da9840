//! Builds what runs in dom0: our programs, static and without PIE, the guest images, the agent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::elf;
use crate::error::{Context, Error, Result, fail};
use crate::order;
use crate::paths::{self, Key, Lock};
use crate::record;
use crate::ui;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Process start is most of a short command: static without PIE is the cheapest there is.
const STATIC_FLAGS: &str = "-Ctarget-feature=+crt-static\x1f-Crelocation-model=static";

/// Our programs in dom0.
pub const PROGRAMS: &[&str] = &["xlrs", "xenstored", "blkback", "netback", "scenarios"];

/// What was built: name → file.
#[derive(Clone, Default)]
pub struct Built {
    /// Programs for /lab/bin.
    pub programs: BTreeMap<String, PathBuf>,
    /// Guest images for /lab/guests.
    pub guests: BTreeMap<String, PathBuf>,
    /// Programs that no crate offers yet.
    pub absent: Vec<String>,
}

/// How our programs are built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quick to rebuild, with every check on: for trying and testing.
    Checked,
    /// As shipped: for measuring.
    Release,
}

impl Profile {
    /// cargo's name for it, and of the folder it builds into.
    fn name(self) -> &'static str {
        match self {
            Profile::Checked => "checked",
            Profile::Release => "release",
        }
    }
}

/// Builds our programs and guest images, as far as the workspace has them.
pub fn all(profile: Profile) -> Result<Built> {
    let mut built = programs(PROGRAMS, profile)?;
    built.guests = guests(&paths::workspace().join("pvguest/images"))?;
    Ok(built)
}

/// Builds these programs, as far as the workspace has them.
pub fn programs(names: &[&str], profile: Profile) -> Result<Built> {
    let workspace = paths::workspace();
    let mut built = Built::default();
    let here = Metadata::of(&workspace)?;
    let mut args = vec![
        "build".to_string(),
        format!("--profile={}", profile.name()),
        format!("--target={TARGET}"),
    ];
    let folder = here.target.join(TARGET).join(profile.name());
    for name in names {
        match here.bins.get(*name) {
            Some(package) => {
                built.programs.insert((*name).into(), folder.join(name));
                // It is built by itself.
                if *name == "xlrs" && profile == Profile::Release {
                    continue;
                }
                args.extend(["-p".into(), package.clone(), "--bin".into(), (*name).into()]);
            }
            None => built.absent.push((*name).into()),
        }
    }
    ui::slow("building our programs", || {
        cargo(&workspace, &args, Some(STATIC_FLAGS))
    })?;
    if profile == Profile::Release && built.programs.contains_key("xlrs") {
        ui::slow("building xlrs, what creates guests in one place", || {
            xlrs_in_order(&workspace, &folder.join("xlrs"))
        })?;
    }
    Ok(built)
}

/// Most times that `xlrs` is linked in one build: once to learn its names, once in their order.
const LINKS: usize = 2;

/// Builds `xlrs` so that what `xlrs create` runs lies in one place. The linker wants names as they are in the
/// program: those of the last build, and if these have changed it links again.
fn xlrs_in_order(workspace: &Path, program: &Path) -> Result<()> {
    let recorded = paths::read(&workspace.join(record::FILE))?;
    let recorded = String::from_utf8_lossy(&recorded);
    // Always the same file: names end in a hash of, among others, the linker's arguments.
    let list = program.with_extension("order");
    let mut args = ["rustc", "--release", "-p", "xlrs", "--bin", "xlrs"]
        .map(String::from)
        .to_vec();
    args.extend([format!("--target={TARGET}"), "--".into()]);
    let ordering = format!("--symbol-ordering-file={}", list.display());
    for option in [&*ordering, "--no-warn-symbol-ordering"] {
        args.push(format!("-Clink-arg=-Wl,{option}"));
    }
    if !list.exists() {
        paths::write_atomically(&list, b"")?;
    }
    for _ in 0..LINKS {
        cargo(workspace, &args, Some(STATIC_FLAGS))?;
        let found = order::order(&recorded, &paths::read(program)?)
            .ok_or_else(|| Error(format!("{} has no symbols", program.display())))?;
        if found.as_bytes() == paths::read(&list)? {
            break;
        }
        paths::write_atomically(&list, found.as_bytes())?;
        forget_linked(program)?;
    }
    Ok(())
}

/// Removes what cargo has linked, by which it knows that it is to be done again: it does not look into the list.
fn forget_linked(program: &Path) -> Result<()> {
    let deps = program.with_file_name("deps");
    let entries = std::fs::read_dir(&deps).context(|| format!("reading {}", deps.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("xlrs-") && path.extension().is_none() {
            std::fs::remove_file(&path).context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Builds the guest images: a workspace of its own, with flags of its own.
pub fn guests(dir: &Path) -> Result<BTreeMap<String, PathBuf>> {
    if !dir.join("Cargo.toml").exists() {
        return Ok(BTreeMap::new());
    }
    ui::slow("building the guest images", || {
        cargo(dir, &["build".into(), "--release".into()], None)
    })?;
    let there = Metadata::of(dir)?;
    let mut out = BTreeMap::new();
    for name in there.bins.keys() {
        for sub in [format!("{TARGET}/release"), "release".into()] {
            let file = there.target.join(sub).join(name);
            if std::fs::read(&file).is_ok_and(|b| elf::is_elf64(&b)) {
                out.insert(name.clone(), file);
                break;
            }
        }
    }
    Ok(out)
}

/// The lab's own agent, kept below the lab folder by what it is made of.
pub fn agent(lab: &Path) -> Result<PathBuf> {
    let workspace = paths::workspace();
    let dir = lab.join("agents");
    paths::make_dir(&dir)?;
    let file = dir.join(format!("lab-agent-{}", agent_key(&workspace)?));
    let _lock = Lock::exclusive(&dir.join("lock"))?;
    if file.exists() {
        return Ok(file);
    }
    let flags = format!("{STATIC_FLAGS}\x1f-Cstrip=symbols");
    let args = [
        "build",
        "--release",
        "-p",
        "lab-agent",
        "--bin",
        "lab-agent",
    ]
    .map(String::from);
    let mut args = args.to_vec();
    args.push(format!("--target={TARGET}"));
    ui::slow("building the lab's agent", || {
        cargo(&workspace, &args, Some(&flags))
    })?;
    let built = Metadata::of(&workspace)?
        .target
        .join(TARGET)
        .join("release/lab-agent");
    paths::write_atomically(&file, &paths::read(&built)?)?;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))
        .context(|| format!("making {} executable", file.display()))?;
    Ok(file)
}

fn agent_key(workspace: &Path) -> Result<String> {
    let mut key = Key::default();
    let source = workspace.join("ci/agent/src");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&source)
        .context(|| format!("reading {}", source.display()))?
        .flatten()
        .map(|e| e.path())
        .collect();
    files.sort();
    files.push(workspace.join("ci/agent/Cargo.toml"));
    for file in files {
        key.add(paths::read(&file)?);
    }
    let rustc = Command::new("rustc")
        .arg("-V")
        .output()
        .context(|| "running rustc -V".into())?;
    Ok(key.add(rustc.stdout).add(STATIC_FLAGS).hex())
}

/// Runs cargo; its own words are shown only if it fails, or with --verbose.
pub fn cargo(dir: &Path, args: &[String], encoded_flags: Option<&str>) -> Result<()> {
    let mut command = cargo_command(dir, encoded_flags);
    // Before the verb: behind `--` it would be rustc's.
    if !ui::verbose() {
        command.arg("--quiet");
    }
    command.args(args).stdin(Stdio::null());
    let out = command.output().context(|| "running cargo".into())?;
    let words = String::from_utf8_lossy(&out.stderr);
    if !out.status.success() {
        return fail(format!(
            "cargo {} in {} failed:\n{}",
            args.join(" "),
            dir.display(),
            ui::tail(&words, 60)
        ));
    }
    if ui::verbose() {
        eprint!("{words}");
    }
    Ok(())
}

/// cargo without the flags that an outer cargo or the environment may have set.
pub fn cargo_command(dir: &Path, encoded_flags: Option<&str>) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(dir);
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        command.env_remove(name);
    }
    if let Some(flags) = encoded_flags {
        command.env("CARGO_ENCODED_RUSTFLAGS", flags);
    }
    command
}

struct Metadata {
    target: PathBuf,
    /// Binary → package.
    bins: BTreeMap<String, String>,
}

impl Metadata {
    fn of(dir: &Path) -> Result<Metadata> {
        let out = cargo_command(dir, None)
            .args([
                "metadata",
                "--no-deps",
                "--offline",
                "--format-version",
                "1",
            ])
            .output()
            .context(|| "running cargo metadata".into())?;
        let json: Value = serde_json::from_slice(&out.stdout).context(|| {
            format!(
                "cargo metadata in {}: {}",
                dir.display(),
                String::from_utf8_lossy(&out.stderr)
            )
        })?;
        parse_metadata(&json).ok_or_else(|| Error("cargo metadata: not as expected".into()))
    }
}

fn parse_metadata(json: &Value) -> Option<Metadata> {
    let mut bins = BTreeMap::new();
    for package in json["packages"].as_array()? {
        for target in package["targets"].as_array()? {
            let is_bin = target["kind"].as_array()?.iter().any(|k| k == "bin");
            if is_bin {
                bins.insert(
                    target["name"].as_str()?.into(),
                    package["name"].as_str()?.into(),
                );
            }
        }
    }
    let target = PathBuf::from(json["target_directory"].as_str()?);
    Some(Metadata { target, bins })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binaries_are_found_in_the_metadata() {
        let json = serde_json::json!({
            "target_directory": "/t",
            "packages": [
                {"name": "tests", "targets": [
                    {"name": "scenarios", "kind": ["bin"]}, {"name": "tests", "kind": ["lib"]}]},
            ],
        });
        let found = parse_metadata(&json).unwrap();
        assert_eq!(found.target, PathBuf::from("/t"));
        assert_eq!(
            found.bins.into_iter().collect::<Vec<_>>(),
            [("scenarios".into(), "tests".into())]
        );
        assert!(parse_metadata(&serde_json::json!({})).is_none());
    }
}
