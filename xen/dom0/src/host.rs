//! What the host is, and the hypervisor's log.

use xen_hal::{HostInfo, Result};
use xen_sys::sysctl::{self, ReadConsole, SchedId};
use xen_sys::version::{self, CompileInfo, PlatformParameters};
use xen_sys::xen::hypercall;
use xen_sys::{DomId, Errno, Plain};

use crate::hypervisor::{Hypervisor, failed};

/// Most bytes that one read of the log takes.
const MAX_LOG_BYTES: usize = 16 << 20;
/// Longest build id that is looked at.
const MAX_BUILD_ID: usize = 256;

impl Hypervisor {
    pub(crate) fn host_info(&self) -> Result<HostInfo> {
        let release = self.release();
        let physinfo =
            release.physinfo(&self.sysctl("XEN_SYSCTL_physinfo", sysctl::PHYSINFO, &0u8)?);
        let compiled: CompileInfo =
            self.xen_version("XENVER_compile_info", version::XENVER_COMPILE_INFO)?;
        let platform: PlatformParameters = self.xen_version(
            "XENVER_platform_parameters",
            version::XENVER_PLATFORM_PARAMETERS,
        )?;
        let extra: [u8; version::EXTRAVERSION_LEN] =
            self.xen_version("XENVER_extraversion", version::XENVER_EXTRAVERSION)?;
        let capabilities: [u8; version::CAPABILITIES_LEN] =
            self.xen_version("XENVER_capabilities", version::XENVER_CAPABILITIES)?;
        let changeset: [u8; version::CHANGESET_LEN] =
            self.xen_version("XENVER_changeset", version::XENVER_CHANGESET)?;
        let command_line: [u8; version::COMMANDLINE_LEN] =
            self.xen_version("XENVER_commandline", version::XENVER_COMMANDLINE)?;
        Ok(HostInfo {
            version: self.version(),
            extra_version: text(&extra),
            capabilities: text(&capabilities).trim_end().to_owned(),
            changeset: text(&changeset),
            command_line: text(&command_line),
            compiled: [
                text(&compiled.compiler),
                text(&compiled.compile_by),
                text(&compiled.compile_domain),
                text(&compiled.compile_date),
            ],
            build_id: self.build_id()?,
            scheduler: self.scheduler()?,
            platform_parameters: format!("virt_start={:#x}", platform.virt_start),
            cpus: physinfo.nr_cpus,
            max_cpu_id: physinfo.max_cpu_id,
            nodes: physinfo.nr_nodes,
            cores_per_socket: physinfo.cores_per_socket,
            threads_per_core: physinfo.threads_per_core,
            cpu_khz: physinfo.cpu_khz,
            hw_cap: physinfo.hw_cap,
            physcap: physinfo.capabilities,
            total_pages: physinfo.total_pages,
            free_pages: physinfo.free_pages,
            scrub_pages: physinfo.scrub_pages,
            outstanding_pages: physinfo.outstanding_pages,
        })
    }

    /// Reads the log in one call, so that clearing it loses nothing that was not returned, unless the
    /// log is longer than `max_bytes`.
    pub(crate) fn read_console(&self, max_bytes: usize, clear: bool) -> Result<Vec<u8>> {
        let max = max_bytes.clamp(1, MAX_LOG_BYTES);
        let log = self.buffer(max)?;
        let argument = ReadConsole {
            clear: clear.into(),
            buffer: log.address(0),
            count: max as u32,
            ..Plain::ZERO
        };
        let answer: ReadConsole = self
            .sysctl("XEN_SYSCTL_readconsole", sysctl::READCONSOLE, &argument)?
            .get();
        let len = (answer.count as usize).min(max);
        Ok(log.bytes()[..len].to_vec())
    }

    fn scheduler(&self) -> Result<String> {
        let id: SchedId = self
            .sysctl("XEN_SYSCTL_sched_id", sysctl::SCHED_ID, &0u8)?
            .get();
        Ok(match id.sched_id {
            sysctl::SCHEDULER_CREDIT => "credit".to_owned(),
            sysctl::SCHEDULER_CREDIT2 => "credit2".to_owned(),
            sysctl::SCHEDULER_ARINC653 => "arinc653".to_owned(),
            sysctl::SCHEDULER_RTDS => "rtds".to_owned(),
            sysctl::SCHEDULER_NULL => "null".to_owned(),
            other => format!("unknown ({other})"),
        })
    }

    fn build_id(&self) -> Result<String> {
        const OP: &str = "XENVER_build_id";
        let mut buffer = self.buffer(4 + MAX_BUILD_ID)?;
        buffer.put(0, &(MAX_BUILD_ID as u32));
        let args = [version::XENVER_BUILD_ID.into(), buffer.address(0), 0, 0, 0];
        let len = match self.call(hypercall::XEN_VERSION, args, &mut buffer) {
            Ok(len) => (len as usize).min(MAX_BUILD_ID),
            // Built without one, or not for us to know.
            Err(Errno::ENODATA | Errno::EPERM) => 0,
            Err(errno) => return Err(failed(OP, DomId::SELF, errno)),
        };
        Ok(buffer.bytes()[4..4 + len]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }

    fn xen_version<T: Plain>(&self, op: &'static str, what: u32) -> Result<T> {
        let mut buffer = self.buffer(size_of::<T>())?;
        let args = [what.into(), buffer.address(0), 0, 0, 0];
        self.call(hypercall::XEN_VERSION, args, &mut buffer)
            .map_err(|errno| failed(op, DomId::SELF, errno))?;
        Ok(buffer.get(0))
    }
}

/// The text before the first NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
