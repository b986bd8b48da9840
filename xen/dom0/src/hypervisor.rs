//! The privcmd device: hypercalls and foreign mappings.

use std::fs::File;
use std::os::fd::AsFd;

use xen_hal::{Error, Result, XenVersion};
use xen_sys::domctl::{self, Domctl, Payload};
use xen_sys::sysctl::Sysctl;
use xen_sys::xen::hypercall;
use xen_sys::{DomId, Errno, Mfn, Plain, version};

use crate::abi::{self, PrivcmdHypercall, PrivcmdMmapBatchV2, PrivcmdMmapResource};
use crate::buffer::{Buffer, Buffers};
use crate::device;
use crate::mapping::{ForeignMapping, Mapping};
use crate::versions::Release;

const PRIVCMD: &str = "/dev/xen/privcmd";
const MMAPBATCH: &str = "IOCTL_PRIVCMD_MMAPBATCH_V2";
const HYPERCALL_BUFFERS: &str = "/dev/xen/hypercall";

/// The hypervisor's control interface, as dom0 has it.
#[derive(Debug)]
pub struct Hypervisor {
    privcmd: File,
    buffers: Buffers,
    version: XenVersion,
    release: &'static Release,
}

impl Hypervisor {
    /// Opens privcmd, asks Xen for its version and checks with one call that it means what our table says.
    ///
    /// # Errors
    /// [`Error::System`] if there is no such node or no right to it ([`preflight`](crate::preflight())
    /// says why), [`Error::UnknownVersion`] for a release that is not in the table.
    pub fn open() -> Result<Hypervisor> {
        let privcmd = device::open(PRIVCMD, 0)?;
        let buffers = Buffers::new(device::open(HYPERCALL_BUFFERS, 0).ok());
        let packed = raw_hypercall(
            &privcmd,
            hypercall::XEN_VERSION,
            [u64::from(version::XENVER_VERSION), 0, 0, 0, 0],
        )
        .map_err(|errno| failed("XENVER_version", DomId::SELF, errno))?;
        let version = XenVersion {
            major: (packed >> 16) as u16,
            minor: packed as u16,
        };
        let release = Release::find(version)?;
        let hypervisor = Hypervisor {
            privcmd,
            buffers,
            version,
            release,
        };
        hypervisor.domctl_raw(
            "XEN_DOMCTL_getdomaininfo (probe of the interface version)",
            domctl::GETDOMAININFO,
            DomId::DOM0,
            Payload::ZERO,
        )?;
        Ok(hypervisor)
    }

    /// Xen's version.
    pub fn version(&self) -> XenVersion {
        self.version
    }

    /// Xen's control interface.
    pub fn release(&self) -> &'static Release {
        self.release
    }

    /// Zeroed memory for a hypercall's argument.
    pub(crate) fn buffer(&self, len: usize) -> Result<Buffer<'_>> {
        self.buffers
            .take(len)
            .map_err(|errno| device::system("mmap", HYPERCALL_BUFFERS, errno))
    }

    /// Makes a hypercall whose one argument in memory, if any, is in `buffer`.
    pub(crate) fn call(
        &self,
        number: u64,
        args: [u64; 5],
        _buffer: &mut Buffer<'_>,
    ) -> Result<u32, Errno> {
        raw_hypercall(&self.privcmd, number, args)
    }

    /// A domctl; returns its payload as Xen left it.
    pub(crate) fn domctl<T: Plain>(
        &self,
        op: &'static str,
        cmd: u32,
        dom: DomId,
        argument: &T,
    ) -> Result<Payload> {
        Ok(self
            .domctl_raw(op, cmd, dom, Payload::of(argument))?
            .payload)
    }

    /// A domctl; returns all of it as Xen left it.
    pub(crate) fn domctl_raw(
        &self,
        op: &'static str,
        cmd: u32,
        dom: DomId,
        payload: Payload,
    ) -> Result<Domctl> {
        self.domctl_of_version(op, cmd, self.release.domctl, dom, payload)
    }

    /// A domctl that is the same in all releases that have it.
    pub(crate) fn stable_domctl(
        &self,
        op: &'static str,
        cmd: u32,
        dom: DomId,
        payload: Payload,
    ) -> Result<Domctl> {
        self.domctl_of_version(op, cmd, 0, dom, payload)
    }

    fn domctl_of_version(
        &self,
        op: &'static str,
        cmd: u32,
        interface_version: u32,
        dom: DomId,
        payload: Payload,
    ) -> Result<Domctl> {
        let mut buffer = self.buffer(size_of::<Domctl>())?;
        buffer.put(0, &Domctl::new(cmd, interface_version, dom, &payload));
        let args = [buffer.address(0), 0, 0, 0, 0];
        self.call(hypercall::DOMCTL, args, &mut buffer)
            .map_err(|errno| failed(op, dom, errno))?;
        Ok(buffer.get(0))
    }

    /// A sysctl; returns its payload as Xen left it.
    pub(crate) fn sysctl<T: Plain>(
        &self,
        op: &'static str,
        cmd: u32,
        argument: &T,
    ) -> Result<Payload> {
        let mut buffer = self.buffer(size_of::<Sysctl>())?;
        buffer.put(0, &Sysctl::new(cmd, self.release.sysctl, argument));
        let args = [buffer.address(0), 0, 0, 0, 0];
        self.call(hypercall::SYSCTL, args, &mut buffer)
            .map_err(|errno| failed(op, DomId::SELF, errno))?;
        Ok(buffer.get::<Sysctl>(0).payload)
    }

    /// Maps frames one after another: all or an error.
    pub(crate) fn map_foreign(&self, dom: DomId, frames: &[Mfn]) -> Result<ForeignMapping> {
        let (mapping, errors) = self.map_batch(dom, frames, true)?;
        match errors.iter().find(|&&error| error != 0) {
            Some(&error) => Err(failed(MMAPBATCH, dom, Errno(-error))),
            None => Ok(mapping),
        }
    }

    /// Maps frames one after another as far as that goes; tells the error of each, 0 if there is none. What
    /// is not mapped must not be touched.
    pub(crate) fn map_batch(
        &self,
        dom: DomId,
        frames: &[Mfn],
        writable: bool,
    ) -> Result<(ForeignMapping, Vec<i32>)> {
        let mapping = Mapping::new(self.privcmd.as_fd(), frames.len(), 0, writable)
            .map_err(|errno| failed(MMAPBATCH, dom, errno))?;
        let mut errors = vec![0i32; frames.len()];
        let mut request = PrivcmdMmapBatchV2 {
            num: u32::try_from(frames.len()).map_err(|_| failed(MMAPBATCH, dom, Errno::E2BIG))?,
            dom,
            addr: mapping.address(),
            arr: frames.as_ptr().expose_provenance() as u64,
            err: errors.as_mut_ptr().expose_provenance() as u64,
            ..Plain::ZERO
        };
        // SAFETY: the request and the arrays it names are valid for the call; the mapping is ours, was
        // made with this descriptor and nobody else knows of it yet.
        let result = unsafe {
            device::ioctl(
                self.privcmd.as_fd(),
                abi::PRIVCMD_MMAPBATCH_V2,
                (&raw mut request).cast(),
            )
        };
        match result {
            Err(errno) if errors.iter().all(|&error| error == 0) => {
                Err(failed(MMAPBATCH, dom, errno))
            }
            _ => Ok((ForeignMapping(mapping), errors)),
        }
    }

    /// Maps frames of a resource, such as a domain's grant table.
    pub(crate) fn map_resource(
        &self,
        dom: DomId,
        kind: u16,
        id: u32,
        frames: usize,
    ) -> Result<ForeignMapping> {
        const OP: &str = "IOCTL_PRIVCMD_MMAP_RESOURCE";
        let mapping = self.reserve(dom, frames, OP)?;
        let mut request = PrivcmdMmapResource {
            dom,
            kind: kind.into(),
            id,
            num: frames as u64,
            addr: mapping.address(),
            ..Plain::ZERO
        };
        // SAFETY: the request is valid for the call; the mapping is ours and nobody else knows of it yet.
        unsafe {
            device::ioctl(
                self.privcmd.as_fd(),
                abi::PRIVCMD_MMAP_RESOURCE,
                (&raw mut request).cast(),
            )
        }
        .map_err(|errno| failed(OP, dom, errno))?;
        Ok(ForeignMapping(mapping))
    }

    fn reserve(&self, dom: DomId, pages: usize, op: &'static str) -> Result<Mapping> {
        Mapping::new(self.privcmd.as_fd(), pages, 0, true).map_err(|errno| failed(op, dom, errno))
    }
}

/// An error of a hypercall on `dom`.
pub(crate) fn failed(op: &'static str, dom: DomId, errno: Errno) -> Error {
    Error::Hypercall { op, dom, errno }
}

/// The one place where a hypercall is made. Addresses in `arg` are of [`Buffer`]s, which callers of
/// [`Hypervisor::call`] hold exclusively.
fn raw_hypercall(privcmd: &File, op: u64, arg: [u64; 5]) -> Result<u32, Errno> {
    let mut request = PrivcmdHypercall { op, arg };
    // SAFETY: the request is valid for the call; Xen checks every address in it and writes only to
    // memory of the hypercall's arguments, which are buffers of this crate.
    unsafe {
        device::ioctl(
            privcmd.as_fd(),
            abi::PRIVCMD_HYPERCALL,
            (&raw mut request).cast(),
        )
    }
}
