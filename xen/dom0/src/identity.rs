//! Which of the domains that have had a number has it now.

use xen_hal::{DomainInfo, Result};
use xen_sys::domctl::{GET_DOMAIN_STATE, Payload};
use xen_sys::{DomId, Errno, Plain};

use crate::hypervisor::Hypervisor;

/// The first release, 4.x, that gives every domain a number of its own (`XEN_DOMCTL_get_domain_state`).
const FIRST_WITH_UNIQUE_ID: u16 = 21;
/// The offset of `unique_id` in `struct xen_domctl_get_domain_state`.
const UNIQUE_ID: usize = 8;

impl Hypervisor {
    /// A number, never 0, that tells this domain from others that have or had its number; `None` if it is gone. From
    /// Xen 4.21 on no two domains have the same. Before, it is made of the UUID: two lives of one guest under the same
    /// number have the same.
    ///
    /// # Errors
    /// What the hypercall says.
    pub fn identity_of(&self, info: &DomainInfo) -> Result<Option<u64>> {
        if self.version().minor < FIRST_WITH_UNIQUE_ID {
            return Ok(Some(of_uuid(&info.uuid)));
        }
        self.unique_id(info.dom)
    }

    #[doc(alias = "XEN_DOMCTL_get_domain_state")]
    fn unique_id(&self, dom: DomId) -> Result<Option<u64>> {
        const OP: &str = "XEN_DOMCTL_get_domain_state";
        match self.stable_domctl(OP, GET_DOMAIN_STATE, dom, Payload::ZERO) {
            Ok(answer) => Ok(Some(unique_id_in(&answer.payload))),
            Err(xen_hal::Error::Hypercall {
                errno: Errno::ESRCH,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn unique_id_in(payload: &Payload) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&payload.0[UNIQUE_ID..UNIQUE_ID + 8]);
    u64::from_le_bytes(bytes).max(1)
}

fn of_uuid(uuid: &[u8; 16]) -> u64 {
    let [a, b] = [0, 8].map(|at| {
        let mut half = [0; 8];
        half.copy_from_slice(&uuid[at..at + 8]);
        u64::from_le_bytes(half)
    });
    (a ^ b.rotate_left(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let mut payload = Payload::ZERO;
        payload.0[..2].copy_from_slice(&1u16.to_le_bytes());
        payload.0[8..16].copy_from_slice(&0x1234_5678_9abc_def0_u64.to_le_bytes());
        assert_eq!(unique_id_in(&payload), 0x1234_5678_9abc_def0);
        let uuid: [u8; 16] = core::array::from_fn(|at| at as u8);
        for at in 0..16 {
            let mut other = uuid;
            other[at] ^= 1;
            assert_ne!(of_uuid(&uuid), of_uuid(&other));
        }
        assert_ne!(of_uuid(&[0; 16]), 0);
    }
}
