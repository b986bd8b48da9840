//! Fetches Debian packages with apt, from state of our own, and unpacks them below the lab folder.
//!
//! Invariant: nothing is installed and no file outside the lab folder is written.
//! Invariant: apt's signed index decides what is sound; versions and checksums are recorded, not pinned.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result, fail};
use crate::paths::{self, make_dir};
use crate::ui;

/// The keys that Debian signs its index with.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Times a download is tried.
const TRIES: u32 = 3;

/// A Debian release and where our own apt state for it lies.
pub struct Suite {
    name: &'static str,
    dir: PathBuf,
}

/// One package as it was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Checksum of the archive, from apt's signed index.
    pub sha256: String,
}

impl Suite {
    /// Our apt state for the release `name`, refreshed from the network.
    pub fn refreshed(lab: &Path, name: &'static str) -> Result<Suite> {
        let suite = Suite {
            name,
            dir: lab.join("apt").join(name),
        };
        suite.configure()?;
        ui::slow(&format!("apt: index of {name}"), || {
            suite.with_retries("update", |s| s.apt("apt-get", &["update", "-q"]))
        })?;
        Ok(suite)
    }

    fn configure(&self) -> Result<()> {
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            make_dir(&self.dir.join(sub))?;
        }
        let (main, security) = mirrors();
        let n = self.name;
        let line = |uri: &str, suite: &str| {
            format!("deb [arch=amd64 signed-by={KEYRING}] {uri} {suite} main\n")
        };
        let sources = line(&main, n)
            + &line(&main, &format!("{n}-updates"))
            + &line(&security, &format!("{n}-security"));
        paths::write_atomically(&self.dir.join("sources.list"), sources.as_bytes())?;
        paths::write_atomically(&self.dir.join("status"), b"")?;
        let d = self.dir.display();
        // Read after the machine's own apt.conf.d: its proxy stays, its sources and hooks do not.
        let conf = format!(
            "#clear APT::Update;\n#clear DPkg;\n\
             Dir::Etc::sourcelist \"{d}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"/dev/null\";\n\
             Dir::State \"{d}/state\";\nDir::State::lists \"{d}/state/lists\";\n\
             Dir::State::status \"{d}/status\";\nDir::Cache \"{d}/cache\";\n\
             Dir::Cache::archives \"{d}/cache/archives\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
             APT::Default-Release \"\";\nAPT::Install-Recommends \"false\";\n\
             APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\nAcquire::Retries \"3\";\n"
        );
        paths::write_atomically(&self.dir.join("apt.conf"), conf.as_bytes())
    }

    /// The packages in the dependency closure of `wanted` that `keep` lets through.
    pub fn resolve(&self, wanted: &[&str], keep: impl Fn(&str) -> bool) -> Result<Vec<Package>> {
        let mut args = vec![
            "install",
            "--print-uris",
            "-y",
            "-qq",
            "--no-install-recommends",
        ];
        args.extend(wanted);
        let closure = parse_print_uris(&self.apt("apt-get", &args)?);
        let names: Vec<String> = closure
            .iter()
            .filter(|(name, _)| keep(name))
            .map(|(name, version)| format!("{name}={version}"))
            .collect();
        if names.is_empty() {
            return fail(format!("apt knows nothing of {wanted:?} in {}", self.name));
        }
        let mut args = vec!["show"];
        args.extend(names.iter().map(String::as_str));
        let found = parse_show(&self.apt("apt-cache", &args)?);
        names
            .iter()
            .map(|n| {
                let (name, version) = n.split_once('=').unwrap_or((n, ""));
                found
                    .get(&(name.to_string(), version.to_string()))
                    .map(|sha256| Package {
                        name: name.into(),
                        version: version.into(),
                        sha256: sha256.clone(),
                    })
                    .ok_or_else(|| crate::error::Error(format!("apt-cache show: no entry for {n}")))
            })
            .collect()
    }

    /// Downloads the packages (apt checks them against the index) and unpacks each into `into`.
    pub fn fetch(&self, packages: &[Package], into: &Path) -> Result<()> {
        let debs = self.dir.join("debs");
        let _ = std::fs::remove_dir_all(&debs);
        make_dir(&debs)?;
        let names: Vec<String> = packages
            .iter()
            .map(|p| format!("{}={}", p.name, p.version))
            .collect();
        let mut args = vec!["download", "-q"];
        args.extend(names.iter().map(String::as_str));
        ui::slow(
            &format!("apt: {} packages of {}", packages.len(), self.name),
            || self.with_retries("download", |s| s.apt_in(&debs, "apt-get", &args)),
        )?;
        ui::slow(&format!("unpacking into {}", into.display()), || {
            unpack_all(&debs, packages.len(), into)
        })?;
        let _ = std::fs::remove_dir_all(&debs);
        Ok(())
    }

    fn with_retries(&self, what: &str, work: impl Fn(&Suite) -> Result<String>) -> Result<String> {
        let mut tried = 1;
        loop {
            match work(self) {
                Ok(out) => return Ok(out),
                Err(e) if tried == TRIES => return Err(e),
                Err(e) => {
                    ui::status(format!("apt {what}, try {tried} of {TRIES}: {e}"));
                    std::thread::sleep(std::time::Duration::from_secs(2 * u64::from(tried)));
                    tried += 1;
                }
            }
        }
    }

    fn apt(&self, program: &str, args: &[&str]) -> Result<String> {
        self.apt_in(&self.dir, program, args)
    }

    fn apt_in(&self, cwd: &Path, program: &str, args: &[&str]) -> Result<String> {
        let out = Command::new(program)
            .arg("-c")
            .arg(self.dir.join("apt.conf"))
            .args(args)
            .current_dir(cwd)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .output()
            .context(|| format!("running {program}"))?;
        let errors = String::from_utf8_lossy(&out.stderr);
        // `apt-get update` exits 0 even if an index could not be had.
        let stale = args.first() == Some(&"update")
            && errors
                .lines()
                .any(|l| l.starts_with("E:") || l.contains("Failed to fetch"));
        if !out.status.success() || stale {
            return fail(format!(
                "{program} {} failed ({}):\n{}",
                args.first().unwrap_or(&""),
                out.status,
                ui::tail(&errors, 10)
            ));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }
}

fn unpack_all(debs: &Path, expected: usize, into: &Path) -> Result<()> {
    make_dir(into)?;
    let mut count = 0;
    for entry in std::fs::read_dir(debs).context(|| format!("reading {}", debs.display()))? {
        let deb = entry
            .context(|| format!("reading {}", debs.display()))?
            .path();
        if deb.extension().is_none_or(|e| e != "deb") {
            continue;
        }
        let out = Command::new("dpkg-deb")
            .arg("-x")
            .args([&deb, &into.to_path_buf()])
            .output()
            .context(|| "running dpkg-deb".into())?;
        if !out.status.success() {
            return fail(format!(
                "unpacking {}: {}",
                deb.display(),
                String::from_utf8_lossy(&out.stderr)
            ));
        }
        count += 1;
    }
    if count != expected {
        return fail(format!("apt downloaded {count} packages of {expected}"));
    }
    Ok(())
}

/// Where this machine gets Debian from (archive, security), or Debian's own servers.
fn mirrors() -> (String, String) {
    let listed = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)"])
        .output()
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default();
    pick_mirrors(&listed)
}

fn pick_mirrors(listed: &str) -> (String, String) {
    let find = |suffix: &str| {
        listed
            .lines()
            .map(|l| l.trim().trim_end_matches('/'))
            .find(|l| l.ends_with(suffix))
            .map(str::to_string)
    };
    (
        find("/debian").unwrap_or_else(|| "http://deb.debian.org/debian".into()),
        find("/debian-security").unwrap_or_else(|| "http://deb.debian.org/debian-security".into()),
    )
}

/// (name, version) of each line `'URI' NAME_VERSION_ARCH.deb SIZE HASH`.
fn parse_print_uris(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter(|l| l.starts_with('\''))
        .filter_map(|l| {
            let file = l.split_whitespace().nth(1)?;
            let mut parts = file.strip_suffix(".deb")?.split('_');
            let (name, version) = (parts.next()?, parts.next()?);
            Some((name.to_string(), version.replace("%3a", ":")))
        })
        .collect()
}

/// Checksums by (name, version) from `apt-cache show`.
fn parse_show(text: &str) -> BTreeMap<(String, String), String> {
    let mut out = BTreeMap::new();
    for stanza in text.split("\n\n") {
        let field = |key: &str| {
            stanza
                .lines()
                .find_map(|l| l.strip_prefix(key)?.strip_prefix(": "))
                .map(|v| v.trim().to_string())
        };
        if let (Some(name), Some(version), Some(sha)) =
            (field("Package"), field("Version"), field("SHA256"))
        {
            out.insert((name, version), sha);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn print_uris_gives_names_and_versions() {
        let text = "Reading package lists...\n\
            'http://deb.debian.org/debian/pool/main/b/busybox/busybox-static_1.35.0-4%2bb1_amd64.deb' busybox-static_1%3a1.35.0-4+b1_amd64.deb 928188 MD5Sum:f6f1\n\
            'http://x/linux-image-6.1.0-56-amd64_6.1.192-2_amd64.deb' linux-image-6.1.0-56-amd64_6.1.192-2_amd64.deb 70550672 \n";
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        assert_eq!(
            parse_print_uris(text),
            [
                pair("busybox-static", "1:1.35.0-4+b1"),
                pair("linux-image-6.1.0-56-amd64", "6.1.192-2")
            ]
        );
    }

    #[test]
    fn show_gives_checksums() {
        let text = "Package: a\nVersion: 1:2\nDescription: x\n more: y\nSHA256: 00ff\n\nPackage: b\nVersion: 3\nSHA256: aa\n";
        let got = parse_show(text);
        assert_eq!(got[&("a".to_string(), "1:2".to_string())], "00ff");
        assert_eq!(got[&("b".to_string(), "3".to_string())], "aa");
    }

    #[test]
    fn the_machines_mirror_is_used() {
        for (listed, main, security) in [
            (
                "",
                "http://deb.debian.org/debian",
                "http://deb.debian.org/debian-security",
            ),
            (
                "https://apt.example.org/node\nhttp://mirror.example.org/debian/\nhttp://mirror.example.org/debian-security/\n",
                "http://mirror.example.org/debian",
                "http://mirror.example.org/debian-security",
            ),
        ] {
            assert_eq!(pick_mirrors(listed), (main.into(), security.into()));
        }
    }
}
