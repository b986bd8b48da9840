//! Exceptions: they arrive with the right vector, error code and address, and the code after them goes on.

use alloc::string::String;

use pvguest::Guest;
use pvguest::traps::{
    Trap, probe_breakpoint, probe_divide, probe_invalid_opcode, probe_read, probe_write,
};

use crate::{Test, demand};

pub(crate) const TESTS: &[Test] = &[
    ("a null pointer faults", null_pointer),
    ("the image's text can be read", text_is_readable),
    ("page tables cannot be written", page_tables_are_read_only),
    ("the page below the stack is not mapped", stack_guard),
    ("breakpoint, invalid opcode, divide error", other_vectors),
    ("a thousand exceptions leave no trace", many),
];

unsafe extern "C" {
    static boot_stack_guard: u8;
    static image_start: u8;
}

fn null_pointer(_: &Guest) -> Result<(), String> {
    for address in [0, 8, 0xfff] {
        // SAFETY: nothing is mapped there, which is what is tested.
        let trap = unsafe { probe_read(address) };
        demand!(
            matches!(trap, Err(Trap { vector: 14, address: at, .. }) if at == address),
            "reading {address:#x} gives {trap:?}"
        );
    }
    Ok(())
}

fn text_is_readable(_: &Guest) -> Result<(), String> {
    // SAFETY: the image is readable.
    let value = unsafe { probe_read((&raw const image_start).addr() as u64) };
    demand!(
        matches!(value, Ok(value) if value != 0),
        "it gives {value:?}"
    );
    Ok(())
}

fn page_tables_are_read_only(_: &Guest) -> Result<(), String> {
    // SAFETY: if the write worked the guest would be broken, and the test would say so first.
    let trap = unsafe { probe_write(pvguest::memory::page_table_address()) };
    demand!(
        matches!(trap, Err(Trap { vector: 14, error, .. }) if error & 3 == 3),
        "writing to a page table gives {trap:?}"
    );
    Ok(())
}

fn stack_guard(_: &Guest) -> Result<(), String> {
    // SAFETY: nothing is mapped there, which is what is tested.
    let trap = unsafe { probe_read((&raw const boot_stack_guard).addr() as u64) };
    demand!(matches!(trap, Err(Trap { vector: 14, .. })), "{trap:?}");
    Ok(())
}

fn other_vectors(_: &Guest) -> Result<(), String> {
    for (trap, vector) in [
        (probe_breakpoint(), 3),
        (probe_invalid_opcode(), 6),
        (probe_divide(), 0),
    ] {
        demand!(
            matches!(trap, Err(Trap { vector: got, error: 0, .. }) if got == vector),
            "vector {vector}: {trap:?}"
        );
    }
    Ok(())
}

fn many(guest: &Guest) -> Result<(), String> {
    let mut sum = 0.5;
    for round in 0..1000 {
        sum += 0.5;
        demand!(probe_breakpoint().is_err(), "round {round}");
    }
    demand!(sum == 500.5, "a floating point register changed: {sum}");
    null_pointer(guest)
}
