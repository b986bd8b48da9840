//! Says whether qemu-img is here: tests that need it are ignored without it, and say so.

use std::path::Path;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(qemu_img)");
    println!("cargo::rerun-if-env-changed=QEMU_IMG");
    // Its time changes when something is installed.
    println!("cargo::rerun-if-changed=/usr/bin");
    let path = std::env::var("QEMU_IMG").unwrap_or_else(|_| "/usr/bin/qemu-img".into());
    if Path::new(&path).exists() {
        println!("cargo::rustc-cfg=qemu_img");
        println!("cargo::rustc-env=QEMU_IMG={path}");
    }
}
