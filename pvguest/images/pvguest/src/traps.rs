//! Exceptions: registers on the console and SHUTDOWN_crash, unless a probe expects the exception.

use core::arch::{asm, global_asm};
use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};

use xen_sys::Plain;
use xen_sys::arch_x86::{FLAT_RING3_CS64, TrapInfo};
use xen_sys::sched::SHUTDOWN_CRASH;

use crate::console::Emergency;
use crate::{exit, hypercall, shared_info};

/// Vectors 0 to 31.
const VECTORS: usize = 32;
/// Bytes of entry code per vector.
const STRIDE: u64 = 64;
/// Vectors that software may raise (`int3`, `into`): ring 3 in [`TrapInfo::flags`].
const FROM_SOFTWARE: [usize; 2] = [3, 4];
/// In [`TrapInfo::flags`]: upcalls are masked on entry.
const MASKS_EVENTS: u8 = 4;

/// Where an expected exception goes on; 0: none is expected.
static RESUME: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static trap_table_start: u8;
}

/// What the entry code leaves on the stack: our pushes, then Xen's frame.
#[repr(C)]
#[derive(Debug)]
struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    rbp: u64,
    rbx: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rax: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rcx: u64,
    r11: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

// Xen pushes ss, rsp, rflags, cs, rip, an error code for some vectors, r11, rcx. The entry code moves rcx and
// r11 down to make room for the vector (and an error code of 0), so that every vector has the same frame.
// iretq works within ring 3: there is no event mask to restore, since upcalls are always masked.
global_asm!(
    r#"
    .pushsection .text
    .balign 64
trap_table_start:
    .set vector, 0
    .rept 32
    .if (vector == 8) || (vector == 10) || (vector == 11) || (vector == 12) || (vector == 13) || (vector == 14) || (vector == 17) || (vector == 21)
    // [rcx][r11][error] -> [rcx][r11][vector][error]
    sub rsp, 8
    push rax
    mov rax, qword ptr [rsp + 16]
    mov qword ptr [rsp + 8], rax
    mov rax, qword ptr [rsp + 24]
    mov qword ptr [rsp + 16], rax
    mov qword ptr [rsp + 24], vector
    pop rax
    .else
    // [rcx][r11] -> [rcx][r11][vector][0]
    sub rsp, 16
    push rax
    mov rax, qword ptr [rsp + 24]
    mov qword ptr [rsp + 8], rax
    mov rax, qword ptr [rsp + 32]
    mov qword ptr [rsp + 16], rax
    mov qword ptr [rsp + 24], vector
    mov qword ptr [rsp + 32], 0
    pop rax
    .endif
    jmp trap_common
    .balign 64
    .set vector, vector + 1
    .endr

trap_common:
    push rdi
    push rsi
    push rdx
    push rax
    push r8
    push r9
    push r10
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    mov rbx, rsp
    and rsp, -16
    call {handler}
    mov rsp, rbx
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    pop r10
    pop r9
    pop r8
    pop rax
    pop rdx
    pop rsi
    pop rdi
    pop rcx
    pop r11
    add rsp, 16
    iretq
    .popsection
    "#,
    handler = sym handle,
);

/// Registers the handlers.
pub(crate) fn init() {
    let base = (&raw const trap_table_start).addr() as u64;
    let mut table = [TrapInfo::ZERO; VECTORS + 1];
    for (vector, entry) in table[..VECTORS].iter_mut().enumerate() {
        let level = if FROM_SOFTWARE.contains(&vector) {
            3
        } else {
            0
        };
        *entry = TrapInfo {
            vector: vector as u8,
            flags: level | MASKS_EVENTS,
            cs: FLAT_RING3_CS64,
            address: base + vector as u64 * STRIDE,
            ..TrapInfo::ZERO
        };
    }
    // SAFETY: the entry code above keeps to the frame that Xen pushes.
    unsafe { hypercall::set_trap_table(&table) }.expect("registering exception handlers");
}

/// Called by the entry code with all registers saved.
unsafe extern "C" fn handle(frame: &mut Frame) {
    let resume = RESUME.swap(0, Ordering::Relaxed);
    if resume != 0 {
        frame.rip = resume;
        // Xen shows a kernel's code selector as if it ran in ring 0; iretq needs the truth.
        frame.cs = FLAT_RING3_CS64.into();
        frame.rdx = frame.vector + 1;
        frame.rax = frame.error;
        return;
    }
    // The emergency console does not fail.
    let _ = report(frame);
    exit::end(SHUTDOWN_CRASH)
}

fn report(f: &Frame) -> core::fmt::Result {
    let mut out = Emergency;
    writeln!(
        out,
        "\npvguest: exception {} ({}), error {:#x}, address {:#x}",
        f.vector,
        name(f.vector),
        f.error,
        shared_info::fault_address()
    )?;
    writeln!(
        out,
        "rip {:016x} rsp {:016x} rflags {:08x} cs {:04x} ss {:04x}",
        f.rip, f.rsp, f.rflags, f.cs as u16, f.ss as u16
    )?;
    for row in [
        [
            ("rax", f.rax),
            ("rbx", f.rbx),
            ("rcx", f.rcx),
            ("rdx", f.rdx),
        ],
        [
            ("rsi", f.rsi),
            ("rdi", f.rdi),
            ("rbp", f.rbp),
            ("r8 ", f.r8),
        ],
        [
            ("r9 ", f.r9),
            ("r10", f.r10),
            ("r11", f.r11),
            ("r12", f.r12),
        ],
        [("r13", f.r13), ("r14", f.r14), ("r15", f.r15), ("   ", 0)],
    ] {
        for (register, value) in row {
            if register != "   " {
                write!(out, "{register} {value:016x} ")?;
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        3 => "breakpoint",
        4 => "overflow",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD error",
        _ => "unknown",
    }
}

/// An exception that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// The vector.
    pub vector: u64,
    /// The error code, 0 for vectors without one.
    pub error: u64,
    /// The address of the last page fault.
    pub address: u64,
}

/// Runs instructions that may fault, with `{address}` in a register; they leave rax as the result.
macro_rules! probe {
    ($instructions:literal, $address:expr) => {{
        let (value, vector): (u64, u64);
        // SAFETY: on an exception the handler resumes at label 2 with rdx = vector + 1 and rax = error
        // code; otherwise rdx stays 0. What the instructions do to memory is the caller's business.
        unsafe {
            asm!(
                "lea {scratch}, [rip + 2f]",
                "mov qword ptr [{resume}], {scratch}",
                "xor edx, edx",
                $instructions,
                "2:",
                "mov qword ptr [{resume}], 0",
                scratch = out(reg) _,
                resume = in(reg) RESUME.as_ptr(),
                address = in(reg) $address,
                inout("rax") 1u64 => value,
                out("rdx") vector,
            );
        }
        match vector {
            0 => Ok(value),
            _ => Err(Trap {
                vector: vector - 1,
                error: value,
                address: shared_info::fault_address(),
            }),
        }
    }};
}

/// Reads a word that may not be mapped.
///
/// # Safety
/// If `address` is mapped it must be readable memory without side effects.
pub unsafe fn probe_read(address: u64) -> Result<u64, Trap> {
    probe!("mov rax, qword ptr [{address}]", address)
}

/// Writes 0 to a byte that may not be mapped, or not writable.
///
/// # Safety
/// If `address` is writable, nothing may rely on the byte there.
pub unsafe fn probe_write(address: u64) -> Result<u64, Trap> {
    probe!("mov byte ptr [{address}], 0", address)
}

/// Raises a breakpoint exception and goes on.
pub fn probe_breakpoint() -> Result<u64, Trap> {
    probe!("int3 /* {address} */", 0u64)
}

/// Runs an invalid instruction and goes on.
pub fn probe_invalid_opcode() -> Result<u64, Trap> {
    probe!("ud2 /* {address} */", 0u64)
}

/// Divides by zero and goes on.
pub fn probe_divide() -> Result<u64, Trap> {
    probe!("div {address}", 0u64)
}

/// Crashes the guest by an exception that nobody expects.
pub fn fault() -> ! {
    // SAFETY: an invalid instruction ends in the handler, which does not come back.
    unsafe { asm!("ud2", options(noreturn)) }
}
