//! The record in which a daemon of ours tells another one what C's records have no words for: numbers of
//! connections, failed rings, and the whole store ([`State`]).

use std::collections::HashMap;
use std::os::fd::RawFd;

use crate::core::ConnId;
use crate::core::state::State;
use crate::journal::conns::What;

/// The record's kind, "xlrs".
pub const KIND: u32 = u32::from_be_bytes(*b"xlrs");

/// Most connections that can be told.
const MOST: usize = 1 << 24;

/// What is told of a connection beside C's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its number in the daemon.
    pub id: ConnId,
    /// What it is, and where its ring stands.
    pub what: What,
    /// How often its peer broke a rule.
    pub faults: u32,
}

/// The record.
#[derive(Debug)]
pub struct Extra {
    /// The last number given to a connection.
    pub last_conn: u64,
    /// The locked pid file, if there is one.
    pub pid_file: Option<RawFd>,
    /// The connections, by their numbers in the stream.
    pub conns: HashMap<u32, Kept>,
    /// The store.
    pub state: State,
}

impl Extra {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.last_conn.to_le_bytes());
        bytes.extend(self.pid_file.unwrap_or(-1).to_le_bytes());
        bytes.extend((self.conns.len() as u32).to_le_bytes());
        for (number, kept) in &self.conns {
            bytes.extend(number.to_le_bytes());
            bytes.extend(kept.id.0.to_le_bytes());
            bytes.extend(kept.what.encode());
            bytes.extend(kept.faults.to_le_bytes());
        }
        let state = self.state.encode();
        bytes.extend((state.len() as u64).to_le_bytes());
        bytes.extend(state);
        bytes
    }

    /// What a record's body tells, which may be padded, and the bytes of the store in it.
    pub fn decode(mut body: &[u8]) -> Result<(Extra, &[u8]), String> {
        let from = &mut body;
        let last_conn = u64::from_le_bytes(take(from)?);
        let pid_file = i32::from_le_bytes(take(from)?);
        let count = u32::from_le_bytes(take(from)?) as usize;
        if count > MOST {
            return Err(format!("{count} connections are too many"));
        }
        let mut conns = HashMap::new();
        for _ in 0..count {
            let number = u32::from_le_bytes(take(from)?);
            let id = ConnId(u64::from_le_bytes(take(from)?));
            let what = What::decode(&take::<{ What::SIZE }>(from)?);
            let kept = Kept {
                id,
                what: what.ok_or("a connection is nothing")?,
                faults: u32::from_le_bytes(take(from)?),
            };
            if id.0 == 0 || id.0 > last_conn || conns.insert(number, kept).is_some() {
                return Err(format!("the number of connection {number} is none"));
            }
        }
        let len = u64::from_le_bytes(take(from)?);
        let state = usize::try_from(len).ok().and_then(|len| from.get(..len));
        let bytes = state.ok_or("the store is longer than its record")?;
        let state = State::decode(bytes).map_err(|error| error.to_string())?;
        let extra = Extra {
            last_conn,
            pid_file: (pid_file >= 0).then_some(pid_file),
            conns,
            state,
        };
        Ok((extra, bytes))
    }
}

fn take<const N: usize>(from: &mut &[u8]) -> Result<[u8; N], String> {
    let (taken, rest) = from.split_first_chunk().ok_or("a record is too short")?;
    *from = rest;
    Ok(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Core;
    use crate::core::limits::Limits;

    #[test]
    fn what_is_told_is_read() {
        let kept = Kept {
            id: ConnId(77),
            what: What::Socket,
            faults: 5,
        };
        let extra = Extra {
            last_conn: 99,
            pid_file: Some(4),
            conns: HashMap::from([(3, kept)]),
            state: Core::new(Limits::default()).export(),
        };
        let bytes = extra.encode();
        let padded = [&bytes[..], &[0; 5]].concat();
        let (read, _) = Extra::decode(&padded).unwrap();
        assert_eq!((read.last_conn, read.pid_file), (99, Some(4)));
        assert_eq!((read.conns, read.state), (extra.conns, extra.state));
        for len in 0..bytes.len() {
            assert!(Extra::decode(&bytes[..len]).is_err(), "{len}");
        }
        let mut unknown = bytes;
        unknown[0] = 76;
        assert!(Extra::decode(&unknown).unwrap_err().contains("number"));
    }
}
