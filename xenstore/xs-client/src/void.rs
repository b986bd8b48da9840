//! Transactions that have stumbled over what others have changed, and cannot come to a good end.
//!
//! C xenstored copies a node into a transaction when it is first asked for. What others change in between does not fit
//! together then, which it answers with EIO: a conflict, like those that are told at the end.

use xen_sys::Errno;
use xs_wire::{Request, TxId};

/// The open ones of a connection.
#[derive(Debug, Default)]
pub(crate) struct Void(Vec<TxId>);

impl Void {
    /// What a reply means to the transaction that it belongs to: the end of such a one is EAGAIN.
    pub fn judge(
        &mut self,
        tx: TxId,
        request: &Request<'_>,
        reply: Result<Vec<u8>, Errno>,
    ) -> Result<Vec<u8>, Errno> {
        let known = self.0.iter().position(|other| *other == tx);
        match (request, known) {
            (Request::TransactionEnd(_), Some(at)) => {
                self.0.swap_remove(at);
                reply.and(Err(Errno::EAGAIN))
            }
            (Request::TransactionEnd(_), None) | (_, Some(_)) => reply,
            (_, None) => {
                self.0.extend((reply == Err(Errno::EIO)).then_some(tx));
                reply
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    #[test]
    fn only_the_end_of_a_void_transaction_is_a_conflict() {
        let mut void = Void::default();
        let [one, two] = [1, 2].map(|n| TxId(NonZeroU32::new(n).unwrap()));
        let (rm, end) = (Request::Rm(b"/a"), Request::TransactionEnd(false));
        let well: Result<Vec<u8>, Errno> = Ok(Vec::new());
        // The transaction, what is asked, the reply, what it means.
        for (tx, request, reply, meant) in [
            (one, &rm, well.clone(), well.clone()),
            (one, &rm, Err(Errno::ENOENT), Err(Errno::ENOENT)),
            (one, &rm, Err(Errno::EIO), Err(Errno::EIO)),
            (one, &rm, Err(Errno::EIO), Err(Errno::EIO)),
            (two, &end, well.clone(), well.clone()),
            (one, &end, well.clone(), Err(Errno::EAGAIN)),
            // The daemon may give the number to another.
            (one, &end, well.clone(), well.clone()),
            (two, &rm, Err(Errno::EIO), Err(Errno::EIO)),
            // It has gone meanwhile.
            (two, &end, Err(Errno::ENOTCONN), Err(Errno::ENOTCONN)),
            (two, &end, Err(Errno::EIO), Err(Errno::EIO)),
            (two, &end, well.clone(), well.clone()),
        ] {
            assert_eq!(void.judge(tx, request, reply), meant, "{tx:?} {request:?}");
        }
    }
}
