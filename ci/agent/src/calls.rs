//! Which functions of a program run, in the order in which they are first called: each has a breakpoint at its first
//! instruction until it is reached.
//!
//! The program must be linked without PIE, so that its symbol table says where functions are, and be of one process
//! and one thread.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};

use lab_agent::symbols;

/// `int3`
const BREAKPOINT: u8 = 0xcc;

/// Runs a command, its stdout thrown away, and gives its status and the names of the functions that ran; functions
/// that are one (or that the linker made one) all have their names told.
pub fn record(program: &str, args: &[String]) -> io::Result<(ExitStatus, Vec<String>)> {
    let file = std::fs::read(program)?;
    let functions = symbols::functions(&file)
        .ok_or_else(|| io::Error::other(format!("{program} has no symbol table")))?;
    let mut at: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for function in functions.iter().filter(|f| !f.code.is_empty()) {
        at.entry(function.address).or_default().push(function.name);
    }

    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null());
    // SAFETY: between fork and exec this makes one system call and touches no memory.
    unsafe {
        command.pre_exec(|| {
            let none = std::ptr::null_mut::<libc::c_void>();
            checked(libc::ptrace(libc::PTRACE_TRACEME, 0, none, none)).map(drop)
        });
    }
    let child = command.spawn()?;
    let traced = Traced {
        pid: child.id() as libc::pid_t,
        memory: File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{}/mem", child.id()))?,
    };
    // The first stop is that of exec: the program is there and has not begun.
    let mut stop = traced.wait()?;
    let mut original = BTreeMap::new();
    for &address in at.keys() {
        let mut byte = [0];
        traced.memory.read_exact_at(&mut byte, address)?;
        traced.memory.write_all_at(&[BREAKPOINT], address)?;
        original.insert(address, byte);
    }
    let mut called = Vec::new();
    loop {
        let signal = match stop {
            Stop::Ended(status) => return Ok((status, called)),
            Stop::Signal(signal) => signal,
        };
        let reached = match signal {
            libc::SIGTRAP => traced.breakpoint()?,
            _ => None,
        };
        if let Some(address) = reached
            && let Some(byte) = original.remove(&address)
        {
            called.extend(at[&address].iter().map(ToString::to_string));
            traced.memory.write_all_at(&byte, address)?;
            traced.go_back_to(address)?;
        }
        traced.go_on(if signal == libc::SIGTRAP { 0 } else { signal })?;
        stop = traced.wait()?;
    }
}

/// A process that stops at signals, for us.
struct Traced {
    pid: libc::pid_t,
    memory: File,
}

enum Stop {
    Signal(i32),
    Ended(ExitStatus),
}

impl Traced {
    fn wait(&self) -> io::Result<Stop> {
        let mut status = 0;
        // SAFETY: the kernel writes one int, which lives here.
        checked(unsafe { libc::waitpid(self.pid, &raw mut status, 0) }.into())?;
        Ok(if libc::WIFSTOPPED(status) {
            Stop::Signal(libc::WSTOPSIG(status))
        } else {
            Stop::Ended(ExitStatus::from_raw(status))
        })
    }

    /// Where the breakpoint is that it may have stopped at.
    fn breakpoint(&self) -> io::Result<Option<u64>> {
        Ok(self.registers()?.rip.checked_sub(1))
    }

    fn go_back_to(&self, address: u64) -> io::Result<()> {
        let mut registers = self.registers()?;
        registers.rip = address;
        // SAFETY: the kernel reads registers, which live here.
        checked(unsafe {
            let none = std::ptr::null_mut::<libc::c_void>();
            libc::ptrace(libc::PTRACE_SETREGS, self.pid, none, &raw mut registers)
        })
        .map(drop)
    }

    fn registers(&self) -> io::Result<libc::user_regs_struct> {
        let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::uninit();
        // SAFETY: the kernel fills the registers, which live here, or fails.
        unsafe {
            let none = std::ptr::null_mut::<libc::c_void>();
            checked(libc::ptrace(
                libc::PTRACE_GETREGS,
                self.pid,
                none,
                registers.as_mut_ptr(),
            ))?;
            Ok(registers.assume_init())
        }
    }

    fn go_on(&self, signal: i32) -> io::Result<()> {
        // SAFETY: this request takes a number where others take an address.
        checked(unsafe {
            let none = std::ptr::null_mut::<libc::c_void>();
            libc::ptrace(
                libc::PTRACE_CONT,
                self.pid,
                none,
                libc::c_long::from(signal),
            )
        })
        .map(drop)
    }
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
