//! An interface's life: the handshake in the store, then the two queues, then the end.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::str::FromStr;

use xen_hal::{Error, EventChannels, GrantTable, Result, Store, XenbusState};
use xen_sys::Port;
use xen_sys::io::netif::TxRequest;

use super::{Counters, Fault, RxQueue, TxQueue};
use crate::xenbus::{Device, Phase};

/// An Ethernet address, as the node `mac` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(':');
        let mut address = [0; 6];
        for byte in &mut address {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(())?;
            *byte = u8::from_str_radix(part, 16).map_err(drop)?;
        }
        match parts.next() {
            None => Ok(MacAddress(address)),
            Some(_) => Err(()),
        }
    }
}

impl core::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A network interface.
#[derive(Debug)]
pub struct Interface<G: GrantTable, E: EventChannels, S: Store> {
    device: Device<S>,
    grants: G,
    events: E,
    mac: MacAddress,
    phase: Phase,
    link: Option<Link<G>>,
    received: u64,
    /// The owner has closed it: it does not connect again.
    ended: bool,
}

/// What exists while rings and port are published.
#[derive(Debug)]
struct Link<G: GrantTable> {
    rx: RxQueue<G>,
    tx: TxQueue<G>,
    port: Port,
}

impl<G: GrantTable, E: EventChannels, S: Store> Interface<G, E, S> {
    /// Opens `device/vif/ID` and goes as far in the handshake as the back end is.
    pub fn open(grants: G, events: E, store: S, id: &str) -> Result<Self> {
        let device = Device::open(store, "vif", id)?;
        let text = device.own("mac")?.unwrap_or_default();
        let mac = text.parse().map_err(|()| Error::Peer {
            dom: device.peer(),
            what: alloc::format!("{device}/mac is {text:?}, no Ethernet address"),
        })?;
        let mut interface = Interface {
            device,
            grants,
            events,
            mac,
            phase: Phase::Waiting,
            link: None,
            received: 0,
            ended: false,
        };
        interface.backend_changed()?;
        Ok(interface)
    }

    /// The token of the watch on the back end's state: its events mean [`backend_changed`](Self::backend_changed).
    pub fn token(&self) -> &str {
        self.device.token()
    }

    /// Where it is in its life.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Its address.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// Goes on with the handshake. An error of the peer makes the interface broken and is not returned.
    pub fn backend_changed(&mut self) -> Result<()> {
        match self.follow() {
            Err(Error::Peer { what, .. }) => {
                self.break_up(what);
                Ok(())
            }
            result => result,
        }
    }

    fn follow(&mut self) -> Result<()> {
        use XenbusState as X;
        loop {
            match (&self.phase, self.device.backend_state()?) {
                (Phase::Waiting, X::InitWait | X::Connected) => self.publish()?,
                (Phase::Published, X::Connected) => self.phase = Phase::Connected,
                (
                    Phase::Waiting | Phase::Published | Phase::Connected,
                    X::Closing | X::Closed | X::Unknown,
                ) => return self.let_go(),
                // It has closed and is there again.
                (Phase::Closed, X::InitWait) if !self.ended => self.publish()?,
                _ => return Ok(()),
            }
        }
    }

    fn publish(&mut self) -> Result<()> {
        // Of an attempt that failed half-way.
        self.drop_link();
        let peer = self.device.peer();
        if !self.device.offers("feature-rx-copy")? {
            return Err(Error::Peer {
                dom: peer,
                what: "no feature-rx-copy".to_string(),
            });
        }
        let rx = RxQueue::new(&self.grants, peer)?;
        let tx = TxQueue::new(self.grants.clone(), peer)?;
        let port = self.events.alloc_unbound(peer)?;
        let (rx_ref, tx_ref) = (rx.ring_ref(), tx.ring_ref());
        let mut link = Link { rx, tx, port };
        // The pages stand in the ring before the back end looks; it needs no event for them.
        let _ = link.rx.publish();
        self.link = Some(link);
        self.device.publish(
            &[
                ("tx-ring-ref", &tx_ref),
                ("rx-ring-ref", &rx_ref),
                ("event-channel", &port),
                ("request-rx-copy", &1),
                ("feature-rx-notify", &1),
                // We check no checksum that was left blank.
                ("feature-no-csum-offload", &1),
                ("feature-sg", &0),
                ("feature-gso-tcpv4", &0),
            ],
            XenbusState::Connected,
        )?;
        self.phase = Phase::Published;
        Ok(())
    }

    /// Ends it from our side for good: nothing is granted or bound any more, and the back end is told.
    pub fn close(&mut self) -> Result<()> {
        self.ended = true;
        self.let_go()
    }

    fn let_go(&mut self) -> Result<()> {
        self.drop_link();
        self.phase = Phase::Closed;
        self.device.set_state(XenbusState::Closed)
    }

    fn drop_link(&mut self) {
        if let Some(link) = self.link.take() {
            // A port that does not close is closed with the domain; nobody waits for it any more.
            let _ = self.events.close(link.port);
        }
    }

    fn break_up(&mut self, what: String) {
        self.drop_link();
        // Best effort: the store may be what is broken.
        let _ = self.device.report(&what);
        let _ = self.device.set_state(XenbusState::Closing);
        self.phase = Phase::Broken(what);
    }

    fn link(&mut self) -> Option<&mut Link<G>> {
        match self.phase {
            Phase::Connected => self.link.as_mut(),
            _ => None,
        }
    }

    /// Takes the next frame that has arrived.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let received = self.link()?.rx.receive();
        match received {
            Ok(frame) => {
                self.received += u64::from(frame.is_some());
                frame
            }
            Err(fault) => {
                self.fault(fault);
                None
            }
        }
    }

    /// Whether a frame can be sent now.
    pub fn can_send(&mut self) -> bool {
        self.link().is_some_and(|link| link.tx.has_room())
    }

    /// Queues a frame of 14 to 1514 bytes; false if there is no room.
    #[must_use]
    pub fn send(&mut self, frame: &[u8]) -> bool {
        self.link().is_some_and(|link| link.tx.send(frame))
    }

    /// Queues a request as it stands; see [`TxQueue::raw`].
    #[must_use]
    pub fn raw(&mut self, request: TxRequest) -> bool {
        self.link().is_some_and(|link| link.tx.raw(request))
    }

    /// Shows the back end what was queued and offered, and takes its answers.
    pub fn poll(&mut self) {
        let Some(link) = self.link() else { return };
        let result = link.tx.poll();
        let notify = link.tx.publish() | link.rx.publish();
        let port = link.port;
        if notify {
            // A port that cannot be sent to has lost its peer, which the store will tell.
            let _ = self.events.notify(port);
        }
        if let Err(fault) = result {
            self.fault(fault);
        }
    }

    /// What has passed so far.
    pub fn counters(&self) -> Counters {
        let (sent, tx_errors) = self.link.as_ref().map_or((0, 0), |link| link.tx.counts());
        Counters {
            received: self.received,
            rx_dropped: self.link.as_ref().map_or(0, |link| link.rx.dropped()),
            sent,
            tx_errors,
        }
    }

    fn fault(&mut self, fault: Fault) {
        self.break_up(fault.to_string());
    }
}

impl<G: GrantTable, E: EventChannels, S: Store> Drop for Interface<G, E, S> {
    fn drop(&mut self) {
        self.drop_link();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses() {
        for (text, parsed) in [
            ("00:16:3e:0a:Fb:01", Some([0, 0x16, 0x3e, 0x0a, 0xfb, 1])),
            ("00:16:3e:0a:fb", None),
            ("00:16:3e:0a:fb:01:02", None),
            ("0:16:3e:0a:fb:01", None),
            ("zz:16:3e:0a:fb:01", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), parsed.map(MacAddress), "{text}");
        }
        assert_eq!(
            MacAddress([0, 1, 2, 3, 254, 255]).to_string(),
            "00:01:02:03:fe:ff"
        );
    }
}
