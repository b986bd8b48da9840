//! vcpu.h: operations on vCPUs and their timers.

use crate::{abi_consts, abi_structs};

abi_consts! {
    table CONSTANTS;
    VCPUOP_INITIALISE: u32 = 0, "VCPUOP_initialise";
    VCPUOP_UP: u32 = 1, "VCPUOP_up";
    VCPUOP_DOWN: u32 = 2, "VCPUOP_down";
    VCPUOP_IS_UP: u32 = 3, "VCPUOP_is_up";
    VCPUOP_GET_RUNSTATE_INFO: u32 = 4, "VCPUOP_get_runstate_info";
    VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA: u32 = 5, "VCPUOP_register_runstate_memory_area";
    VCPUOP_SET_PERIODIC_TIMER: u32 = 6, "VCPUOP_set_periodic_timer";
    VCPUOP_STOP_PERIODIC_TIMER: u32 = 7, "VCPUOP_stop_periodic_timer";
    VCPUOP_SET_SINGLESHOT_TIMER: u32 = 8, "VCPUOP_set_singleshot_timer";
    VCPUOP_STOP_SINGLESHOT_TIMER: u32 = 9, "VCPUOP_stop_singleshot_timer";
    VCPUOP_REGISTER_VCPU_INFO: u32 = 10, "VCPUOP_register_vcpu_info";
    /// In [`SetSingleshotTimer::flags`]: fail with ETIME if the time has passed.
    VCPU_SSHOTTMR_FUTURE: u32 = 1, "VCPU_SSHOTTMR_future";
    RUNSTATE_RUNNING: u32 = 0, "RUNSTATE_running";
    RUNSTATE_RUNNABLE: u32 = 1, "RUNSTATE_runnable";
    RUNSTATE_BLOCKED: u32 = 2, "RUNSTATE_blocked";
    RUNSTATE_OFFLINE: u32 = 3, "RUNSTATE_offline";
}

abi_structs! {
    table LAYOUTS;

    /// Argument of [`VCPUOP_SET_SINGLESHOT_TIMER`].
    SetSingleshotTimer = "struct vcpu_set_singleshot_timer", 16 {
        /// Absolute system time in nanoseconds.
        timeout_abs_ns @ 0: u64 = "timeout_abs_ns",
        /// [`VCPU_SSHOTTMR_FUTURE`] or 0.
        flags @ 8: u32 = "flags",
        pad0 @ 12: u32,
    }

    /// Argument of [`VCPUOP_REGISTER_VCPU_INFO`].
    RegisterVcpuInfo = "struct vcpu_register_vcpu_info", 16 {
        /// Frame.
        mfn @ 0: u64 = "mfn",
        /// Offset of the vcpu_info in it.
        offset @ 8: u32 = "offset",
        rsvd @ 12: u32 = "rsvd",
    }

    /// How long a vCPU was in which state.
    RunstateInfo = "struct vcpu_runstate_info", 48 {
        /// `RUNSTATE_*`.
        state @ 0: u32 = "state",
        pad0 @ 4: u32,
        /// Nanoseconds.
        state_entry_time @ 8: u64 = "state_entry_time",
        /// Nanoseconds in each state.
        time @ 16: [u64; 4] = "time",
    }
}
