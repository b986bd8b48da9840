//! The operations' numbers and names (`enum xsd_sockmsg_type`, io/xs_wire.h) and the message header.

/// Most bytes of a message's payload (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: usize = 4096;
/// Most bytes of an absolute path (`XENSTORE_ABS_PATH_MAX`), the terminating NUL not counted.
pub const ABS_PATH_MAX: usize = 3072;
/// Most bytes of a path relative to `/local/domain/N` (`XENSTORE_REL_PATH_MAX`).
pub const REL_PATH_MAX: usize = 2048;

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// What a message is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Op { $($(#[$doc])* $name = $code,)* }

        impl Op {
            /// Every operation, in the order of the numbers.
            pub const ALL: &[Op] = &[$(Op::$name,)*];

            /// The operation with this number; a retired or unknown number has none.
            pub const fn from_code(code: u32) -> Option<Op> {
                match code { $($code => Some(Op::$name),)* _ => None }
            }

            /// The operation's name in docs/misc/xenstore.txt.
            pub const fn name(self) -> &'static str {
                match self { $(Op::$name => $text,)* }
            }
        }
    };
}

ops! {
    /// Talks to the daemon itself (`XS_CONTROL`, once `XS_DEBUG`).
    Control = 0, "CONTROL";
    /// Lists a node's children.
    Directory = 1, "DIRECTORY";
    /// Reads a value.
    Read = 2, "READ";
    /// Reads a permission list.
    GetPerms = 3, "GET_PERMS";
    /// Sets a watch.
    Watch = 4, "WATCH";
    /// Removes a watch.
    Unwatch = 5, "UNWATCH";
    /// Starts a transaction.
    TransactionStart = 6, "TRANSACTION_START";
    /// Ends a transaction.
    TransactionEnd = 7, "TRANSACTION_END";
    /// Connects a domain's ring.
    Introduce = 8, "INTRODUCE";
    /// Forgets a domain.
    Release = 9, "RELEASE";
    /// Names a domain's home directory.
    GetDomainPath = 10, "GET_DOMAIN_PATH";
    /// Writes a value.
    Write = 11, "WRITE";
    /// Makes a node.
    Mkdir = 12, "MKDIR";
    /// Removes a node and all below it.
    Rm = 13, "RM";
    /// Replaces a permission list.
    SetPerms = 14, "SET_PERMS";
    /// Daemon to client: a watch has fired.
    WatchEvent = 15, "WATCH_EVENT";
    /// Daemon to client: a request failed.
    Error = 16, "ERROR";
    /// Asks whether a domain is connected.
    IsDomainIntroduced = 17, "IS_DOMAIN_INTRODUCED";
    /// A domain runs again after it had shut down.
    Resume = 18, "RESUME";
    /// Gives one domain the rights of another.
    SetTarget = 19, "SET_TARGET";
    /// Removes all watches and transactions of the caller.
    ResetWatches = 21, "RESET_WATCHES";
    /// Lists a node's children, a piece at a time.
    DirectoryPart = 22, "DIRECTORY_PART";
    /// Asks for features of the daemon.
    GetFeature = 23, "GET_FEATURE";
    /// Sets features for a domain.
    SetFeature = 24, "SET_FEATURE";
    /// Asks for a quota.
    GetQuota = 25, "GET_QUOTA";
    /// Sets a quota.
    SetQuota = 26, "SET_QUOTA";
}

impl Op {
    /// The number on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }
}

/// What stands before every payload (`struct xsd_sockmsg`): four little-endian u32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The operation's number; anything, if it comes from a client.
    pub op: u32,
    /// Chosen by the client and echoed in the reply; 0 in events.
    pub req_id: u32,
    /// The transaction, 0 for none.
    pub tx_id: u32,
    /// Bytes of payload that follow.
    pub len: u32,
}

impl Header {
    /// The length on the wire in bytes.
    pub const SIZE: usize = 16;

    /// The bytes on the wire.
    pub fn encode(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let words = [self.op, self.req_id, self.tx_id, self.len];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The header in these bytes.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Header {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Header {
            op: word(0),
            req_id: word(4),
            tx_id: word(8),
            len: word(12),
        }
    }
}

const _: () = assert!(Header::SIZE == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_xs_wire_h() {
        for (op, code) in [
            (Op::Control, 0),
            (Op::TransactionEnd, 7),
            (Op::SetPerms, 14),
            (Op::Error, 16),
            (Op::SetTarget, 19),
            (Op::ResetWatches, 21),
            (Op::DirectoryPart, 22),
        ] {
            assert_eq!(op.code(), code);
            assert_eq!(Op::from_code(code), Some(op));
        }
        assert_eq!(Op::from_code(20), None, "RESTRICT is retired");
        assert_eq!(Op::from_code(0xffff), None);
    }

    #[test]
    fn header_layout() {
        let header = Header {
            op: 2,
            req_id: 0x01020304,
            tx_id: 5,
            len: 0xfffffffe,
        };
        let bytes = header.encode();
        assert_eq!(
            bytes,
            [2, 0, 0, 0, 4, 3, 2, 1, 5, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]
        );
        assert_eq!(Header::decode(&bytes), header);
    }
}
