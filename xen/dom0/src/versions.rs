//! What differs between Xen's releases: the one table, and the encoders and decoders it drives.

use xen_hal::{CreateDomain, DomainInfo, Error, Result, ShutdownReason, XenVersion};
use xen_sys::domctl::{self, CreateDomainPrefix, DomainFlags, Payload};
use xen_sys::{DomId, Mfn, Plain};

/// The control interface of one release of Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// 4.`minor`.
    pub minor: u16,
    /// `XEN_DOMCTL_INTERFACE_VERSION`.
    pub domctl: u32,
    /// `XEN_SYSCTL_INTERFACE_VERSION`.
    pub sysctl: u32,
    create: CreateLayout,
    /// Size of `struct xen_domctl_getdomaininfo`.
    info_size: usize,
    /// Offset of `total_pages` in `struct xen_sysctl_physinfo`; four more u64 and `hw_cap` follow.
    physinfo_pages: usize,
}

/// Where in `struct xen_domctl_createdomain` what follows the common prefix lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CreateLayout {
    size: usize,
    grant_opts: Option<usize>,
    cpupool: Option<usize>,
}

const CREATE_4_14: CreateLayout = layout(48, None, None);
const CREATE_4_15: CreateLayout = layout(56, None, None);
const CREATE_4_16: CreateLayout = layout(60, Some(44), None);
const CREATE_4_17: CreateLayout = layout(64, Some(44), Some(52));
const CREATE_4_19: CreateLayout = layout(68, Some(44), Some(56));

const fn layout(size: usize, grant_opts: Option<usize>, cpupool: Option<usize>) -> CreateLayout {
    CreateLayout {
        size,
        grant_opts,
        cpupool,
    }
}

/// The releases this program knows.
#[rustfmt::skip]
pub const RELEASES: &[Release] = &[
    Release { minor: 14, domctl: 0x12, sysctl: 0x13, create: CREATE_4_14, info_size: 104, physinfo_pages: 32 },
    Release { minor: 15, domctl: 0x13, sysctl: 0x13, create: CREATE_4_15, info_size: 104, physinfo_pages: 32 },
    Release { minor: 16, domctl: 0x14, sysctl: 0x14, create: CREATE_4_16, info_size: 112, physinfo_pages: 32 },
    Release { minor: 17, domctl: 0x15, sysctl: 0x15, create: CREATE_4_17, info_size: 112, physinfo_pages: 40 },
    Release { minor: 18, domctl: 0x16, sysctl: 0x15, create: CREATE_4_17, info_size: 112, physinfo_pages: 40 },
    Release { minor: 19, domctl: 0x17, sysctl: 0x15, create: CREATE_4_19, info_size: 112, physinfo_pages: 40 },
    Release { minor: 20, domctl: 0x17, sysctl: 0x15, create: CREATE_4_19, info_size: 112, physinfo_pages: 40 },
    Release { minor: 21, domctl: 0x17, sysctl: 0x16, create: CREATE_4_19, info_size: 112, physinfo_pages: 40 },
    Release { minor: 22, domctl: 0x18, sysctl: 0x16, create: CREATE_4_19, info_size: 112, physinfo_pages: 40 },
];

/// Host facts out of `struct xen_sysctl_physinfo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysInfo {
    pub threads_per_core: u32,
    pub cores_per_socket: u32,
    pub nr_cpus: u32,
    pub max_cpu_id: u32,
    pub nr_nodes: u32,
    pub cpu_khz: u32,
    pub capabilities: u32,
    pub total_pages: u64,
    pub free_pages: u64,
    pub scrub_pages: u64,
    pub outstanding_pages: u64,
    pub hw_cap: [u32; 8],
}

impl Release {
    /// The release that calls itself this; an unknown one is refused.
    pub fn find(version: XenVersion) -> Result<&'static Release> {
        RELEASES
            .iter()
            .find(|release| version.major == 4 && release.minor == version.minor)
            .ok_or(Error::UnknownVersion {
                major: version.major,
                minor: version.minor,
            })
    }

    /// The size of one entry in a list of domains.
    pub(crate) fn info_size(&self) -> usize {
        self.info_size
    }

    /// The argument of `XEN_DOMCTL_createdomain` for a PV domain: no flag set, no IOMMU, no tracing.
    pub(crate) fn create_payload(&self, spec: &CreateDomain) -> Payload {
        let mut payload = Payload::of(&CreateDomainPrefix {
            ssidref: 0,
            handle: spec.uuid,
            flags: 0,
            iommu_opts: 0,
            max_vcpus: spec.max_vcpus,
            max_evtchn_port: spec.max_event_channels as u32,
            max_grant_frames: spec.max_grant_frames,
            max_maptrack_frames: spec.max_maptrack_frames,
        });
        let mut put = |offset: Option<usize>, value: u32| {
            if let Some(at) = offset {
                assert!(at + 4 <= self.create.size);
                payload.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
        };
        put(self.create.grant_opts, u32::from(spec.max_grant_version));
        put(self.create.cpupool, spec.cpupool);
        payload
    }

    /// Decodes one `struct xen_domctl_getdomaininfo`.
    pub(crate) fn domain_info(&self, bytes: &[u8]) -> Option<DomainInfo> {
        let raw = domctl::DomainInfo::from_prefix(bytes.get(..self.info_size)?)?;
        let flags = DomainFlags::from_bits_retain(raw.flags);
        Some(DomainInfo {
            dom: raw.domain,
            flags: xen_hal::DomainFlags {
                dying: flags.contains(DomainFlags::DYING),
                shutdown: flags.contains(DomainFlags::SHUTDOWN),
                paused: flags.contains(DomainFlags::PAUSED),
                blocked: flags.contains(DomainFlags::BLOCKED),
                running: flags.contains(DomainFlags::RUNNING),
                hvm: flags.contains(DomainFlags::HVM_GUEST),
            },
            shutdown_reason: flags
                .shutdown_reason()
                .map(|code| ShutdownReason::from_code(code as u8)),
            total_pages: raw.tot_pages,
            outstanding_pages: raw.outstanding_pages,
            max_pages: raw.max_pages,
            shared_info_frame: Mfn(raw.shared_info_frame),
            cpu_time_ns: raw.cpu_time,
            online_vcpus: raw.nr_online_vcpus,
            max_vcpu_id: raw.max_vcpu_id,
            uuid: raw.handle,
            ssidref: raw.ssidref,
            cpupool: raw.cpupool,
        })
    }

    /// Decodes one domain's state; none if it is another domain's (up to 4.17 Xen answers with the
    /// first domain at or above the asked one).
    pub(crate) fn domain_info_of(&self, dom: DomId, payload: &Payload) -> Option<DomainInfo> {
        self.domain_info(&payload.0).filter(|info| info.dom == dom)
    }

    /// Decodes `struct xen_sysctl_physinfo`.
    pub(crate) fn physinfo(&self, payload: &Payload) -> PhysInfo {
        let word = |at: usize| u32::from_prefix(&payload.0[at..]).unwrap_or(0);
        let pages = |index: usize| {
            u64::from_prefix(&payload.0[self.physinfo_pages + 8 * index..]).unwrap_or(0)
        };
        PhysInfo {
            threads_per_core: word(0),
            cores_per_socket: word(4),
            nr_cpus: word(8),
            max_cpu_id: word(12),
            nr_nodes: word(16),
            cpu_khz: word(24),
            capabilities: word(28),
            total_pages: pages(0),
            free_pages: pages(1),
            scrub_pages: pages(2),
            outstanding_pages: pages(3),
            hw_cap: std::array::from_fn(|index| word(self.physinfo_pages + 40 + 4 * index)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(minor: u16) -> &'static Release {
        Release::find(XenVersion { major: 4, minor }).unwrap()
    }

    #[test]
    fn an_unknown_version_is_refused() {
        for (major, minor) in [(4, 13), (4, 23), (3, 17), (5, 17), (0, 0)] {
            let error = Release::find(XenVersion { major, minor }).unwrap_err();
            assert_eq!(error, Error::UnknownVersion { major, minor });
        }
        assert!(RELEASES.iter().map(|release| release.minor).eq(14..=22));
    }

    #[test]
    fn createdomain_has_each_releases_fields_in_place() {
        let spec = CreateDomain {
            uuid: *b"0123456789abcdef",
            max_vcpus: 3,
            max_event_channels: -1,
            max_grant_frames: 64,
            max_maptrack_frames: -1,
            max_grant_version: 2,
            cpupool: 7,
        };
        // (minor, size, offset of grant_opts, offset of cpupool_id)
        for (minor, size, grant_opts, cpupool) in [
            (14, 48, None, None),
            (15, 56, None, None),
            (16, 60, Some(44), None),
            (17, 64, Some(44), Some(52)),
            (18, 64, Some(44), Some(52)),
            (19, 68, Some(44), Some(56)),
            (20, 68, Some(44), Some(56)),
            (21, 68, Some(44), Some(56)),
            (22, 68, Some(44), Some(56)),
        ] {
            let payload = release(minor).create_payload(&spec);
            let mut expected = [0u8; 128];
            expected[4..20].copy_from_slice(b"0123456789abcdef");
            expected[28] = 3;
            expected[32..36].fill(0xff);
            expected[36] = 64;
            expected[40..44].fill(0xff);
            if let Some(at) = grant_opts {
                expected[at] = 2;
            }
            if let Some(at) = cpupool {
                expected[at] = 7;
            }
            assert_eq!(payload.0, expected, "4.{minor}");
            assert!(payload.0[size..].iter().all(|&byte| byte == 0), "4.{minor}");
        }
    }

    #[test]
    fn getdomaininfo_is_checked_and_decoded() {
        let mut raw = domctl::DomainInfo::ZERO;
        raw.domain = DomId(5);
        raw.flags = 1 << 2 | 3 << 16;
        raw.tot_pages = 4096;
        raw.max_pages = 4352;
        raw.shared_info_frame = 0x1234;
        raw.cpu_time = 1_000_000;
        raw.nr_online_vcpus = 1;
        raw.handle = [9; 16];
        raw.cpupool = 2;
        for release in RELEASES {
            let info = release
                .domain_info_of(DomId(5), &Payload::of(&raw))
                .unwrap();
            assert_eq!(info.shutdown_reason, Some(ShutdownReason::Crash));
            assert!(info.flags.shutdown && !info.flags.dying && !info.flags.running);
            assert_eq!((info.total_pages, info.max_pages), (4096, 4352));
            assert_eq!(info.shared_info_frame, Mfn(0x1234));
            assert_eq!((info.uuid, info.cpupool), ([9; 16], 2));
            // The next domain's answer is none.
            assert_eq!(release.domain_info_of(DomId(4), &Payload::of(&raw)), None);
            // A list whose last entry is cut short.
            let short = vec![0; release.info_size() - 1];
            assert_eq!(release.domain_info(&short), None);
        }
    }

    #[test]
    fn physinfo_is_decoded_per_release() {
        for (minors, pages, hw_cap) in [(14..=16, 32, 72), (17..=22, 40, 80)] {
            for minor in minors {
                let mut payload = Payload::ZERO;
                payload.0[8] = 4;
                payload.0[28] = 3;
                payload.0[pages] = 100;
                payload.0[pages + 8] = 50;
                payload.0[pages + 24] = 7;
                payload.0[hw_cap] = 0xaa;
                payload.0[hw_cap + 28] = 0xbb;
                let info = release(minor).physinfo(&payload);
                assert_eq!((info.nr_cpus, info.capabilities), (4, 3), "4.{minor}");
                assert_eq!((info.total_pages, info.free_pages), (100, 50), "4.{minor}");
                assert_eq!(info.outstanding_pages, 7, "4.{minor}");
                assert_eq!((info.hw_cap[0], info.hw_cap[7]), (0xaa, 0xbb), "4.{minor}");
            }
        }
    }

    #[test]
    fn interface_versions_are_the_releases_own() {
        // (minor, domctl, sysctl), from each release's headers.
        for (minor, domctl, sysctl) in [
            (14, 0x12, 0x13),
            (15, 0x13, 0x13),
            (16, 0x14, 0x14),
            (17, 0x15, 0x15),
            (18, 0x16, 0x15),
            (19, 0x17, 0x15),
            (20, 0x17, 0x15),
            (21, 0x17, 0x16),
            (22, 0x18, 0x16),
        ] {
            let release = release(minor);
            assert_eq!((release.domctl, release.sysctl), (domctl, sysctl));
        }
    }
}
