//! Goes through a stream, record by record.

use core::fmt;

use xen_sys::{DomId, Port};

use crate::record::{Connection, DomainData, Node, Peer, Quotas, Record, Watch, kind};
use crate::{ANY_DEPTH, BIG_ENDIAN, HAS_UNIQUE_ID, IDENT, NEWEST, RECORD_HEADER, STREAM_HEADER};

/// Why a stream cannot be read: where, and what is wrong there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Bytes before the trouble.
    pub at: usize,
    /// What it is.
    pub what: &'static str,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the state's stream is broken at byte {}: {}",
            self.at, self.what
        )
    }
}

impl core::error::Error for Error {}

/// A stream that is being read.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    version: u32,
    big_endian: bool,
    ended: bool,
}

impl<'a> Reader<'a> {
    /// Checks the header.
    pub fn new(bytes: &'a [u8]) -> Result<Reader<'a>, Error> {
        let error = |what| Error { at: 0, what };
        let head = bytes.first_chunk::<STREAM_HEADER>();
        let head = head.ok_or(error("it is shorter than its header"))?;
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if head[..8] != *IDENT {
            return Err(error("it does not begin with \"xenstore\""));
        }
        let (version, flags) = (word(8), word(12));
        if version == 0 || version > NEWEST {
            return Err(error("its version is neither 1 nor 2"));
        }
        // The design has the flags big-endian; C on a little-endian machine writes 0, which says the same.
        if flags & !BIG_ENDIAN != 0 {
            return Err(error("it has flags that are not known"));
        }
        Ok(Reader {
            bytes,
            at: STREAM_HEADER,
            version,
            big_endian: flags & BIG_ENDIAN != 0,
            ended: false,
        })
    }

    /// The stream's version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The next record; `None` behind the last, which is [`Record::End`].
    pub fn next_record(&mut self) -> Result<Option<Record<'a>>, Error> {
        if self.ended {
            return Ok(None);
        }
        let start = self.at;
        let mut head = self.part(start, RECORD_HEADER, "it ends without an END record")?;
        let (kind, len) = (head.u32()?, head.u32()?);
        let len = len as usize;
        let body_at = start + RECORD_HEADER;
        let mut body = self.part(body_at, len, "a record is longer than what is left")?;
        let record = self.record(kind, &mut body)?;
        // C's records are multiples of 8 bytes, their lengths too.
        self.at = body_at + len.next_multiple_of(8).min(self.bytes.len() - body_at);
        self.ended = record == Record::End;
        Ok(Some(record))
    }

    fn part(&self, at: usize, len: usize, what: &'static str) -> Result<Part<'a>, Error> {
        let bytes = self.bytes.get(at..).and_then(|rest| rest.get(..len));
        Ok(Part {
            bytes: bytes.ok_or(Error { at, what })?,
            at: 0,
            start: at,
            big_endian: self.big_endian,
        })
    }

    fn record(&self, kind: u32, body: &mut Part<'a>) -> Result<Record<'a>, Error> {
        Ok(match kind {
            kind::END => Record::End,
            kind::GLOBAL => Record::Global {
                socket: body.u32()? as i32,
                evtchn: body.u32()? as i32,
            },
            kind::CONNECTION => Record::Connection(connection(body)?),
            kind::WATCH => Record::Watch(watch(body, false)?),
            kind::WATCH_EXTENDED if self.version >= 2 => Record::Watch(watch(body, true)?),
            kind::TRANSACTION => Record::Transaction {
                conn: body.u32()?,
                id: body.u32()?,
            },
            kind::NODE => Record::Node(node(body)?),
            kind::GLOBAL_QUOTA => {
                let (per_domain, global) = (body.u16()?, body.u16()?);
                Record::GlobalQuota(quotas(body, usize::from(per_domain) + usize::from(global))?)
            }
            kind::DOMAIN => {
                let dom = DomId(body.u16()?);
                let count = body.u16()?;
                let features = body.u32()?;
                Record::Domain(DomainData {
                    dom,
                    features: (self.version >= 2).then_some(features),
                    quotas: quotas(body, count.into())?,
                })
            }
            kind => Record::Unknown {
                kind,
                body: body.bytes,
            },
        })
    }
}

fn connection<'a>(body: &mut Part<'a>) -> Result<Connection<'a>, Error> {
    let (id, conn_type, fields) = (body.u32()?, body.u16()?, body.u16()?);
    let peer = match conn_type {
        0 => {
            let (dom, target) = (body.u16()?, DomId(body.u16()?));
            Peer::Ring {
                dom: DomId(dom),
                target: (target != DomId::INVALID).then_some(target),
                port: Port(body.u32()?),
            }
        }
        1 => {
            let fd = body.u32()? as i32;
            body.take(4)?;
            Peer::Socket(fd)
        }
        _ => return Err(body.error("a connection is neither a ring nor a socket")),
    };
    let (input, partial, output) = (body.u16()?, usize::from(body.u16()?), body.u32()?);
    let input = body.take(input.into())?;
    let output = body.take(output as usize)?;
    if id == 0 {
        return Err(body.error("a connection has the number 0"));
    }
    if partial > output.len() {
        return Err(body.error("a partial response is longer than all that is to be sent"));
    }
    let unique_id = match fields & HAS_UNIQUE_ID {
        0 => None,
        _ => {
            body.align()?;
            Some(body.u64()?)
        }
    };
    Ok(Connection {
        id,
        peer,
        input,
        output,
        partial,
        unique_id,
    })
}

fn watch<'a>(body: &mut Part<'a>, extended: bool) -> Result<Watch<'a>, Error> {
    let (conn, path_len, token_len) = (body.u32()?, body.u16()?, body.u16()?);
    let mut depth = ANY_DEPTH;
    if extended {
        depth = body.u16()?;
        // The design has two bytes of padding here, C's struct has none; no path begins with a NUL.
        if body.bytes.get(body.at..body.at + 2) == Some(&[0, 0]) {
            body.take(2)?;
        }
    }
    Ok(Watch {
        conn,
        path: body.text(path_len)?,
        token: body.text(token_len)?,
        depth: (depth != ANY_DEPTH).then_some(depth),
    })
}

fn node<'a>(body: &mut Part<'a>) -> Result<Node<'a>, Error> {
    let (conn, transaction) = (body.u32()?, body.u32()?);
    let (path_len, value_len) = (body.u16()?, body.u16()?);
    let (access, entries) = (body.u16()?, body.u16()?);
    let permissions = body.take(usize::from(entries) * 4)?;
    let path = body.text(path_len)?;
    let value = body.take(value_len.into())?;
    if conn == 0 && entries == 0 {
        return Err(body.error("a node has no owner"));
    }
    Ok(Node {
        conn,
        transaction,
        access,
        path,
        value,
        permissions,
        big_endian: body.big_endian,
    })
}

fn quotas<'a>(body: &mut Part<'a>, count: usize) -> Result<Quotas<'a>, Error> {
    let values = body.take(count * 4)?;
    let names = body.take(body.bytes.len() - body.at)?;
    if names.iter().filter(|byte| **byte == 0).count() < count {
        return Err(body.error("a quota has no name"));
    }
    Ok(Quotas {
        values,
        names,
        big_endian: body.big_endian,
    })
}

/// Some bytes of the stream that are taken from the front.
struct Part<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where in the stream they begin.
    start: usize,
    big_endian: bool,
}

impl<'a> Part<'a> {
    fn error(&self, what: &'static str) -> Error {
        Error {
            at: self.start + self.at,
            what,
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..len));
        let taken = taken.ok_or(self.error("a record is shorter than what it says it has"))?;
        self.at += len;
        Ok(taken)
    }

    /// What ends with a NUL, which is counted.
    fn text(&mut self, len: u16) -> Result<&'a [u8], Error> {
        match self.take(len.into())? {
            [text @ .., 0] if !text.contains(&0) => Ok(text),
            _ => Err(self.error("a text does not end with its only NUL")),
        }
    }

    fn align(&mut self) -> Result<(), Error> {
        self.take(self.at.next_multiple_of(8) - self.at).map(drop)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        if self.big_endian {
            array.reverse();
        }
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16, Error> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }
}
