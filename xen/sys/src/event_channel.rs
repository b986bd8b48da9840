//! event_channel.h: operations on event channels.

use crate::types::{DomId, Port, VcpuId};
use crate::{abi_consts, abi_structs};

/// How many ports the 2-level ABI has for 64-bit guests (`EVTCHN_2L_NR_CHANNELS`).
pub const NR_CHANNELS_2L: u32 = 4096;
/// How many ports the FIFO ABI has (`EVTCHN_FIFO_NR_CHANNELS`).
pub const NR_CHANNELS_FIFO: u32 = 1 << 17;

abi_consts! {
    table CONSTANTS;
    EVTCHNOP_BIND_INTERDOMAIN: u32 = 0, "EVTCHNOP_bind_interdomain";
    EVTCHNOP_BIND_VIRQ: u32 = 1, "EVTCHNOP_bind_virq";
    EVTCHNOP_CLOSE: u32 = 3, "EVTCHNOP_close";
    EVTCHNOP_SEND: u32 = 4, "EVTCHNOP_send";
    EVTCHNOP_STATUS: u32 = 5, "EVTCHNOP_status";
    EVTCHNOP_ALLOC_UNBOUND: u32 = 6, "EVTCHNOP_alloc_unbound";
    EVTCHNOP_BIND_IPI: u32 = 7, "EVTCHNOP_bind_ipi";
    EVTCHNOP_BIND_VCPU: u32 = 8, "EVTCHNOP_bind_vcpu";
    EVTCHNOP_UNMASK: u32 = 9, "EVTCHNOP_unmask";
    EVTCHNOP_RESET: u32 = 10, "EVTCHNOP_reset";
    EVTCHNSTAT_CLOSED: u32 = 0, "EVTCHNSTAT_closed";
    EVTCHNSTAT_UNBOUND: u32 = 1, "EVTCHNSTAT_unbound";
    EVTCHNSTAT_INTERDOMAIN: u32 = 2, "EVTCHNSTAT_interdomain";
    EVTCHNSTAT_PIRQ: u32 = 3, "EVTCHNSTAT_pirq";
    EVTCHNSTAT_VIRQ: u32 = 4, "EVTCHNSTAT_virq";
    EVTCHNSTAT_IPI: u32 = 5, "EVTCHNSTAT_ipi";
}

abi_structs! {
    table LAYOUTS;

    /// Allocates in `dom` a port that `remote_dom` may bind.
    AllocUnbound = "struct evtchn_alloc_unbound", 8 {
        /// In: whose port.
        dom @ 0: DomId = "dom",
        /// In: who may bind to it.
        remote_dom @ 2: DomId = "remote_dom",
        /// Out.
        port @ 4: Port = "port",
    }

    /// Binds a new local port to a peer's unbound one.
    BindInterdomain = "struct evtchn_bind_interdomain", 12 {
        /// In.
        remote_dom @ 0: DomId = "remote_dom",
        pad0 @ 2: u16,
        /// In.
        remote_port @ 4: Port = "remote_port",
        /// Out.
        local_port @ 8: Port = "local_port",
    }

    /// Binds a new port to a virtual interrupt.
    BindVirq = "struct evtchn_bind_virq", 12 {
        /// In: see [`Virq`](crate::xen::Virq).
        virq @ 0: u32 = "virq",
        /// In.
        vcpu @ 4: VcpuId = "vcpu",
        /// Out.
        port @ 8: Port = "port",
    }

    /// Binds a new port to an inter-processor interrupt.
    BindIpi = "struct evtchn_bind_ipi", 8 {
        /// In.
        vcpu @ 0: VcpuId = "vcpu",
        /// Out.
        port @ 4: Port = "port",
    }

    /// Closes a port.
    Close = "struct evtchn_close", 4 {
        /// In.
        port @ 0: Port = "port",
    }

    /// Notifies the other end of a port.
    Send = "struct evtchn_send", 4 {
        /// In: the local port.
        port @ 0: Port = "port",
    }

    /// Asks what a port is bound to.
    Status = "struct evtchn_status", 24 {
        /// In.
        dom @ 0: DomId = "dom",
        pad0 @ 2: u16,
        /// In.
        port @ 4: Port = "port",
        /// Out: `EVTCHNSTAT_*`.
        status @ 8: u32 = "status",
        /// Out: which vCPU it notifies.
        vcpu @ 12: VcpuId = "vcpu",
        /// Out: the peer, if unbound or interdomain.
        peer_dom @ 16: DomId = "u.interdomain.dom",
        pad1 @ 18: u16,
        /// Out: the peer's port, if interdomain.
        peer_port @ 20: Port = "u.interdomain.port",
    }

    /// Chooses the vCPU that a port notifies.
    BindVcpu = "struct evtchn_bind_vcpu", 8 {
        /// In.
        port @ 0: Port = "port",
        /// In.
        vcpu @ 4: VcpuId = "vcpu",
    }

    /// Unmasks a port, and raises it if it is pending.
    Unmask = "struct evtchn_unmask", 4 {
        /// In.
        port @ 0: Port = "port",
    }

    /// Closes all ports of a domain.
    Reset = "struct evtchn_reset", 2 {
        /// In.
        dom @ 0: DomId = "dom",
    }
}
