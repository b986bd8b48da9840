//! Event channels: ports, their bindings, pending and mask bits.

use std::sync::Arc;

use xen_hal::{Error, EventChannels, Result};
use xen_sys::{DomId, Errno, Port};

use crate::Call;
use crate::grants::resolve;
use crate::world::{Shared, State};

/// Ports that a domain can have (`EVTCHN_2L_NR_CHANNELS` of a 64-bit domain).
const MAX_PORTS: u32 = 4096;

/// One owner of event channels in a domain: a kernel, or an open /dev/xen/evtchn. Every clone is the same
/// owner; ports that are still bound when the last one is dropped are closed.
#[derive(Clone)]
pub struct Events(Arc<Owner>);

struct Owner {
    world: Arc<Shared>,
    dom: DomId,
    id: u64,
}

pub(crate) struct Channel {
    pub(crate) state: ChannelState,
    owner: Option<u64>,
    /// When it fired, if it did and was not taken: whoever fired first is taken first.
    pending: Option<u64>,
    masked: bool,
    boot: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChannelState {
    Unbound {
        remote: DomId,
    },
    Interdomain {
        remote: DomId,
        port: Port,
    },
    /// `VIRQ_DOM_EXC`.
    DomExc,
}

impl Channel {
    pub(crate) fn new(state: ChannelState, owner: Option<u64>) -> Self {
        Channel {
            state,
            owner,
            pending: None,
            masked: false,
            boot: owner.is_none(),
        }
    }

    /// A port that a toolstack made and that nobody's program is to give back.
    pub(crate) fn is_boot_port(&self) -> bool {
        self.boot
    }
}

impl State {
    fn channel(&mut self, dom: DomId, port: Port) -> Option<&mut Channel> {
        self.domains.get_mut(&dom.0)?.channels.get_mut(&port.0)
    }

    pub(crate) fn new_port(&mut self, dom: DomId, channel: Channel) -> Result<Port, Errno> {
        let channels = &mut self.domains.get_mut(&dom.0).ok_or(Errno::ESRCH)?.channels;
        // Lowest first, as Xen searches.
        let port = (1..MAX_PORTS)
            .find(|port| !channels.contains_key(port))
            .ok_or(Errno::ENOSPC)?;
        channels.insert(port, channel);
        Ok(Port(port))
    }

    fn set_pending(&mut self, dom: DomId, port: Port) {
        let when = self.new_id();
        if let Some(channel) = self.channel(dom, port) {
            channel.pending.get_or_insert(when);
        }
    }

    /// Some domain has died or shut down.
    pub(crate) fn raise_dom_exc(&mut self) {
        let ports: Vec<(u16, u32)> = self
            .domains
            .iter()
            .flat_map(|(&dom, domain)| {
                domain
                    .channels
                    .iter()
                    .map(move |(&port, channel)| (dom, port, channel))
            })
            .filter(|(_, _, channel)| channel.state == ChannelState::DomExc)
            .map(|(dom, port, _)| (dom, port))
            .collect();
        for (dom, port) in ports {
            self.set_pending(DomId(dom), Port(port));
        }
    }

    /// Frees a port; the other end, if any, is unbound again, for the same domain.
    pub(crate) fn close(&mut self, dom: DomId, port: Port) -> Option<Channel> {
        let channel = self.domains.get_mut(&dom.0)?.channels.remove(&port.0)?;
        if let ChannelState::Interdomain { remote, port } = channel.state
            && let Some(other) = self.channel(remote, port)
        {
            other.state = ChannelState::Unbound { remote: dom };
        }
        Some(channel)
    }
}

impl Events {
    pub(crate) fn new(world: Arc<Shared>, dom: DomId) -> Self {
        let id = world.lock().new_id();
        Events(Arc::new(Owner { world, dom, id }))
    }

    /// Takes a port that the toolstack made for the guest: the store's or the console's.
    pub fn adopt(&self, port: Port) -> Result<()> {
        let mut state = self.0.world.lock();
        match state.channel(self.0.dom, port) {
            Some(channel) if channel.owner.is_none() => {
                channel.owner = Some(self.0.id);
                Ok(())
            }
            _ => Err(self.error("adopt", self.0.dom, port, Errno::EINVAL)),
        }
    }

    /// Binds a port that fires whenever a domain dies or shuts down (`VIRQ_DOM_EXC`), for domain 0. EEXIST
    /// if somebody has it already.
    pub fn bind_dom_exc(&self) -> Result<Port> {
        const OP: &str = "EVTCHNOP_bind_virq";
        let refused = |errno| self.error(OP, self.0.dom, Port(0), errno);
        if self.0.dom != DomId::DOM0 {
            return Err(refused(Errno::EPERM));
        }
        let mut state = self.0.world.lock();
        let channels = state
            .domains
            .get(&self.0.dom.0)
            .map(|domain| &domain.channels);
        let taken = channels.is_some_and(|channels| {
            channels
                .values()
                .any(|channel| channel.state == ChannelState::DomExc)
        });
        if taken {
            return Err(refused(Errno::EEXIST));
        }
        let channel = Channel::new(ChannelState::DomExc, Some(self.0.id));
        state.new_port(self.0.dom, channel).map_err(refused)
    }

    /// Whether a port has fired and is neither taken nor masked.
    pub fn has_pending(&self) -> bool {
        let state = self.0.world.lock();
        let domain = state.domains.get(&self.0.dom.0);
        domain.is_some_and(|domain| domain.channels.values().any(|channel| self.fires(channel)))
    }

    fn fires(&self, channel: &Channel) -> bool {
        channel.owner == Some(self.0.id) && channel.pending.is_some() && !channel.masked
    }

    fn owned<'a>(&self, state: &'a mut State, port: Port) -> Option<&'a mut Channel> {
        state
            .channel(self.0.dom, port)
            .filter(|channel| channel.owner == Some(self.0.id))
    }

    fn error(&self, op: &'static str, dom: DomId, port: Port, errno: Errno) -> Error {
        Error::Event {
            op,
            dom,
            port,
            errno,
        }
    }
}

impl EventChannels for Events {
    fn alloc_unbound(&self, remote: DomId) -> Result<Port> {
        const OP: &str = "EVTCHNOP_alloc_unbound";
        let remote = resolve(remote, self.0.dom);
        let mut state = self.0.world.lock();
        if self.0.world.faults.hit(Call::AllocUnbound) {
            return Err(self.error(OP, remote, Port(0), Errno::ENOSPC));
        }
        let channel = Channel::new(ChannelState::Unbound { remote }, Some(self.0.id));
        state
            .new_port(self.0.dom, channel)
            .map_err(|errno| self.error(OP, remote, Port(0), errno))
    }

    fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Port> {
        let remote = resolve(remote, self.0.dom);
        let error = |errno| self.error("EVTCHNOP_bind_interdomain", remote, port, errno);
        let mut state = self.0.world.lock();
        if self.0.world.faults.hit(Call::BindInterdomain) {
            return Err(error(Errno::ENOSPC));
        }
        if !state.domains.contains_key(&remote.0) {
            return Err(error(Errno::ESRCH));
        }
        let wanted = ChannelState::Unbound { remote: self.0.dom };
        match state.channel(remote, port) {
            Some(channel) if channel.state == wanted => {}
            _ => return Err(error(Errno::EINVAL)),
        }
        let ours = Channel::new(ChannelState::Interdomain { remote, port }, Some(self.0.id));
        let local = state.new_port(self.0.dom, ours).map_err(error)?;
        if let Some(channel) = state.channel(remote, port) {
            channel.state = ChannelState::Interdomain {
                remote: self.0.dom,
                port: local,
            };
        }
        // What was sent to the unbound port is lost; Xen makes up for it with one event on the new port.
        state.set_pending(self.0.dom, local);
        Ok(local)
    }

    fn close(&self, port: Port) -> Result<()> {
        let mut state = self.0.world.lock();
        if self.owned(&mut state, port).is_none() {
            return Err(self.error("EVTCHNOP_close", self.0.dom, port, Errno::EINVAL));
        }
        state.close(self.0.dom, port);
        Ok(())
    }

    fn notify(&self, port: Port) -> Result<()> {
        let mut state = self.0.world.lock();
        let error = self.error("EVTCHNOP_send", self.0.dom, port, Errno::EINVAL);
        if self.0.world.faults.hit(Call::Notify) {
            return Err(error);
        }
        match self.owned(&mut state, port).map(|channel| channel.state) {
            None => Err(error),
            // Nobody is there: the event is dropped.
            Some(ChannelState::Unbound { .. }) => Ok(()),
            Some(ChannelState::DomExc) => Err(error),
            Some(ChannelState::Interdomain { remote, port }) => {
                state.set_pending(remote, port);
                Ok(())
            }
        }
    }

    fn next_pending(&self) -> Result<Option<Port>> {
        let mut state = self.0.world.lock();
        let Some(domain) = state.domains.get_mut(&self.0.dom.0) else {
            return Ok(None);
        };
        let first = domain
            .channels
            .iter_mut()
            .filter(|(_, channel)| self.fires(channel))
            .min_by_key(|(_, channel)| channel.pending);
        Ok(first.map(|(&port, channel)| {
            channel.pending = None;
            channel.masked = true;
            Port(port)
        }))
    }

    fn unmask(&self, port: Port) -> Result<()> {
        let mut state = self.0.world.lock();
        match self.owned(&mut state, port) {
            Some(channel) => {
                channel.masked = false;
                Ok(())
            }
            None => Err(self.error("EVTCHNOP_unmask", self.0.dom, port, Errno::EINVAL)),
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut state = self.world.lock();
        let Some(domain) = state.domains.get_mut(&self.dom.0) else {
            return;
        };
        let mut close = Vec::new();
        for (&port, channel) in &mut domain.channels {
            if channel.owner != Some(self.id) {
                continue;
            }
            if channel.boot {
                // A guest's kernel never closes these; the toolstack's domain destruction does.
                channel.owner = None;
            } else {
                close.push(Port(port));
            }
        }
        for port in close {
            state.close(self.dom, port);
        }
    }
}
