//! What broker and worker say to each other, one message a packet, and descriptors along with it. Each device has
//! a conversation of its own, so none waits for another's.
//!
//! Invariant: neither side trusts a message to be well made: what is not ends the conversation.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use blkback::{Allowance, Connect, Disk, Format, Limits, Protocol, RingInfo};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use xen_backend::DeviceId;
use xen_sys::{DomId, GrantRef, Port};

/// Longest message; the largest has the grants of 8 queues of 16 pages each.
const MAX_LEN: usize = 16 << 10;
/// Most descriptors with one: gntdev, and two for each of 8 queues.
const MAX_FDS: usize = 20;

/// A message.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// To the worker: a new device, whose conversation is the descriptor.
    Device,
    /// To the worker: make a disk of the first descriptor; the second wakes the broker.
    Open {
        path: PathBuf,
        format: String,
        read_only: bool,
        direct: bool,
    },
    /// To the broker: the image names another file.
    Need {
        image: PathBuf,
        name: String,
        role: String,
        read_only: bool,
    },
    /// The answer, with the file.
    File { path: PathBuf },
    /// To the broker: the disk is open.
    Opened(Medium),
    /// To either: what was asked for did not work.
    Refused { errno: Option<i32>, why: String },
    /// To the worker: serve rings. With gntdev, and event channels and accounts of all queues.
    Serve(Serve),
    /// To the worker: look at the size again.
    Refresh,
    /// The answer.
    Size { sectors_512: u64 },
    /// To the broker: a ring cannot be served any more.
    Failed { errno: i32, why: String },
    /// To the worker: serve no more.
    Stop {
        /// What is on record is of no use.
        forget: bool,
    },
    /// The answer: nothing runs any more.
    Stopped,
}

/// What there is to know of a disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Medium {
    pub sectors_512: u64,
    pub sector_size: u32,
    pub can_discard: bool,
    pub discard_unit: u32,
}

/// [`Connect`], and how to go about it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Serve {
    dom: u16,
    index: u32,
    native: bool,
    persistent: bool,
    rings: Vec<(Vec<u32>, u32)>,
    sectors_512: u64,
    sector_size: u32,
    read_only: bool,
    discard: bool,
    indirect: u16,
    requests: u64,
    bytes: u64,
    resume: bool,
    /// Pages may stay mapped.
    pub keep_mapped: bool,
    /// The name of an engine.
    pub engine: String,
}

impl Serve {
    pub fn new(connect: &Connect, keep_mapped: bool, engine: String) -> Serve {
        let ring = |ring: &RingInfo| (ring.grefs.iter().map(|g| g.0).collect(), ring.port.0);
        Serve {
            dom: connect.id.dom.0,
            index: connect.id.index,
            native: connect.protocol == Protocol::Native,
            persistent: connect.persistent,
            rings: connect.rings.iter().map(ring).collect(),
            sectors_512: connect.limits.sectors_512,
            sector_size: connect.limits.sector_size,
            read_only: connect.limits.read_only,
            discard: connect.limits.discard,
            indirect: connect.limits.indirect,
            requests: connect.allowance.requests,
            bytes: connect.allowance.bytes,
            resume: connect.resume,
            keep_mapped,
            engine,
        }
    }

    pub fn connect(&self) -> Connect {
        Connect {
            id: DeviceId {
                dom: DomId(self.dom),
                index: self.index,
            },
            protocol: match self.native {
                true => Protocol::Native,
                false => Protocol::X86_32,
            },
            persistent: self.persistent,
            rings: (self.rings.iter())
                .map(|(grefs, port)| RingInfo {
                    grefs: grefs.iter().copied().map(GrantRef).collect(),
                    port: Port(*port),
                })
                .collect(),
            limits: Limits {
                sectors_512: self.sectors_512,
                sector_size: self.sector_size,
                read_only: self.read_only,
                discard: self.discard,
                indirect: self.indirect,
            },
            allowance: Allowance {
                requests: self.requests,
                bytes: self.bytes,
            },
            resume: self.resume,
        }
    }
}

const FORMATS: [(&str, Format); 4] = [
    ("raw", Format::Raw),
    ("qcow2", Format::Qcow2),
    ("vhd", Format::Vhd),
    ("vmdk", Format::Vmdk),
];

/// A format's name.
pub fn format_name(format: Format) -> String {
    let found = FORMATS.iter().find(|(_, known)| *known == format);
    found.map_or("", |(name, _)| name).to_string()
}

/// What the worker is told of a disk; the rest is the broker's affair.
pub fn disk(path: PathBuf, format: &str, read_only: bool) -> Option<Disk> {
    let known = FORMATS.iter().find(|(name, _)| *name == format)?;
    Some(Disk::plain(path, known.1, read_only))
}

/// Two ends of a conversation.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Sends a message with descriptors.
pub fn send(to: impl AsFd, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_LEN || fds.len() > MAX_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    // Whoever does not read is not waited for: a conversation has few messages.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(to, &[IoSlice::new(&bytes)], &mut control, flags)?;
    Ok(())
}

/// The next message; `None` at the end of the conversation.
pub fn receive(from: impl AsFd, flags: RecvFlags) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let got = loop {
        match recvmsg(
            &from,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            flags,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    match got.bytes {
        0 => Ok(None),
        len => Ok(Some((serde_json::from_slice(&bytes[..len])?, fds))),
    }
}

/// An error for a [`Message::Refused`], and back.
pub fn refused(error: &io::Error) -> Message {
    Message::Refused {
        errno: error.raw_os_error(),
        why: error.to_string(),
    }
}

/// The error that a [`Message::Refused`] tells of.
pub fn refusal(errno: Option<i32>, why: String) -> io::Error {
    match errno {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(io::ErrorKind::InvalidData, why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn messages_arrive_whole_and_with_their_descriptors() {
        let (ours, theirs) = pair().unwrap();
        let (mut read, write) = io::pipe().unwrap();
        let rings = (0..8)
            .map(|queue| RingInfo {
                grefs: (0..16).map(|n| GrantRef(u32::MAX - n)).collect(),
                port: Port(queue),
            })
            .collect();
        let connect = Connect {
            id: DeviceId {
                dom: DomId(7),
                index: 51712,
            },
            protocol: Protocol::X86_32,
            persistent: true,
            rings,
            limits: Limits {
                sectors_512: u64::MAX,
                sector_size: 4096,
                read_only: true,
                discard: false,
                indirect: 256,
            },
            allowance: Allowance {
                requests: 1,
                bytes: 2,
            },
            resume: true,
        };
        let serve = Serve::new(&connect, true, "auto".into());
        let fds = vec![write.as_fd(); 17];
        send(&ours, &Message::Serve(serve), &fds).unwrap();
        let Some((Message::Serve(serve), fds)) = receive(&theirs, RecvFlags::empty()).unwrap()
        else {
            panic!("another message");
        };
        assert_eq!((serve.connect(), fds.len()), (connect, 17));
        drop(write);
        let mut last = File::from(fds.into_iter().next_back().unwrap());
        last.write_all(b"x").unwrap();
        drop(last);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        drop(ours);
        assert!(receive(&theirs, RecvFlags::empty()).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (ours, theirs) = pair().unwrap();
        for bytes in [&b"\"Nothing\""[..], b"{", b"\xff", &[b'['; 4000]] {
            rustix::net::send(&ours, bytes, SendFlags::empty()).unwrap();
            assert!(receive(&theirs, RecvFlags::empty()).is_err(), "{bytes:?}");
        }
        send(&ours, &Message::Refresh, &[]).unwrap();
        assert!(receive(&theirs, RecvFlags::empty()).unwrap().is_some());
    }
}
