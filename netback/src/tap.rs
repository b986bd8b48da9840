//! TAP devices and bridges: the ioctls of linux/if_tun.h and linux/sockios.h.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::vif::Frames;

/// Adds an interface to a bridge (linux/sockios.h).
const SIOCBRADDIF: libc::Ioctl = 0x89a2;

/// A TAP device that outlives this process, so that an interface stays on its bridge while the daemon is
/// restarted.
#[derive(Debug)]
pub struct Tap {
    file: File,
}

/// The hardware address of the host's end: the highest there is, so that a bridge never takes it for its
/// own (what Xen's vif-bridge script does).
const HOST_MAC: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];

impl Tap {
    /// Makes the device `name`, or attaches to it if it is there and nobody else is.
    pub fn open(name: &str) -> io::Result<Tap> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        let mut request = Request::new(name)?;
        request.0.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        request.call(file.as_fd(), libc::TUNSETIFF)?;
        let tap = Tap { file };
        // Every frame that the host hands over is complete: no blank checksum, no large segment.
        tap.set(libc::TUNSETOFFLOAD, 0)?;
        tap.set(libc::TUNSETPERSIST, 1)?;
        Ok(tap)
    }

    /// Its present name: a script may have renamed it.
    pub fn name(&self) -> io::Result<String> {
        let mut request = Request::new("")?;
        request.call(self.file.as_fd(), libc::TUNGETIFF)?;
        Ok(request.name())
    }

    /// Lets it vanish with this object.
    pub fn remove(&self) -> io::Result<()> {
        self.set(libc::TUNSETPERSIST, 0)
    }

    fn set(&self, op: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
        // SAFETY: both operations take a plain number and touch no memory of ours.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), op, value) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Frames for Tap {
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write(frame).map(drop)
    }

    fn receive(&self, to: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(to) {
            Ok(len) => Ok(Some(len)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Gives the device the host end's address and brings it up.
pub fn bring_up(name: &str) -> io::Result<()> {
    let socket = control_socket()?;
    let mut request = Request::new(name)?;
    request.call(socket.as_fd(), libc::SIOCGIFFLAGS)?;
    // SAFETY: SIOCGIFFLAGS has just filled this member in.
    let flags = unsafe { request.0.ifr_ifru.ifru_flags };
    if flags & libc::IFF_UP as libc::c_short == 0 {
        let mut address = Request::new(name)?;
        address.0.ifr_ifru.ifru_hwaddr.sa_family = libc::ARPHRD_ETHER;
        // SAFETY: the member was zeroed whole and its family just set.
        let data = unsafe { &mut address.0.ifr_ifru.ifru_hwaddr.sa_data };
        for (to, from) in data.iter_mut().zip(HOST_MAC) {
            *to = from as libc::c_char;
        }
        address.call(socket.as_fd(), libc::SIOCSIFHWADDR)?;
    }
    request.0.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    request.call(socket.as_fd(), libc::SIOCSIFFLAGS)
}

/// Puts the device on a bridge; no error if it is on that bridge already.
pub fn add_to_bridge(bridge: &str, name: &str) -> io::Result<()> {
    if Path::new("/sys/class/net")
        .join(bridge)
        .join("brif")
        .join(name)
        .exists()
    {
        return Ok(());
    }
    let socket = control_socket()?;
    let mut index = Request::new(name)?;
    index.call(socket.as_fd(), libc::SIOCGIFINDEX)?;
    // SAFETY: SIOCGIFINDEX has just filled this member in.
    let number = unsafe { index.0.ifr_ifru.ifru_ifindex };
    let mut request = Request::new(bridge)?;
    request.0.ifr_ifru.ifru_ifindex = number;
    request.call(socket.as_fd(), SIOCBRADDIF)
}

/// Names of the TAP devices that are there and are called as interfaces of guests are: `vifD.I`.
pub fn leftovers() -> Vec<(String, u16, u32)> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else {
        return Vec::new();
    };
    let parse = |name: String| {
        let (dom, index) = name.strip_prefix("vif")?.split_once('.')?;
        let (dom, index) = (dom.parse().ok()?, index.parse().ok()?);
        let ours = Path::new("/sys/class/net")
            .join(&name)
            .join("tun_flags")
            .exists();
        ours.then_some((name, dom, index))
    };
    entries
        .filter_map(|entry| parse(entry.ok()?.file_name().into_string().ok()?))
        .collect()
}

fn control_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        flags,
        None,
    )?)
}

/// The argument of interface ioctls (`struct ifreq`, linux/if.h).
struct Request(libc::ifreq);

impl Request {
    fn new(name: &str) -> io::Result<Request> {
        // SAFETY: ifreq is plain data for which zero is a valid value.
        let mut request = Request(unsafe { std::mem::zeroed() });
        if name.len() >= request.0.ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.0.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        Ok(request)
    }

    fn name(&self) -> String {
        let bytes = self.0.ifr_name.iter().map(|&c| c as u8);
        String::from_utf8_lossy(&bytes.take_while(|&b| b != 0).collect::<Vec<_>>()).into_owned()
    }

    fn call(&mut self, fd: BorrowedFd<'_>, op: libc::Ioctl) -> io::Result<()> {
        // SAFETY: the operations used here read and write one ifreq, which is exclusively ours.
        match unsafe { libc::ioctl(fd.as_raw_fd(), op, &raw mut self.0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}
