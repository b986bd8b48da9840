//! io/console.h: a guest's console page.

use crate::abi_structs;

abi_structs! {
    table LAYOUTS;

    /// Two byte streams. From 4.20 on C has one field more (`connection` @3088), which we leave alone.
    ConsolePage = "struct xencons_interface", 3088 {
        /// Input to the guest.
        input @ 0: [u8; 1024] = "in",
        /// Output of the guest.
        output @ 1024: [u8; 2048] = "out",
        /// Guest's position in `input`.
        in_cons @ 3072: u32 = "in_cons",
        /// Daemon's position in `input`.
        in_prod @ 3076: u32 = "in_prod",
        /// Daemon's position in `output`.
        out_cons @ 3080: u32 = "out_cons",
        /// Guest's position in `output`.
        out_prod @ 3084: u32 = "out_prod",
    }
}
