//! Gives up all rights: another user, an empty root folder, and no system calls but those that serving disks takes.
//!
//! What io_uring does is not seen by the filter; it is done with this user's rights, in the empty folder. Our
//! own rings do nothing but serve disks (`uring_setup`), which holds as long as no other is made.

use std::path::Path;

use rustix::process::{
    Resource, Rlimit, Signal, chdir, chroot, getrlimit, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{Gid, Uid, set_no_new_privs, set_thread_groups, set_thread_res_gid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use xen_backend::daemon::Failure;

/// Does it. To be called before there is a second thread.
pub fn enter(root: &Path, uid: u32, gid: u32) -> Result<(), Failure> {
    let failed = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {error}");
    // A disk takes some ten descriptors, and eight times as many with eight queues.
    let most = getrlimit(Resource::Nofile).maximum;
    let all = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, all).map_err(failed("raise the limit of descriptors"))?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // Guests' data is not to lie about.
    setrlimit(Resource::Core, none).map_err(failed("forbid core dumps"))?;
    chroot(root).map_err(failed("change the root folder"))?;
    chdir("/").map_err(failed("go to the root folder"))?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[]).map_err(failed("leave groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(failed("change the group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("change the user"))?;
    // After the change of user, which takes it back.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("follow the broker"))?;
    set_no_new_privs(true).map_err(failed("forbid new rights"))?;
    for filter in filters()? {
        seccompiler::apply_filter(&filter).map_err(|error| format!("seccomp: {error}"))?;
    }
    Ok(())
}

/// Calls that are allowed with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // Data and accounts.
    libc::SYS_io_uring_enter,
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
    libc::SYS_preadv2,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_fcntl,
    libc::SYS_close,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_register,
    libc::SYS_io_setup,
    libc::SYS_io_destroy,
    libc::SYS_eventfd2,
    // The broker.
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_poll,
    libc::SYS_ppoll,
    // Memory and threads.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Answered as a kernel without it would, by the second filter.
    libc::SYS_clone3,
];

/// The filters, in the order in which they are to be set.
fn filters() -> Result<Vec<BpfProgram>, Failure> {
    let without = |argument: u8, bits: i32| {
        SeccompCondition::new(argument, Len::Dword, Op::MaskedEq(bits as u64), 0)
    };
    let rule = |condition| SeccompRule::new(vec![condition]);
    let mut ioctls = Vec::new();
    // BLKSSZGET
    for request in xen_dom0::DATA_PATH_IOCTLS.into_iter().chain([0x1268]) {
        ioctls.push(rule(SeccompCondition::new(
            1,
            Len::Dword,
            Op::Eq,
            request,
        )?)?);
    }
    let thread = libc::CLONE_THREAD as u64;
    let thread = SeccompCondition::new(0, Len::Qword, Op::MaskedEq(thread), thread)?;
    let name = SeccompCondition::new(0, Len::Dword, Op::Eq, libc::PR_SET_NAME as u64)?;
    let mut rules = vec![
        (libc::SYS_ioctl, ioctls),
        (libc::SYS_mmap, vec![rule(without(2, libc::PROT_EXEC)?)?]),
        (
            libc::SYS_mprotect,
            vec![rule(without(2, libc::PROT_EXEC)?)?],
        ),
        (libc::SYS_clone, vec![rule(thread)?]),
        (libc::SYS_prctl, vec![rule(name)?]),
    ];
    rules.extend(ALLOWED.iter().map(|&call| (call, Vec::new())));
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let first = SeccompFilter::new(
        rules.into_iter().collect(),
        refuse,
        SeccompAction::Allow,
        arch,
    )?;
    // Its arguments are in memory, where the filter does not see whether it is to be a thread: libc then
    // makes threads by clone.
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let clone3 = [(libc::SYS_clone3, Vec::new())].into_iter().collect();
    let second = SeccompFilter::new(clone3, SeccompAction::Allow, absent, arch)?;
    // The second is set first, for it takes calls that the first refuses.
    Ok(vec![second.try_into()?, first.try_into()?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::process::Command;

    /// In a process of its own, for there is no way back.
    #[test]
    fn nothing_but_serving_disks_is_possible() {
        const INSIDE: &str = "BLKBACK_TEST_JAIL";
        if std::env::var_os(INSIDE).is_some() {
            return inside();
        }
        let own = std::env::current_exe().unwrap();
        let name = "jail::tests::nothing_but_serving_disks_is_possible";
        let mut command = Command::new(own);
        command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
        let output = command.env(INSIDE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("shut in"), "{text}");
    }

    fn inside() {
        let folder = std::env::temp_dir().join(format!("blkback-jail-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = std::fs::File::create(folder.with_extension("image")).unwrap();
        std::fs::remove_file(folder.with_extension("image")).unwrap();
        let root = rustix::process::geteuid().is_root();
        if root {
            enter(&folder, 65534, 65534).unwrap();
        } else {
            // The filter alone.
            set_no_new_privs(true).unwrap();
            for filter in filters().unwrap() {
                seccompiler::apply_filter(&filter).unwrap();
            }
        }
        // What it takes works.
        std::thread::spawn(|| ()).join().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 0).unwrap();
        file.set_len(10).unwrap();
        file.sync_data().unwrap();
        // What it does not take does not.
        for (what, error) in [
            ("open", std::fs::File::open("/etc/passwd").err()),
            ("list", std::fs::read_dir("/").err()),
            (
                "connect",
                std::os::unix::net::UnixStream::connect("/x").err(),
            ),
            ("run", Command::new("/bin/true").status().err()),
            ("chdir", std::env::set_current_dir("/").err()),
        ] {
            let error = error.unwrap_or_else(|| panic!("{what} is possible"));
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
        }
        let setuid = rustix::thread::set_thread_uid(Uid::ROOT);
        assert_eq!(setuid, Err(rustix::io::Errno::PERM));
        eprintln!("shut in");
    }
}
