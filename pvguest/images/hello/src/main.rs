//! The smallest appliance: greets, says what it sees, then waits to be told to stop. With `exit` on the
//! command line it powers off by itself.
#![no_std]
#![no_main]

use pvguest::xen_hal::Clock;
use pvguest::{Exit, Guest, println};

pvguest::main!(main);

fn main(mut guest: Guest) -> Exit {
    let (major, minor) = guest.xen_version();
    let memory = guest.memory();
    println!("hello from a Rust guest on Xen {major}.{minor}");
    println!(
        "memory {} KiB, heap {} KiB",
        memory.total_kib, memory.heap_kib
    );
    match guest.domid() {
        Ok(domid) => println!("domain {domid}"),
        Err(error) => println!("domain unknown: {error}"),
    }
    println!(
        "time {} s since 1970, host up {} ms",
        guest.clock().wall_ns() / 1_000_000_000,
        guest.clock().now_ns() / 1_000_000
    );
    println!("command line {:?}", guest.command_line().as_str());
    if guest.command_line().has("exit") {
        println!("goodbye");
        return Exit::Poweroff;
    }
    if guest.is_dom0() {
        return Exit::Reboot;
    }
    let exit = guest.wait_for_shutdown();
    println!("goodbye: {exit:?} was asked for");
    exit
}
