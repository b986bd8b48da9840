//! From the first instruction to the appliance's main: what the builder must know (ELF notes), the entry
//! point, and the order in which the parts come up.

use core::arch::global_asm;

use xen_sys::xen::StartInfo;

use crate::{Exit, Guest, traps};
use crate::{console, exit, heap, logging, memory, paging, shared_info, start_info};

/// Bytes of the one stack. Below it lies a page that is taken away, so that an overflow is a fault.
const STACK_SIZE: usize = 128 * 1024;

// Notes 6 GUEST_OS, 7 GUEST_VERSION, 8 LOADER, 5 XEN_VERSION, 9 PAE_MODE, 10 FEATURES, 3 VIRT_BASE,
// 4 PADDR_OFFSET, 1 ENTRY (elfnote.h). No HYPERCALL_PAGE: hypercalls are made by `syscall`.
global_asm!(
    r#"
    .macro xen_note_string type, text
    .balign 4
    .long 4, 2f - 1f, \type
    .asciz "Xen"
1:  .asciz "\text"
2:  .balign 4
    .endm
    .macro xen_note_quad type, value
    .balign 4
    .long 4, 8, \type
    .asciz "Xen"
    .quad \value
    .endm

    .pushsection .note.Xen, "a", @note
    xen_note_string 6, "xlrs-pvguest"
    xen_note_string 7, "0.1"
    xen_note_string 8, "generic"
    xen_note_string 5, "xen-3.0"
    xen_note_string 9, "yes"
    xen_note_string 10, "!writable_page_tables|pae_pgdir_above_4gb"
    xen_note_quad 3, GUEST_VIRT_BASE
    xen_note_quad 4, GUEST_VIRT_BASE
    xen_note_quad 1, _start
    .popsection

    .pushsection .bss.pages, "aw", @nobits
    .balign 4096
    .global boot_stack_guard
boot_stack_guard:
    .skip 4096
    .skip {stack_size}
boot_stack_top:
    .popsection

    .pushsection .text.boot, "ax", @progbits
    .global _start
_start:
    cld
    lea rsp, [rip + boot_stack_top]
    xor ebp, ebp
    mov rdi, rsi
    call {entry}
    ud2
    .popsection
    "#,
    stack_size = const STACK_SIZE,
    entry = sym entry,
);

unsafe extern "C" {
    static boot_stack_guard: u8;
}

unsafe extern "Rust" {
    /// The appliance, named by [`main!`](crate::main).
    safe fn pvguest_appliance_main(guest: Guest) -> Exit;
}

/// The first Rust code, on our own stack.
///
/// # Safety
/// Only the entry point calls it, once, with the address that the builder put into rsi.
unsafe extern "C" fn entry(start_info: *const StartInfo) -> ! {
    // SAFETY: the builder maps start_info at that address and leaves it to us; it is read once, here.
    unsafe { start_info::init(start_info) };
    let info = start_info::get();
    paging::init(info);
    shared_info::init(info);
    traps::init();
    console::init(info);
    let free = memory::find_free(info);
    let (tables, free) = memory::split(free, paging::tables_needed(info));
    heap::init(free, tables);
    memory::init(info);
    paging::unmap((&raw const boot_stack_guard).addr() as u64);
    logging::init();
    let exit = pvguest_appliance_main(Guest::new());
    exit::leave(exit)
}
