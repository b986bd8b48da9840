//! Lets the linker find `guest.ld` for every image that depends on this crate.

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    println!("cargo:rustc-link-search=native={here}");
    println!("cargo:rerun-if-changed=guest.ld");
}
