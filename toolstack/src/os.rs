//! What of Linux has no safe wrapper: loop devices and network interfaces, by ioctl; signals.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use xen_ring::SharedMemory;

/// linux/loop.h
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// linux/sockios.h
const SIOCBRADDIF: libc::Ioctl = 0x89a2;

/// How often another process may take the free loop device before us.
const LOOP_TRIES: usize = 64;

/// A block device made of a file. It goes away when nobody has it open any more: drop this once a back
/// end has opened it.
#[derive(Debug)]
pub struct LoopDevice {
    /// Its node, such as `/dev/loop0`.
    pub path: PathBuf,
    /// Its major and minor number.
    pub number: (u32, u32),
    _open: File,
}

/// `struct loop_info64` (linux/loop.h)
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}
const _: () = assert!(size_of::<LoopInfo64>() == 232);

/// `struct loop_config` (linux/loop.h)
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<LoopConfig>() == 304);

impl LoopDevice {
    /// Makes a block device of an open file; `name` is what tools show for it.
    ///
    /// # Errors
    /// No loop device is to be had, or the file cannot be one.
    pub fn attach(file: &File, name: &Path, writable: bool) -> io::Result<LoopDevice> {
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")?;
        for _ in 0..LOOP_TRIES {
            // SAFETY: this request takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            let number = checked(number)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(writable).open(&path)?;
            let config = loop_config(file, name, writable);
            // SAFETY: the kernel reads a `struct loop_config`, which this is by the assertions above.
            let result =
                unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
            match checked(result) {
                Ok(_) => {
                    let rdev = device.metadata()?.rdev();
                    return Ok(LoopDevice {
                        path,
                        number: (libc::major(rdev), libc::minor(rdev)),
                        _open: device,
                    });
                }
                // Somebody else took it first.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }
}

/// Takes the file out of a loop device that a stock script has made, if it is still that file.
///
/// # Errors
/// The device cannot be opened, or does not let go of the file.
pub fn detach_loop(node: &Path, backing: &Path) -> io::Result<()> {
    let Some(name) = node
        .file_name()
        .filter(|_| node.parent() == Some(Path::new("/dev")))
    else {
        return Ok(());
    };
    let shown = Path::new("/sys/block").join(name).join("loop/backing_file");
    match std::fs::read_to_string(shown) {
        Ok(file) if Path::new(file.trim_end_matches('\n')) == backing => {}
        // Nothing in it, or something else by now.
        _ => return Ok(()),
    }
    let device = File::open(node)?;
    // SAFETY: this request takes no argument.
    match checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) }) {
        Err(error) if error.raw_os_error() != Some(libc::ENXIO) => Err(error),
        _ => Ok(()),
    }
}

fn loop_config(file: &File, name: &Path, writable: bool) -> LoopConfig {
    let mut file_name = [0; 64];
    let name = name.as_os_str().as_encoded_bytes();
    let len = name.len().min(63);
    file_name[..len].copy_from_slice(&name[..len]);
    LoopConfig {
        fd: file.as_raw_fd() as u32,
        block_size: 0,
        info: LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_AUTOCLEAR | if writable { 0 } else { LO_FLAGS_READ_ONLY },
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    }
}

/// Reads bytes of a file straight into a guest's memory: the kernel copies them there, once.
///
/// # Errors
/// The file cannot be read, or ends before that.
///
/// # Panics
/// The memory is not that large.
pub fn read_to_guest(
    file: &File,
    mut from: u64,
    memory: &impl SharedMemory,
    at: usize,
    len: usize,
) -> io::Result<()> {
    let fits = at.checked_add(len).is_some_and(|end| end <= memory.len());
    assert!(fits, "{len} bytes at {at} of {}", memory.len());
    let mut done = 0;
    while done < len {
        let offset = libc::off_t::try_from(from).map_err(io::Error::other)?;
        // SAFETY: the range is within the memory by the assertion, and stays valid while `memory` is borrowed; no
        // reference to it exists.
        let read = unsafe {
            let to = memory.base().as_ptr().add(at + done);
            libc::pread(file.as_raw_fd(), to.cast(), len - done, offset)
        };
        match read {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read if read > 0 => {
                done += read as usize;
                from += read as u64;
            }
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Network interfaces, by ioctl on a socket.
#[derive(Debug)]
pub struct Interfaces {
    socket: UdpSocket,
}

impl Interfaces {
    /// Opens the socket.
    ///
    /// # Errors
    /// There is no network in this kernel.
    pub fn open() -> io::Result<Interfaces> {
        // Any socket will do; nothing is ever sent over it.
        UdpSocket::bind(("127.0.0.1", 0)).map(|socket| Interfaces { socket })
    }

    /// Renames an interface that is down.
    ///
    /// # Errors
    /// No such interface, the name is taken, or the interface is up.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut request = request(from)?;
        request.ifr_ifru.ifru_newname = name_bytes(to)?;
        self.ioctl(libc::SIOCSIFNAME as libc::Ioctl, &mut request)
    }

    /// Sets the largest packet.
    ///
    /// # Errors
    /// No such interface, or it cannot do that size.
    pub fn set_mtu(&self, name: &str, mtu: u32) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_mtu = mtu as libc::c_int;
        self.ioctl(libc::SIOCSIFMTU as libc::Ioctl, &mut request)
    }

    /// The largest packet.
    ///
    /// # Errors
    /// No such interface.
    pub fn mtu(&self, name: &str) -> io::Result<u32> {
        let mut request = request(name)?;
        self.ioctl(libc::SIOCGIFMTU as libc::Ioctl, &mut request)?;
        // SAFETY: the kernel has filled in this member of the union.
        Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// No such interface.
    pub fn up(&self, name: &str) -> io::Result<()> {
        let mut request = request(name)?;
        self.ioctl(libc::SIOCGIFFLAGS as libc::Ioctl, &mut request)?;
        // SAFETY: the kernel has filled in this member of the union.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
        self.ioctl(libc::SIOCSIFFLAGS as libc::Ioctl, &mut request)
    }

    /// Makes an interface a port of a bridge. Done already is good, too.
    ///
    /// # Errors
    /// No such bridge or interface, or it is in another bridge.
    pub fn join_bridge(&self, bridge: &str, name: &str) -> io::Result<()> {
        let mut index = request(name)?;
        self.ioctl(libc::SIOCGIFINDEX as libc::Ioctl, &mut index)?;
        let mut request = request(bridge)?;
        // SAFETY: the kernel has filled in this member of the union.
        request.ifr_ifru.ifru_ifindex = unsafe { index.ifr_ifru.ifru_ifindex };
        match self.ioctl(SIOCBRADDIF, &mut request) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && in_bridge(bridge, name) => {
                Ok(())
            }
            result => result,
        }
    }

    fn ioctl(&self, op: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: all requests used here read and write one `struct ifreq`.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), op, &raw mut *request) };
        checked(result).map(|_| ())
    }
}

/// Whether this interface exists.
pub fn interface_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// Whether this is a bridge.
pub fn is_bridge(name: &str) -> bool {
    Path::new("/sys/class/net")
        .join(name)
        .join("bridge")
        .exists()
}

fn in_bridge(bridge: &str, name: &str) -> bool {
    Path::new("/sys/class/net")
        .join(bridge)
        .join("brif")
        .join(name)
        .exists()
}

fn name_bytes(name: &str) -> io::Result<[libc::c_char; libc::IFNAMSIZ]> {
    let mut out = [0; libc::IFNAMSIZ];
    if name.is_empty() || name.len() >= out.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in out.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(out)
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all members of the union are plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = name_bytes(name)?;
    Ok(request)
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Locks one byte of a file for this open file, without waiting; `false` if another has it.
///
/// # Errors
/// The file system's.
pub fn lock_byte(file: &File, at: u64, alone: bool) -> io::Result<bool> {
    // SAFETY: all members are plain numbers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = if alone { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = (at & (i64::MAX as u64 - 1)) as libc::off_t;
    lock.l_len = 1;
    // SAFETY: the kernel reads a `struct flock`, which outlives the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    match checked(result) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The file system's number and the inode of the file in a loop device.
///
/// # Errors
/// There is none in it, or it is no loop device.
pub fn loop_backing(device: &File) -> io::Result<(u64, u64)> {
    let mut info = std::mem::MaybeUninit::<LoopInfo64>::zeroed();
    // SAFETY: the kernel writes a `struct loop_info64`, which this is by the assertion above.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) };
    checked(result)?;
    // SAFETY: zeroed at first, then filled in by the kernel; plain numbers.
    let info = unsafe { info.assume_init() };
    Ok((info.device, info.inode))
}

/// The hour, minute and second of a time in seconds since 1970, as this host's people count them.
pub fn time_of_day(since_1970: u64) -> (u32, u32, u32) {
    let time = since_1970 as libc::time_t;
    let mut out = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both point to initialised memory of their types for the call; zero is a value of all
    // members, the pointer among them, and is what is left if the call fails.
    let out = unsafe {
        libc::localtime_r(&raw const time, out.as_mut_ptr());
        out.assume_init()
    };
    (out.tm_hour as u32, out.tm_min as u32, out.tm_sec as u32)
}

/// A time in seconds since 1970 as xl names guests that it keeps: `20260123T0405Z`.
pub fn stamp(since_1970: u64) -> String {
    let time = since_1970 as libc::time_t;
    let mut out = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both point to memory of their types for the call, and zero is a value of all members.
    let tm = unsafe {
        libc::gmtime_r(&raw const time, out.as_mut_ptr());
        out.assume_init()
    };
    let (year, month) = (tm.tm_year + 1900, tm.tm_mon + 1);
    let (day, hour, minute) = (tm.tm_mday, tm.tm_hour, tm.tm_min);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}Z")
}

/// How far this host's local time is ahead of UTC now, in seconds.
pub fn ahead_of_utc_s() -> i64 {
    let mut out = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both point to memory of their types for the call, and zero is a value of all members.
    let out = unsafe {
        let now = libc::time(std::ptr::null_mut());
        libc::localtime_r(&raw const now, out.as_mut_ptr());
        out.assume_init()
    };
    out.tm_gmtoff
}

/// The effective user's number.
pub fn effective_user() -> u32 {
    // SAFETY: it has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}

/// What Rust's runtime does for a program that has it: a broken pipe is an error of the write, not the end, and
/// no file that is opened becomes a standard stream that was closed.
pub fn set_up_process() {
    // SAFETY: nothing is handled, it is only ignored.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    for stream in 0..=2 {
        // SAFETY: this request takes no argument.
        if unsafe { libc::fcntl(stream, libc::F_GETFD) } < 0 {
            // SAFETY: the path is a string of C's. It becomes the lowest that is free, which this is.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        }
    }
}

/// Ends the process with what has been written written, and nothing else done: what is open or mapped goes with it.
pub fn leave(status: i32) -> ! {
    // Whom it was written for may have gone.
    let _ = io::stdout().flush();
    // SAFETY: no destructor or handler is needed for anything that the kernel does not take down by itself.
    unsafe { libc::_exit(status) }
}

/// Fills in random bytes that do not wait for the kernel's pool to fill.
///
/// # Errors
/// The kernel has no such call, or not without waiting (Linux before 5.6).
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: the kernel writes within the slice.
    let got =
        unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_INSECURE) };
    match usize::try_from(got) {
        Ok(got) if got == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// From now on this process does not push others aside when what it waits for has come: the store daemon, which
/// answers many requests one by one, would else be interrupted at every answer.
pub fn be_patient() {
    const SCHED_RESET_ON_FORK: libc::c_int = 0x4000_0000;
    let policy = libc::SCHED_BATCH | SCHED_RESET_ON_FORK;
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter outlives the call. If it fails, all goes on as before.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
}

/// SIGINT, SIGTERM and SIGHUP wait.
#[derive(Debug)]
pub struct HeldSignals {
    before: libc::sigset_t,
}

impl HeldSignals {
    /// Lets them wait, in this thread and those that it starts.
    ///
    /// # Errors
    /// None that is known.
    pub fn hold() -> io::Result<HeldSignals> {
        let mut before = no_signals();
        let mut held = no_signals();
        for signal in ENDING {
            // SAFETY: the set is initialised, and outlives the call.
            unsafe { libc::sigaddset(&raw mut held, signal) };
        }
        // SAFETY: both sets are initialised, and outlive the call.
        checked(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const held, &raw mut before) })?;
        Ok(HeldSignals { before })
    }

    /// Whether one of them is waiting; never while they are not held.
    pub fn pending() -> bool {
        let mut set = no_signals();
        // SAFETY: the set is initialised, and outlives the calls.
        unsafe {
            libc::sigpending(&raw mut set) == 0
                && ENDING
                    .iter()
                    .any(|signal| libc::sigismember(&raw const set, *signal) == 1)
        }
    }

    /// As before.
    pub fn release(self) {
        // SAFETY: the set is the one that the kernel gave out, and outlives the call.
        unsafe {
            libc::sigprocmask(
                libc::SIG_SETMASK,
                &raw const self.before,
                std::ptr::null_mut(),
            )
        };
    }
}

const ENDING: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

fn no_signals() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set and cannot fail on a valid pointer.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Sends a signal to a process.
///
/// # Errors
/// No such process, or no right to.
pub fn signal(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: it touches no memory.
    checked(unsafe { libc::kill(pid, signal) }).map(|_| ())
}

/// Opens a file for reading, and writing if wanted, as a block back end would.
///
/// # Errors
/// As open(2).
pub fn open_disk(path: &Path, writable: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(writable)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_those_of_xl() {
        assert_eq!(stamp(0), "19700101T0000Z");
        assert_eq!(stamp(1_795_447_029), "20261123T1517Z");
    }

    #[test]
    fn held_signals_wait() {
        // A thread of its own: what waits there ends with it.
        let thread = std::thread::spawn(|| {
            assert!(!HeldSignals::pending());
            {
                let _held = HeldSignals::hold().unwrap();
                assert!(!HeldSignals::pending());
                // SAFETY: it touches no memory; the signal goes to this thread.
                unsafe { libc::raise(libc::SIGTERM) };
                assert!(HeldSignals::pending());
            }
            assert!(HeldSignals::pending(), "only release() lets it take effect");
        });
        thread.join().unwrap();
    }
}
