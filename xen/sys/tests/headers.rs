//! The second witness: a C compiler's opinion of the public headers about every structure and constant.
//!
//! The headers are taken from `XLRS_XEN_HEADERS` (a directory that contains `xen/`) or /usr/include.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use xen_sys::domctl::{DomainFlags, DomainInfo};
use xen_sys::grant_table::{GrantFlags, GrantStatus, MapFlags};
use xen_sys::io::netif::{RxFlags, TxFlags};
use xen_sys::sysctl::HostCapabilities;
use xen_sys::xen::{StartFlags, VaFlush};
use xen_sys::{CONSTANTS, Field, LAYOUTS, Layout, domctl};

/// Structures that exist only in part or by another name in C: compared field by field, not by size.
const PREFIXES: &[(&str, &str, &[(&str, usize)])] = &[
    (
        "struct domaininfo_prefix",
        "struct xen_domctl_getdomaininfo",
        &[
            ("domain", core::mem::offset_of!(DomainInfo, domain)),
            ("flags", core::mem::offset_of!(DomainInfo, flags)),
            ("tot_pages", core::mem::offset_of!(DomainInfo, tot_pages)),
            ("max_pages", core::mem::offset_of!(DomainInfo, max_pages)),
            (
                "outstanding_pages",
                core::mem::offset_of!(DomainInfo, outstanding_pages),
            ),
            ("shr_pages", core::mem::offset_of!(DomainInfo, shr_pages)),
            (
                "paged_pages",
                core::mem::offset_of!(DomainInfo, paged_pages),
            ),
            (
                "shared_info_frame",
                core::mem::offset_of!(DomainInfo, shared_info_frame),
            ),
            ("cpu_time", core::mem::offset_of!(DomainInfo, cpu_time)),
            (
                "nr_online_vcpus",
                core::mem::offset_of!(DomainInfo, nr_online_vcpus),
            ),
            (
                "max_vcpu_id",
                core::mem::offset_of!(DomainInfo, max_vcpu_id),
            ),
            ("ssidref", core::mem::offset_of!(DomainInfo, ssidref)),
            ("handle", core::mem::offset_of!(DomainInfo, handle)),
            ("cpupool", core::mem::offset_of!(DomainInfo, cpupool)),
        ],
    ),
    (
        "struct createdomain_prefix",
        "struct xen_domctl_createdomain",
        &[
            (
                "ssidref",
                core::mem::offset_of!(domctl::CreateDomainPrefix, ssidref),
            ),
            (
                "handle",
                core::mem::offset_of!(domctl::CreateDomainPrefix, handle),
            ),
            (
                "flags",
                core::mem::offset_of!(domctl::CreateDomainPrefix, flags),
            ),
            (
                "iommu_opts",
                core::mem::offset_of!(domctl::CreateDomainPrefix, iommu_opts),
            ),
            (
                "max_vcpus",
                core::mem::offset_of!(domctl::CreateDomainPrefix, max_vcpus),
            ),
            (
                "max_evtchn_port",
                core::mem::offset_of!(domctl::CreateDomainPrefix, max_evtchn_port),
            ),
            (
                "max_grant_frames",
                core::mem::offset_of!(domctl::CreateDomainPrefix, max_grant_frames),
            ),
            (
                "max_maptrack_frames",
                core::mem::offset_of!(domctl::CreateDomainPrefix, max_maptrack_frames),
            ),
        ],
    ),
];

/// Flags and statuses, which are types and so in no table.
const FLAGS: &[(&str, i128)] = &[
    ("SIF_PRIVILEGED", StartFlags::PRIVILEGED.bits() as i128),
    ("SIF_INITDOMAIN", StartFlags::INITDOMAIN.bits() as i128),
    (
        "SIF_MULTIBOOT_MOD",
        StartFlags::MULTIBOOT_MOD.bits() as i128,
    ),
    (
        "SIF_MOD_START_PFN",
        StartFlags::MOD_START_PFN.bits() as i128,
    ),
    (
        "SIF_VIRT_P2M_4TOOLS",
        StartFlags::VIRT_P2M_4TOOLS.bits() as i128,
    ),
    ("UVMF_TLB_FLUSH", VaFlush::TLB_FLUSH.bits() as i128),
    ("UVMF_INVLPG", VaFlush::INVLPG.bits() as i128),
    ("UVMF_ALL", VaFlush::ALL.bits() as i128),
    (
        "GTF_permit_access",
        GrantFlags::PERMIT_ACCESS.bits() as i128,
    ),
    (
        "GTF_accept_transfer",
        GrantFlags::ACCEPT_TRANSFER.bits() as i128,
    ),
    ("GTF_readonly", GrantFlags::READONLY.bits() as i128),
    ("GTF_reading", GrantFlags::READING.bits() as i128),
    ("GTF_writing", GrantFlags::WRITING.bits() as i128),
    ("GNTMAP_device_map", MapFlags::DEVICE_MAP.bits() as i128),
    ("GNTMAP_host_map", MapFlags::HOST_MAP.bits() as i128),
    ("GNTMAP_readonly", MapFlags::READONLY.bits() as i128),
    (
        "GNTMAP_application_map",
        MapFlags::APPLICATION_MAP.bits() as i128,
    ),
    ("GNTMAP_contains_pte", MapFlags::CONTAINS_PTE.bits() as i128),
    ("GNTST_general_error", GrantStatus::GENERAL_ERROR.0 as i128),
    ("GNTST_bad_domain", GrantStatus::BAD_DOMAIN.0 as i128),
    ("GNTST_bad_gntref", GrantStatus::BAD_GNTREF.0 as i128),
    ("GNTST_bad_handle", GrantStatus::BAD_HANDLE.0 as i128),
    (
        "GNTST_permission_denied",
        GrantStatus::PERMISSION_DENIED.0 as i128,
    ),
    ("GNTST_bad_page", GrantStatus::BAD_PAGE.0 as i128),
    ("GNTST_bad_copy_arg", GrantStatus::BAD_COPY_ARG.0 as i128),
    ("GNTST_eagain", GrantStatus::EAGAIN.0 as i128),
    ("GNTST_no_space", GrantStatus::NO_SPACE.0 as i128),
    ("NETTXF_csum_blank", TxFlags::CSUM_BLANK.bits() as i128),
    (
        "NETTXF_data_validated",
        TxFlags::DATA_VALIDATED.bits() as i128,
    ),
    ("NETTXF_more_data", TxFlags::MORE_DATA.bits() as i128),
    ("NETTXF_extra_info", TxFlags::EXTRA_INFO.bits() as i128),
    (
        "NETRXF_data_validated",
        RxFlags::DATA_VALIDATED.bits() as i128,
    ),
    ("NETRXF_csum_blank", RxFlags::CSUM_BLANK.bits() as i128),
    ("NETRXF_more_data", RxFlags::MORE_DATA.bits() as i128),
    ("NETRXF_extra_info", RxFlags::EXTRA_INFO.bits() as i128),
    ("NETRXF_gso_prefix", RxFlags::GSO_PREFIX.bits() as i128),
    ("XEN_DOMINF_dying", DomainFlags::DYING.bits() as i128),
    (
        "XEN_DOMINF_hvm_guest",
        DomainFlags::HVM_GUEST.bits() as i128,
    ),
    ("XEN_DOMINF_shutdown", DomainFlags::SHUTDOWN.bits() as i128),
    ("XEN_DOMINF_paused", DomainFlags::PAUSED.bits() as i128),
    ("XEN_DOMINF_blocked", DomainFlags::BLOCKED.bits() as i128),
    ("XEN_DOMINF_running", DomainFlags::RUNNING.bits() as i128),
    ("XEN_DOMINF_debugged", DomainFlags::DEBUGGED.bits() as i128),
    (
        "XEN_DOMINF_xs_domain",
        DomainFlags::XS_DOMAIN.bits() as i128,
    ),
    (
        "XEN_SYSCTL_PHYSCAP_hvm",
        HostCapabilities::HVM.bits() as i128,
    ),
    ("XEN_SYSCTL_PHYSCAP_pv", HostCapabilities::PV.bits() as i128),
    (
        "XEN_SYSCTL_PHYSCAP_directio",
        HostCapabilities::DIRECTIO.bits() as i128,
    ),
    (
        "XEN_SYSCTL_PHYSCAP_hap",
        HostCapabilities::HAP.bits() as i128,
    ),
    (
        "XEN_SYSCTL_PHYSCAP_shadow",
        HostCapabilities::SHADOW.bits() as i128,
    ),
    (
        "sizeof(xen_extraversion_t)",
        xen_sys::version::EXTRAVERSION_LEN as i128,
    ),
    (
        "sizeof(xen_capabilities_info_t)",
        xen_sys::version::CAPABILITIES_LEN as i128,
    ),
    (
        "sizeof(xen_changeset_info_t)",
        xen_sys::version::CHANGESET_LEN as i128,
    ),
    (
        "sizeof(xen_commandline_t)",
        xen_sys::version::COMMANDLINE_LEN as i128,
    ),
    (
        "EVTCHN_2L_NR_CHANNELS",
        xen_sys::event_channel::NR_CHANNELS_2L as i128,
    ),
    (
        "EVTCHN_FIFO_NR_CHANNELS",
        xen_sys::event_channel::NR_CHANNELS_FIFO as i128,
    ),
    (
        "XEN_LEGACY_MAX_VCPUS",
        xen_sys::xen::LEGACY_MAX_VCPUS as i128,
    ),
    ("MAX_GUEST_CMDLINE", xen_sys::xen::MAX_GUEST_CMDLINE as i128),
];

#[test]
fn every_structure_and_constant_is_what_the_c_headers_say() {
    let Some(include) = headers() else {
        skip(
            "no Xen headers: neither XLRS_XEN_HEADERS nor /usr/include/xen (apt install libxen-dev)",
        );
        return;
    };
    let mut rows: Vec<(String, i128)> = Vec::new();
    for layout in LAYOUTS.iter().copied().flatten() {
        layout_rows(layout, &mut rows);
    }
    let constants = CONSTANTS.iter().copied().flatten();
    rows.extend(constants.map(|constant| (constant.c.to_owned(), constant.value)));
    rows.extend(FLAGS.iter().map(|&(c, value)| (c.to_owned(), value)));

    let Some(theirs) = ask_compiler(&include, &rows) else {
        skip("no C compiler: cc is not in the PATH (apt install gcc libc6-dev)");
        return;
    };
    let wrong: Vec<String> = rows
        .iter()
        .filter(|(expr, ours)| theirs.get(expr) != Some(ours) && !is_newer(expr, &theirs))
        .map(|(expr, ours)| format!("{expr}: ours {ours}, C {:?}", theirs.get(expr)))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    println!("{} facts compared with {}", rows.len(), include.display());
}

/// The two pages to which later releases append fields may be larger in newer headers.
fn is_newer(expr: &str, theirs: &HashMap<String, i128>) -> bool {
    match expr {
        "sizeof(struct xencons_interface)" => theirs[expr] > 3088,
        "sizeof(struct xenstore_domain_interface)" => theirs[expr] > 2076,
        _ => false,
    }
}

fn layout_rows(layout: &Layout, rows: &mut Vec<(String, i128)>) {
    let c = layout.c;
    if let Some((_, real, fields)) = PREFIXES.iter().find(|(ours, ..)| *ours == c) {
        rows.extend(
            fields
                .iter()
                .map(|(field, at)| (format!("offsetof({real}, {field})"), *at as i128)),
        );
        return;
    }
    rows.push((format!("sizeof({c})"), layout.size as i128));
    rows.push((format!("_Alignof({c})"), layout.align as i128));
    for &Field {
        c: field,
        offset,
        size,
    } in layout.fields
    {
        rows.push((format!("offsetof({c}, {field})"), offset as i128));
        rows.push((format!("sizeof((({c} *)0)->{field})"), size as i128));
    }
}

/// Compiles and runs a program that prints each expression; none if there is no compiler.
fn ask_compiler(include: &Path, rows: &[(String, i128)]) -> Option<HashMap<String, i128>> {
    let mut source = String::from(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <errno.h>\n\
         #define __XEN_TOOLS__ 1\n#define __XEN_INTERFACE_VERSION__ 0x00041000\n",
    );
    for header in [
        "xen.h",
        "domctl.h",
        "sysctl.h",
        "event_channel.h",
        "grant_table.h",
        "memory.h",
        "sched.h",
        "vcpu.h",
        "version.h",
        "elfnote.h",
        "features.h",
        "io/blkif.h",
        "io/console.h",
        "io/netif.h",
        "io/xenbus.h",
        "io/xs_wire.h",
    ] {
        writeln!(source, "#include <xen/{header}>").unwrap();
    }
    source.push_str("int main(void) {\n");
    for (index, (expr, _)) in rows.iter().enumerate() {
        writeln!(
            source,
            "__int128 v{index} = (__int128)({expr}); \
             printf(\"%s%llu\\n\", v{index} < 0 ? \"-\" : \"\", \
             (unsigned long long)(v{index} < 0 ? -v{index} : v{index}));"
        )
        .unwrap();
    }
    source.push_str("return 0; }\n");

    let dir = std::env::temp_dir().join(format!("xen-sys-headers-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (c, exe) = (dir.join("facts.c"), dir.join("facts"));
    std::fs::write(&c, source).unwrap();
    let compile = Command::new("cc")
        .arg("-w")
        .arg("-I")
        .arg(include)
        .arg("-o")
        .arg(&exe)
        .arg(&c)
        .output();
    let compile = match compile {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("cc: {error}"),
    };
    assert!(
        compile.status.success(),
        "cc: {}",
        String::from_utf8_lossy(&compile.stderr)
    );
    let run = Command::new(&exe)
        .output()
        .expect("the compiled program runs");
    assert!(run.status.success());
    std::fs::remove_dir_all(&dir).unwrap();
    let values: Vec<i128> = String::from_utf8(run.stdout)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(values.len(), rows.len());
    Some(
        rows.iter()
            .map(|(expr, _)| expr.clone())
            .zip(values)
            .collect(),
    )
}

fn headers() -> Option<PathBuf> {
    let named = std::env::var_os("XLRS_XEN_HEADERS").map(PathBuf::from);
    if let Some(dir) = &named {
        assert!(
            dir.join("xen/xen.h").exists(),
            "XLRS_XEN_HEADERS={}: no xen/xen.h there",
            dir.display()
        );
    }
    named.or_else(|| {
        Some(PathBuf::from("/usr/include")).filter(|dir| dir.join("xen/xen.h").exists())
    })
}

/// Says why nothing was compared; a failure where everything must be there.
fn skip(why: &str) {
    println!("SKIP every_structure_and_constant_is_what_the_c_headers_say: {why}");
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "skipped with CI=true: {why}"
    );
}
