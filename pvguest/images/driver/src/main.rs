//! A remote-controlled appliance for tests: reads commands from its console, a line each, and answers each by
//! a line. The commands are pv-drivers' (`commands.rs`).
#![no_std]
#![no_main]

use core::cell::Cell;

use pvguest::pv_drivers::commands::{End, Interpreter, World};
use pvguest::pv_drivers::lines::Lines;
use pvguest::xen_hal::{Clock, Result};
use pvguest::{Events, Exit, Grants, Guest, GuestStore, PvClock, log, println};

pvguest::main!(main);

/// How long one command may wait for devices altogether.
const COMMAND_NS: u64 = 100_000_000_000;

fn main(mut guest: Guest) -> Exit {
    println!("driver: ready");
    let deadline = Cell::new(0);
    let mut interpreter = Interpreter::new(GuestWorld {
        deadline_ns: &deadline,
    });
    let mut lines = Lines::default();
    loop {
        let mut bytes = [0; 256];
        let len = guest.console().read(&mut bytes);
        let mut input = &bytes[..len];
        while let Some(line) = lines.feed(&mut input) {
            deadline.set(PvClock.now_ns() + COMMAND_NS);
            match interpreter.run(&line) {
                pvguest::pv_drivers::commands::Reply::End(end) => return leave(end),
                reply => println!("{reply}"),
            }
        }
        interpreter.poll();
        match guest.shutdown_requested() {
            Ok(Some(request)) => return request.into(),
            Ok(None) => {}
            Err(error) => log::error!("looking for a shutdown request: {error}"),
        }
        if len == 0 {
            guest.wait(None);
        }
    }
}

fn leave(end: End) -> Exit {
    match end {
        End::Poweroff => Exit::Poweroff,
        End::Reboot => Exit::Reboot,
        End::Crash => panic!("told to crash"),
        End::Fault => pvguest::traps::fault(),
    }
}

struct GuestWorld<'a> {
    deadline_ns: &'a Cell<u64>,
}

impl World for GuestWorld<'_> {
    type Grants = Grants;
    type Events = Events;
    type Store = GuestStore;

    fn grants(&self) -> Result<Grants> {
        Grants::get()
    }

    fn events(&self) -> Events {
        Events
    }

    fn store(&self) -> Result<GuestStore> {
        Ok(GuestStore::get()?)
    }

    fn take_events(&self, token: &str) -> Result<bool> {
        Ok(GuestStore::get()?.take_events(token)?)
    }

    fn wait(&self) -> bool {
        pvguest::wait(Some(self.deadline_ns.get()));
        PvClock.now_ns() < self.deadline_ns.get()
    }

    fn memory_kib(&self) -> [u64; 3] {
        let memory = pvguest::memory::info();
        [memory.total_kib, memory.heap_kib, memory.heap_used_kib]
    }
}
