//! `struct start_info` (xen.h) as a 64-bit PV guest finds it at the address in rsi.

use xen_sys::{Mfn, Port};

use crate::LayoutError;

/// Its size in bytes on x86_64.
pub const START_INFO_SIZE: usize = 1168;
/// Longest command line it holds, without the final NUL.
pub const CMDLINE_MAX: usize = 1023;

/// The initrd is told by its pfn (`SIF_MOD_START_PFN`, xen.h).
const SIF_MOD_START_PFN: u32 = 1 << 3;

/// Where the command line stands in start_info.
pub const CMDLINE_OFFSET: usize = 128;

/// What start_info says. Offsets: magic @0, nr_pages @32, shared_info @40, flags @48, store_mfn @56,
/// store_evtchn @64, console.domU.mfn @72, console.domU.evtchn @80, pt_base @88, nr_pt_frames @96,
/// mfn_list @104, mod_start @112, mod_len @120, cmd_line @128, first_p2m_pfn @1152, nr_p2m_frames @1160.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartInfo<'a> {
    /// Pages of the guest.
    pub nr_pages: u64,
    /// Frame of the shared info page.
    pub shared_info: Mfn,
    /// Frame of the store's page.
    pub store: Mfn,
    /// The guest's port to the store.
    pub store_port: Port,
    /// Frame of the console's page.
    pub console: Mfn,
    /// The guest's port to the console.
    pub console_port: Port,
    /// Virtual address of the top-level page table.
    pub pt_base: u64,
    /// Frames of page tables from there on.
    pub nr_pt_frames: u64,
    /// Virtual address of the p2m list.
    pub mfn_list: u64,
    /// First frame of the p2m list, and how many with the tables that map it.
    pub p2m: (u64, u64),
    /// The initrd: its virtual address or, if `initrd_unmapped`, its pfn; and its length in bytes.
    pub initrd: Option<(u64, u64)>,
    /// See `initrd`.
    pub initrd_unmapped: bool,
    /// The command line.
    pub cmdline: &'a str,
}

impl StartInfo<'_> {
    /// The bytes for the guest.
    ///
    /// # Errors
    /// [`LayoutError::CommandLineTooLong`].
    pub fn encode(&self) -> Result<[u8; START_INFO_SIZE], LayoutError> {
        let cmdline = self.cmdline.as_bytes();
        if cmdline.len() > CMDLINE_MAX {
            return Err(LayoutError::CommandLineTooLong { len: cmdline.len() });
        }
        let mut out = [0u8; START_INFO_SIZE];
        let mut put = |at: usize, value: u64| out[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(32, self.nr_pages);
        put(40, self.shared_info.0 << 12);
        put(56, self.store.0);
        put(64, self.store_port.0.into());
        put(72, self.console.0);
        put(80, self.console_port.0.into());
        put(88, self.pt_base);
        put(96, self.nr_pt_frames);
        put(104, self.mfn_list);
        put(1152, self.p2m.0);
        put(1160, self.p2m.1);
        if let Some((start, len)) = self.initrd {
            put(112, start);
            put(120, len);
            if self.initrd_unmapped {
                put(48, SIF_MOD_START_PFN.into());
            }
        }
        out[..14].copy_from_slice(b"xen-3.0-x86_64");
        out[CMDLINE_OFFSET..CMDLINE_OFFSET + cmdline.len()].copy_from_slice(cmdline);
        Ok(out)
    }
}
