//! The `net` commands.

use alloc::format;
use alloc::string::{String, ToString};
use core::str::SplitWhitespace;

use xen_sys::GrantRef;
use xen_sys::io::netif::TxRequest;

use super::{Answer, Interpreter, World, WorldInterface, parse};
use crate::cmdline::CommandLine;
use crate::net::{Interface, MAX_FRAME, MIN_FRAME, Phase};
use crate::xenbus;

/// Frames that `net send` sends at most.
const MAX_FRAMES: u64 = 1 << 20;

impl<W: World> Interpreter<W> {
    pub(super) fn net_command(&mut self, mut words: SplitWhitespace<'_>, line: &str) -> Answer {
        self.open_interface()?;
        let (Some(interface), world) = (&mut self.interface, &self.world) else {
            return Err("no interface".to_string());
        };
        match words.next().unwrap_or("") {
            "info" => {
                let c = interface.counters();
                Ok(format!(
                    "{} {:?} {} {} {} {}",
                    interface.mac(),
                    interface.phase(),
                    c.received,
                    c.rx_dropped,
                    c.sent,
                    c.tx_errors
                ))
            }
            "send" => {
                let count: u64 = parse(&mut words, "COUNT")?;
                let size: usize = parse(&mut words, "SIZE")?;
                if !(MIN_FRAME..=MAX_FRAME).contains(&size) || count > MAX_FRAMES {
                    return Err(format!("{count} frames of {size} bytes: out of range"));
                }
                let mut frame = alloc::vec![0xff; size];
                frame[6..12].copy_from_slice(&interface.mac().0);
                frame[12..14].copy_from_slice(&[0x88, 0xb5]);
                for _ in 0..count {
                    while !interface.send(&frame) {
                        interface.poll();
                        if interface.phase() != &Phase::Connected || !world.wait() {
                            return Err(format!("not sent: {:?}", interface.phase()));
                        }
                        follow_interface(world, interface);
                    }
                }
                interface.poll();
                Ok(String::new())
            }
            "raw" => {
                let line = CommandLine::new(line);
                let number = |key| line.parsed::<u16>(key).unwrap_or(0);
                let request = TxRequest {
                    gref: GrantRef(line.parsed("gref").unwrap_or(0)),
                    offset: number("offset"),
                    flags: number("flags"),
                    id: 0,
                    size: number("size"),
                };
                if !interface.raw(request) {
                    return Err("no room".to_string());
                }
                interface.poll();
                Ok(String::new())
            }
            other => Err(format!("unknown net command {other:?}")),
        }
    }

    fn open_interface(&mut self) -> Result<(), String> {
        let text = |error: xen_hal::Error| error.to_string();
        if self.interface.is_none() {
            let store = self.world.store().map_err(text)?;
            let ids = xenbus::list(&store, "vif").map_err(text)?;
            let id = ids.first().ok_or("no interface")?;
            let grants = self.world.grants().map_err(text)?;
            let interface =
                Interface::open(grants, self.world.events(), store, id).map_err(text)?;
            self.interface = Some(interface);
        }
        if let Some(interface) = &mut self.interface {
            while interface.phase().is_opening() {
                if !self.world.wait() {
                    return Err(format!("the interface is still {:?}", interface.phase()));
                }
                follow_interface(&self.world, interface);
            }
        }
        Ok(())
    }
}

pub(super) fn follow_interface<W: World>(world: &W, interface: &mut WorldInterface<W>) {
    if world.take_events(interface.token()).unwrap_or(false) {
        // As above.
        let _ = interface.backend_changed();
    }
}
