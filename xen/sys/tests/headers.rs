//! Every structure and constant of this crate against the C headers.

mod witness;

use std::mem::offset_of;

use xen_sys::domctl::{DomainFlags, DomainInfo};
use xen_sys::grant_table::{GrantFlags, GrantStatus, MapFlags};
use xen_sys::io::netif::{RxFlags, TxFlags};
use xen_sys::sysctl::HostCapabilities;
use xen_sys::xen::{StartFlags, VaFlush};
use xen_sys::{CONSTANTS, LAYOUTS, domctl};

/// Our name, C's name, and the fields' offsets in ours.
type Prefix = (&'static str, &'static str, &'static [(&'static str, usize)]);

/// Structures of which we have only what all releases share: compared field by field, not by size.
const PREFIXES: &[Prefix] = &[
    (
        "struct domaininfo_prefix",
        "struct xen_domctl_getdomaininfo",
        &[
            ("domain", offset_of!(DomainInfo, domain)),
            ("flags", offset_of!(DomainInfo, flags)),
            ("tot_pages", offset_of!(DomainInfo, tot_pages)),
            ("max_pages", offset_of!(DomainInfo, max_pages)),
            (
                "outstanding_pages",
                offset_of!(DomainInfo, outstanding_pages),
            ),
            ("shr_pages", offset_of!(DomainInfo, shr_pages)),
            ("paged_pages", offset_of!(DomainInfo, paged_pages)),
            (
                "shared_info_frame",
                offset_of!(DomainInfo, shared_info_frame),
            ),
            ("cpu_time", offset_of!(DomainInfo, cpu_time)),
            ("nr_online_vcpus", offset_of!(DomainInfo, nr_online_vcpus)),
            ("max_vcpu_id", offset_of!(DomainInfo, max_vcpu_id)),
            ("ssidref", offset_of!(DomainInfo, ssidref)),
            ("handle", offset_of!(DomainInfo, handle)),
            ("cpupool", offset_of!(DomainInfo, cpupool)),
        ],
    ),
    (
        "struct createdomain_prefix",
        "struct xen_domctl_createdomain",
        &[
            ("ssidref", offset_of!(domctl::CreateDomainPrefix, ssidref)),
            ("handle", offset_of!(domctl::CreateDomainPrefix, handle)),
            ("flags", offset_of!(domctl::CreateDomainPrefix, flags)),
            (
                "iommu_opts",
                offset_of!(domctl::CreateDomainPrefix, iommu_opts),
            ),
            (
                "max_vcpus",
                offset_of!(domctl::CreateDomainPrefix, max_vcpus),
            ),
            (
                "max_evtchn_port",
                offset_of!(domctl::CreateDomainPrefix, max_evtchn_port),
            ),
            (
                "max_grant_frames",
                offset_of!(domctl::CreateDomainPrefix, max_grant_frames),
            ),
            (
                "max_maptrack_frames",
                offset_of!(domctl::CreateDomainPrefix, max_maptrack_frames),
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
    let mut rows = witness::Rows::new();
    for layout in LAYOUTS.iter().copied().flatten() {
        match PREFIXES.iter().find(|(ours, ..)| *ours == layout.c) {
            Some((_, c, fields)) => rows.extend(
                fields
                    .iter()
                    .map(|(field, at)| (format!("offsetof({c}, {field})"), *at as i128)),
            ),
            None => witness::layout_rows(layout, &mut rows),
        }
    }
    for constants in CONSTANTS {
        witness::constant_rows(constants, &mut rows);
    }
    rows.extend(FLAGS.iter().map(|&(c, value)| (c.to_owned(), value)));
    // The two pages to which later releases append fields.
    let newer = |expr: &str, theirs: i128| match expr {
        "sizeof(struct xencons_interface)" => theirs > 3088,
        "sizeof(struct xenstore_domain_interface)" => theirs > 2076,
        _ => false,
    };
    let headers = [
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
        "hypfs.h",
        "io/blkif.h",
        "io/console.h",
        "io/netif.h",
        "io/xenbus.h",
        "io/xs_wire.h",
    ];
    witness::compare("xen-sys-headers", &headers, &rows, newer);
}
