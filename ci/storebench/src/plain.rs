//! A client that makes one request at a time and waits: for preparing, and for what is sequential.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use xs_wire::{Header, Op};

use crate::error::{Context, Result, fail};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection.
pub struct Plain {
    stream: UnixStream,
}

impl Plain {
    /// Connects.
    pub fn connect(socket: &Path) -> Result<Plain> {
        let stream = UnixStream::connect(socket)
            .context(|| format!("connecting to {}", socket.display()))?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .context(|| "setting a timeout".into())?;
        Ok(Plain { stream })
    }

    /// Sends a request and waits for its reply; watch events on the way are dropped.
    pub fn ask(&mut self, op: Op, tx: u32, parts: &[&[u8]]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        encode(&mut bytes, op, tx, parts);
        self.stream
            .write_all(&bytes)
            .context(|| format!("sending {op:?}"))?;
        loop {
            let (header, body) = self.next().map_err(|e| {
                crate::error::Error(format!("waiting for the reply to {op:?}: {e}"))
            })?;
            if header.op == op.code() {
                return Ok(body);
            }
            if header.op == Op::Error.code() {
                return fail(refused(op, parts, &body));
            }
        }
    }

    /// Waits for the next watch event.
    pub fn event(&mut self) -> Result<()> {
        let (header, _) = self.next().context(|| "waiting for an event".into())?;
        if header.op != Op::WatchEvent.code() {
            return fail(format!("a message {} in the place of an event", header.op));
        }
        Ok(())
    }

    fn next(&mut self) -> std::io::Result<(Header, Vec<u8>)> {
        let mut head = [0; Header::SIZE];
        self.stream.read_exact(&mut head)?;
        let header = Header::decode(&head);
        if header.len > 1 << 20 {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; header.len as usize];
        self.stream.read_exact(&mut body)?;
        Ok((header, body))
    }
}

/// Appends a request's bytes.
pub fn encode(to: &mut Vec<u8>, op: Op, tx: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let header = Header {
        op: op.code(),
        req_id: 1,
        tx_id: tx,
        len: len as u32,
    };
    to.extend_from_slice(&header.encode());
    for part in parts {
        to.extend_from_slice(part);
    }
}

/// Words for an error reply.
pub fn refused(op: Op, parts: &[&[u8]], body: &[u8]) -> String {
    let about = String::from_utf8_lossy(parts.first().unwrap_or(&&b""[..])).into_owned();
    let why = String::from_utf8_lossy(body).into_owned();
    let (about, why) = (about.trim_end_matches('\0'), why.trim_end_matches('\0'));
    format!("{op:?} {about}: {why}")
}
