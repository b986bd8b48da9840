//! The `log` crate's macros, on the console: seconds since boot, level, text.

use log::{LevelFilter, Log, Metadata, Record};
use xen_hal::Clock;

use crate::{Console, PvClock, start_info};

struct ConsoleLog;

/// Sets the logger; `loglevel=` on the command line is off, error, warn, info (the default), debug or trace.
pub(crate) fn init() {
    let level = pv_drivers::cmdline::CommandLine::new(start_info::command_line())
        .parsed("loglevel")
        .unwrap_or(LevelFilter::Info);
    // Only fails if a logger is set already, and this is called once.
    if log::set_logger(&ConsoleLog).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for ConsoleLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let us = PvClock.now_ns() / 1000;
            Console::print(format_args!(
                "[{}.{:06}] {}: {}\n",
                us / 1_000_000,
                us % 1_000_000,
                record.level(),
                record.args()
            ));
        }
    }

    fn flush(&self) {}
}
