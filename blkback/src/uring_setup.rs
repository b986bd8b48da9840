//! Sets a ring of io_uring up, so that it can do what serving a disk takes and nothing else.

use std::io;
use std::os::fd::RawFd;

use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, opcode, squeue};

/// What a ring must be able to do.
const NEEDED: [u8; 7] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
];

/// Entries that are shown to the kernel at once, at most.
const ENTRIES: u32 = 128;

/// A ring for up to `jobs` jobs at a time, with a table of `files`. To be made by the thread that uses it.
pub fn ring(jobs: usize, files: &[RawFd]) -> io::Result<IoUring> {
    restricted(jobs, files).or_else(|_| plain(jobs, files))
}

/// A ring that carries out nothing but what is needed here, and takes no more files, buffers or
/// identities (Linux 5.10): what it does passes no filter of system calls.
fn restricted(jobs: usize, files: &[RawFd]) -> io::Result<IoUring> {
    let ring = build(jobs, true)?;
    ring.submitter().register_files(files)?;
    let mut allowed: Vec<Restriction> = NEEDED.map(Restriction::sqe_op).into();
    allowed.push(Restriction::sqe_op(opcode::AsyncCancel::CODE));
    let flags = squeue::Flags::FIXED_FILE | squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS;
    allowed.push(Restriction::sqe_flags_allowed(flags.bits()));
    ring.submitter().register_restrictions(&mut allowed)?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

fn plain(jobs: usize, files: &[RawFd]) -> io::Result<IoUring> {
    let ring = build(jobs, false)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if !NEEDED.iter().all(|&code| probe.is_supported(code)) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    ring.submitter().register_files(files)?;
    Ok(ring)
}

/// The best ring that the kernel gives: the flags are of Linux 6.1 and 5.19. It may be one that is still
/// to be enabled.
fn build(jobs: usize, disabled: bool) -> io::Result<IoUring> {
    let completions = (jobs as u32 + 2).next_power_of_two().max(2 * ENTRIES);
    let base = || {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(completions);
        if disabled {
            builder.setup_r_disabled();
        }
        builder
    };
    base()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(ENTRIES)
        .or_else(|_| {
            base()
                .setup_coop_taskrun()
                .setup_taskrun_flag()
                .build(ENTRIES)
        })
        .or_else(|_| base().build(ENTRIES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_uring::types;
    use std::os::fd::{AsFd, AsRawFd};

    /// Needs Linux 5.10 or later, as the lab's dom0 has.
    #[test]
    #[allow(unsafe_code)]
    fn a_ring_does_nothing_but_serve_disks() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = file.as_fd().as_raw_fd();
        let mut ring = restricted(8, &[fd]).unwrap();
        let path = c"/etc/passwd";
        let here = types::Fd(libc::AT_FDCWD);
        let poll = || opcode::PollAdd::new(types::Fixed(0), libc::POLLIN as u32).build();
        let refused = -libc::EACCES;
        for (what, entry, result) in [
            ("poll", poll(), libc::POLLIN.into()),
            ("nop", opcode::Nop::new().build(), refused),
            (
                "open",
                opcode::OpenAt::new(here, path.as_ptr()).build(),
                refused,
            ),
            ("close", opcode::Close::new(types::Fd(fd)).build(), refused),
            ("socket", opcode::Socket::new(1, 1, 0).build(), refused),
            ("in a thread", poll().flags(squeue::Flags::ASYNC), refused),
        ] {
            // SAFETY: the path is static.
            unsafe { ring.submission().push(&entry) }.unwrap();
            ring.submit_and_wait(1).unwrap();
            let done = ring.completion().next().expect("a completion");
            assert_eq!(done.result(), result, "{what}");
        }
        let more = ring.submitter().register_personality();
        assert_eq!(more.unwrap_err().raw_os_error(), Some(libc::EACCES));
        let more = ring.submitter().unregister_files();
        assert_eq!(more.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
}
