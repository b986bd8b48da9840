//! The ioctls' structures and numbers against the C headers.

#[path = "../../sys/tests/witness/mod.rs"]
mod witness;

#[test]
fn every_ioctl_is_what_the_c_headers_say() {
    let mut rows = witness::Rows::new();
    for layout in xen_dom0::LAYOUTS {
        witness::layout_rows(layout, &mut rows);
    }
    witness::constant_rows(xen_dom0::CONSTANTS, &mut rows);
    let headers = [
        "xen.h",
        "sys/privcmd.h",
        "sys/gntdev.h",
        "sys/evtchn.h",
        "sys/xenbus_dev.h",
    ];
    witness::compare("xen-dom0-headers", &headers, &rows, |_, _| false);
}
