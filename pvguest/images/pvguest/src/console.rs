//! The console: the ring to the console daemon as a domU, Xen's own console as dom0.

use core::fmt::{self, Write};
use core::ptr::NonNull;

use xen_hal::Clock;
use xen_ring::SharedMemory;
use xen_sys::xen::StartInfo;
use xen_sys::{PAGE_SIZE, Port};

use crate::single::Single;
use crate::{PvClock, events, hypercall, paging, start_info};

/// How long a writer waits for the daemon to make room before text is dropped.
const STALL_NS: u64 = 2_000_000_000;
/// How long the end of the guest waits for the daemon to take the last words.
const DRAIN_NS: u64 = 500_000_000;

/// The guest's console. Every value is the same console.
#[derive(Clone, Copy, Debug, Default)]
pub struct Console;

static RING: Single<Ring> = Single::new();

struct Ring {
    driver: pv_drivers::Console<RingPage>,
    port: Port,
    /// The daemon took nothing for STALL_NS: do not wait again until it does.
    stalled: bool,
}

/// A ring page that the builder placed; it is never given back.
#[derive(Debug)]
pub(crate) struct RingPage(NonNull<u8>);

// SAFETY: a whole mapped page that memory::find_free keeps out of the heap, for ever; only rings use it.
unsafe impl SharedMemory for RingPage {
    fn base(&self) -> NonNull<u8> {
        self.0
    }

    fn len(&self) -> usize {
        PAGE_SIZE
    }
}

impl RingPage {
    /// The page under a machine frame that start_info names; none if it is not ours.
    pub(crate) fn new(mfn: xen_sys::Mfn) -> Option<RingPage> {
        if mfn.0 == 0 {
            return None;
        }
        let address = paging::address_of(paging::pfn_of_mfn(mfn)?);
        NonNull::new(address as *mut u8).map(RingPage)
    }
}

/// Finds the ring. A guest without one is silent.
pub(crate) fn init(info: &StartInfo) {
    if start_info::is_dom0() || info.console_evtchn.0 == 0 {
        return;
    }
    if let Some(page) = RingPage::new(info.console_mfn) {
        RING.set(Ring {
            driver: pv_drivers::Console::new(page),
            port: info.console_evtchn,
            stalled: false,
        });
        events::bind(info.console_evtchn);
    }
}

impl Console {
    /// Prints formatted text.
    pub fn print(text: fmt::Arguments<'_>) {
        // Writing to the console does not fail: what cannot be written is dropped and counted.
        let _ = Console.write_fmt(text);
    }

    /// Writes all of `bytes`, waiting for room; a newline gets a carriage return before it.
    pub fn write_all(&self, bytes: &[u8]) {
        if start_info::is_dom0() {
            // Refused only to a domU.
            let _ = hypercall::console_write(bytes);
        } else if let Some(mut ring) = RING.try_get() {
            for line in bytes.split_inclusive(|&byte| byte == b'\n') {
                match line.strip_suffix(b"\n") {
                    Some(text) => {
                        ring.write_waiting(text);
                        ring.write_waiting(b"\r\n");
                    }
                    None => ring.write_waiting(line),
                }
            }
            ring.notify();
        }
    }

    /// Takes what has been typed, without waiting; how many bytes.
    pub fn read(&self, to: &mut [u8]) -> usize {
        if start_info::is_dom0() {
            return hypercall::console_read(to).unwrap_or(0);
        }
        let Some(mut ring) = RING.try_get() else {
            return 0;
        };
        let len = ring.driver.read(to);
        if len > 0 {
            ring.notify();
        }
        len
    }

    /// How many bytes were dropped because the daemon took nothing.
    pub fn dropped(&self) -> u64 {
        RING.try_get().map_or(0, |ring| ring.driver.dropped())
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_all(text.as_bytes());
        Ok(())
    }
}

impl embedded_io::ErrorType for Console {
    type Error = core::convert::Infallible;
}

impl embedded_io::ReadReady for Console {
    fn read_ready(&mut self) -> Result<bool, Self::Error> {
        Ok(RING.try_get().is_some_and(|ring| ring.driver.has_input()))
    }
}

/// Waits until something is typed. As dom0, where Xen raises no event for it, it looks again and again.
impl embedded_io::Read for Console {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, Self::Error> {
        loop {
            let len = Console::read(self, to);
            if len > 0 || to.is_empty() {
                return Ok(len);
            }
            let look_again = start_info::is_dom0().then(|| PvClock.now_ns() + 10_000_000);
            events::wait(look_again);
        }
    }
}

impl embedded_io::Write for Console {
    fn write(&mut self, from: &[u8]) -> Result<usize, Self::Error> {
        self.write_all(from);
        Ok(from.len())
    }

    fn flush(&mut self) -> Result<(), Self::Error> {
        drain();
        Ok(())
    }
}

impl Ring {
    fn notify(&self) {
        // The port comes from the builder; if it is closed there is nobody to tell.
        let _ = hypercall::send(self.port);
    }

    fn write_waiting(&mut self, mut bytes: &[u8]) {
        let mut deadline = None;
        loop {
            let len = self.driver.write(bytes);
            bytes = &bytes[len..];
            if len > 0 {
                self.stalled = false;
                deadline = None;
            }
            if bytes.is_empty() {
                return;
            }
            let until = *deadline.get_or_insert_with(|| PvClock.now_ns() + STALL_NS);
            if self.stalled || self.driver.is_broken() || PvClock.now_ns() >= until {
                self.stalled = true;
                self.driver.drop_bytes(bytes.len());
                return;
            }
            self.notify();
            events::wait_for(self.port, until);
        }
    }
}

/// Waits a moment for the daemon to take what was written.
pub(crate) fn drain() {
    let Some(ring) = RING.try_get() else { return };
    let until = PvClock.now_ns() + DRAIN_NS;
    while ring.driver.has_output() && !ring.stalled && PvClock.now_ns() < until {
        ring.notify();
        events::wait_for(ring.port, until.min(PvClock.now_ns() + 10_000_000));
    }
}

/// The console for panics and exceptions: no waiting, no cell that may be in use, whatever way is open.
pub(crate) struct Emergency;

impl Write for Emergency {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // EPERM as an ordinary domU; then the ring is the way.
        if hypercall::console_write(text.as_bytes()).is_ok() && start_info::is_dom0() {
            return Ok(());
        }
        let info = start_info::get();
        if let Some(page) = RingPage::new(info.console_mfn) {
            // A second end of the same ring: whoever wrote to the first does not go on.
            let mut driver = pv_drivers::Console::new(page);
            for line in text.split_inclusive('\n') {
                driver.write(line.trim_end_matches('\n').as_bytes());
                if line.ends_with('\n') {
                    driver.write(b"\r\n");
                }
            }
            // As in `Ring::notify`.
            let _ = hypercall::send(info.console_evtchn);
        }
        Ok(())
    }
}
