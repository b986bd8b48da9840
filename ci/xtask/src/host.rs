//! What the lab needs on the host: installed when we are root, else the one command to run.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::error::{Context, Result, fail};
use crate::ui;

/// A program, where to look for it and the Debian packages that bring it.
struct Tool {
    program: &'static str,
    packages: &'static [&'static str],
}

const TOOLS: &[Tool] = &[
    Tool {
        program: "qemu-system-x86_64",
        packages: &["qemu-system-x86", "seabios"],
    },
    Tool {
        program: "qemu-img",
        packages: &["qemu-utils"],
    },
    Tool {
        program: "cc",
        packages: &["gcc", "libc6-dev"],
    },
    Tool {
        program: "apt-get",
        packages: &["apt"],
    },
    Tool {
        program: "dpkg-deb",
        packages: &["dpkg"],
    },
    Tool {
        program: "gzip",
        packages: &["gzip"],
    },
    Tool {
        program: "setpriv",
        packages: &["util-linux"],
    },
];

/// Files without a program: the static C library, and the keys that sign Debian's index.
const FILES: &[(&str, &str)] = &[
    ("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev"),
    (crate::apt::KEYRING, "debian-archive-keyring"),
];

/// Makes sure that all of it is there.
pub fn require_tools() -> Result<()> {
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let command = format!("apt-get update && apt-get install -y --no-install-recommends {list}");
    if !rustix::process::geteuid().is_root() {
        return fail(format!(
            "the lab needs packages that are not installed; run this once as root:\n    {command}"
        ));
    }
    ui::status(format!("installing on this machine: {list}"));
    let out = Command::new("sh")
        .args(["-c", &command])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context(|| format!("running {command:?}"))?;
    let left = missing_packages();
    if !left.is_empty() {
        let log = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
        return fail(format!(
            "still missing: {} after `{command}`:\n{}",
            left.join(" "),
            ui::tail(&log, 20)
        ));
    }
    Ok(())
}

fn missing_packages() -> Vec<&'static str> {
    let mut missing: Vec<&str> = Vec::new();
    for tool in TOOLS {
        if which(tool.program).is_none() {
            missing.extend(tool.packages);
        }
    }
    for (file, package) in FILES {
        if !std::path::Path::new(file).exists() {
            missing.push(package);
        }
    }
    missing.sort_unstable();
    missing.dedup();
    missing
}

/// Where a program is.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
}
