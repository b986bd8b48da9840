//! A new domain's grant table, written before the domain runs.

use xen_hal::{Error, Result};
use xen_ring::SharedMemoryExt;
use xen_sys::grant_table::{
    EntryV1, GNTTABOP_SETUP_TABLE, GrantFlags, GrantStatus, SetupTable, V1_ENTRIES_PER_PAGE,
};
use xen_sys::memory::{RESOURCE_GRANT_TABLE, RESOURCE_GRANT_TABLE_ID_SHARED};
use xen_sys::xen::hypercall;
use xen_sys::{DomId, Errno, GrantRef, Mfn, Plain};

use crate::hypervisor::{Hypervisor, failed};
use crate::mapping::ForeignMapping;

/// `ENOTTY` of Linux: the driver does not know this ioctl.
const ENOTTY: Errno = Errno(25);

impl Hypervisor {
    /// Writes entries of version 1 into the first page of the table.
    pub(crate) fn write_grants(&self, dom: DomId, grants: &[(GrantRef, DomId, Mfn)]) -> Result<()> {
        const OP: &str = "seed the grant table";
        let table = self.grant_table(dom)?;
        for &(gref, peer, frame) in grants {
            let index = gref.0 as usize;
            let frame = u32::try_from(frame.0).map_err(|_| failed(OP, dom, Errno::ERANGE))?;
            if index >= V1_ENTRIES_PER_PAGE {
                return Err(failed(OP, dom, Errno::EINVAL));
            }
            let entry = EntryV1 {
                flags: GrantFlags::PERMIT_ACCESS.bits(),
                domid: peer,
                frame,
            };
            // The domain has not run yet: nobody looks at a half-written entry.
            table.write(index * size_of::<EntryV1>(), entry);
        }
        Ok(())
    }

    /// The first page of a domain's grant table.
    fn grant_table(&self, dom: DomId) -> Result<ForeignMapping> {
        let resource =
            self.map_resource(dom, RESOURCE_GRANT_TABLE, RESOURCE_GRANT_TABLE_ID_SHARED, 1);
        match resource {
            // Linux before 4.18, or before this was given to PV.
            Err(Error::Hypercall {
                errno: Errno::ENOSYS | Errno::EOPNOTSUPP | ENOTTY,
                ..
            }) => self.grant_table_by_frame(dom),
            other => other,
        }
    }

    fn grant_table_by_frame(&self, dom: DomId) -> Result<ForeignMapping> {
        const OP: &str = "GNTTABOP_setup_table";
        const LIST: usize = size_of::<SetupTable>();
        let mut buffer = self.buffer(LIST + 8)?;
        let argument = SetupTable {
            dom,
            nr_frames: 1,
            frame_list: buffer.address(LIST),
            ..Plain::ZERO
        };
        buffer.put(0, &argument);
        let args = [GNTTABOP_SETUP_TABLE.into(), buffer.address(0), 1, 0, 0];
        self.call(hypercall::GRANT_TABLE_OP, args, &mut buffer)
            .map_err(|errno| failed(OP, dom, errno))?;
        let answer: SetupTable = buffer.get(0);
        match answer.status {
            GrantStatus::OKAY => self.map_foreign(dom, &[Mfn(buffer.get(LIST))]),
            GrantStatus::BAD_DOMAIN => Err(failed(OP, dom, Errno::ESRCH)),
            _ => Err(failed(OP, dom, Errno::EIO)),
        }
    }
}
