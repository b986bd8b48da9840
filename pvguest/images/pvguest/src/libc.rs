//! The functions that compiled code expects from a C library, and what unwinding tables refer to.
//!
//! Loops are in assembly so that the compiler cannot turn them into calls of themselves.

use core::arch::asm;
use core::ffi::{c_char, c_int};

/// Copies forwards: 16 bytes at a time, then single bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's ranges are valid; the loops touch exactly `len` bytes of each.
    unsafe {
        asm!(
            "mov {n}, {len}",
            "shr {n}, 4",
            "jz 3f",
            "2:",
            "movups {x}, [{from}]",
            "movups [{to}], {x}",
            "add {from}, 16",
            "add {to}, 16",
            "dec {n}",
            "jnz 2b",
            "3:",
            "and {len}, 15",
            "jz 5f",
            "4:",
            "mov {n:l}, byte ptr [{from}]",
            "mov byte ptr [{to}], {n:l}",
            "inc {from}",
            "inc {to}",
            "dec {len}",
            "jnz 4b",
            "5:",
            n = out(reg) _,
            x = out(xmm_reg) _,
            to = inout(reg) to => _,
            from = inout(reg) from => _,
            len = inout(reg) len => _,
            options(nostack),
        );
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= len {
        // SAFETY: copying forwards reads every byte before it is overwritten: `to` is below `from` or
        // beyond its end. A 16-byte step loads before it stores.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: backwards, from the last byte to the first, of the caller's valid ranges.
    unsafe {
        asm!(
            "2:",
            "cmp {len}, 16",
            "jb 3f",
            "sub {len}, 16",
            "movups {x}, [{from} + {len}]",
            "movups [{to} + {len}], {x}",
            "jmp 2b",
            "3:",
            "test {len}, {len}",
            "jz 4f",
            "dec {len}",
            "mov {n:l}, byte ptr [{from} + {len}]",
            "mov byte ptr [{to} + {len}], {n:l}",
            "jmp 3b",
            "4:",
            n = out(reg) _,
            x = out(xmm_reg) _,
            to = in(reg) to,
            from = in(reg) from,
            len = inout(reg) len => _,
            options(nostack),
        );
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: c_int, len: usize) -> *mut u8 {
    // SAFETY: writes exactly `len` bytes of the caller's range: words, then the remaining bytes.
    unsafe {
        asm!(
            "rep stosq",
            "mov rcx, {rest}",
            "rep stosb",
            rest = in(reg) len & 7,
            inout("rcx") len >> 3 => _,
            inout("rdi") to => _,
            in("rax") u64::from(value as u8) * 0x0101_0101_0101_0101,
            options(nostack),
        );
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> c_int {
    for at in 0..len {
        // SAFETY: both of the caller's ranges are valid for `len` bytes.
        let (x, y) = unsafe { (a.add(at).read(), b.add(at).read()) };
        if x != y {
            return c_int::from(x) - c_int::from(y);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> c_int {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, len) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const c_char) -> usize {
    let mut len = 0;
    // SAFETY: the caller's text ends with a NUL; volatile, so that this is no call of itself.
    while unsafe { text.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}

/// Named by the unwinding tables of the precompiled core; panics abort, so nobody calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    panic!("unwinding")
}
