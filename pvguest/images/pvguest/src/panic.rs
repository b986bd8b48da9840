//! A panic: say so on the console, then tell Xen that we have crashed.

use core::panic::PanicInfo;

use xen_sys::sched::SHUTDOWN_CRASH;

use crate::console::Emergency;
use crate::exit;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    use core::fmt::Write;
    // The emergency console does not fail.
    let _ = writeln!(Emergency, "\npvguest: {info}");
    exit::end(SHUTDOWN_CRASH)
}
