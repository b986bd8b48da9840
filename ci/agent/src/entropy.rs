//! Gives the kernel entropy: without it the first `getrandom` in dom0 waits for seconds.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Credits fixed bytes at boot, so that nothing waits and every boot is alike. The lab's dom0 keeps
/// no secret; the host's `Hello` adds bytes of its own later.
pub fn seed_at_boot() -> io::Result<()> {
    let fixed: Vec<u8> = (0..64u8).map(|i| i.wrapping_mul(37) ^ 0x5a).collect();
    add(&fixed)
}

/// `struct rand_pool_info` of linux/random.h, with room for 64 bytes.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; 64],
}

/// `_IOW('R', 0x03, int[2])` of linux/random.h.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;

/// Adds up to 64 bytes to the pool and credits each of their bits.
pub fn add(bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let n = bytes.len().min(64);
    let mut info = RandPoolInfo {
        entropy_count: n as libc::c_int * 8,
        buf_size: n as libc::c_int,
        buf: [0; 64],
    };
    info.buf[..n].copy_from_slice(&bytes[..n]);
    let dev = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads `buf_size` <= 64 bytes behind the two ints of `info`, which lives
    // on this frame until the call has returned.
    let rc = unsafe { libc::ioctl(dev.as_raw_fd(), RNDADDENTROPY, &raw const info) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
