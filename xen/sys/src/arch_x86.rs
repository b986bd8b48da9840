//! arch-x86/xen.h and xen-x86_64.h: registers, vCPU context, segments, Xen's part of the address space.

use crate::{abi_consts, abi_structs};

abi_consts! {
    table CONSTANTS;
    /// Selector of the flat 64-bit ring-3 code segment.
    FLAT_RING3_CS64: u16 = 0xe033, "FLAT_RING3_CS64";
    /// Selector of the flat 64-bit ring-3 data segment.
    FLAT_RING3_DS64: u16 = 0, "FLAT_RING3_DS64";
    /// Selector of the flat 64-bit ring-3 stack segment.
    FLAT_RING3_SS64: u16 = 0xe02b, "FLAT_RING3_SS64";
    /// First address of Xen's part of the address space.
    HYPERVISOR_VIRT_START: u64 = 0xffff_8000_0000_0000, "HYPERVISOR_VIRT_START";
    /// First address after it.
    HYPERVISOR_VIRT_END: u64 = 0xffff_8800_0000_0000, "HYPERVISOR_VIRT_END";
    /// Where the machine-to-physical table is mapped read-only.
    MACH2PHYS_VIRT_START: u64 = 0xffff_8000_0000_0000, "MACH2PHYS_VIRT_START";
    /// First address after it.
    MACH2PHYS_VIRT_END: u64 = 0xffff_8040_0000_0000, "MACH2PHYS_VIRT_END";
    SEGBASE_FS: u32 = 0, "SEGBASE_FS";
    SEGBASE_GS_USER: u32 = 1, "SEGBASE_GS_USER";
    SEGBASE_GS_KERNEL: u32 = 2, "SEGBASE_GS_KERNEL";
    SEGBASE_GS_USER_SEL: u32 = 3, "SEGBASE_GS_USER_SEL";
    /// In [`VcpuGuestContext::flags`]: the FPU state is valid.
    VGCF_I387_VALID: u64 = 1 << 0, "VGCF_i387_valid";
    /// The vCPU is in kernel mode.
    VGCF_IN_KERNEL: u64 = 1 << 2, "VGCF_in_kernel";
    /// The failsafe callback starts with events masked.
    VGCF_FAILSAFE_DISABLES_EVENTS: u64 = 1 << 3, "VGCF_failsafe_disables_events";
    /// System calls start with events masked.
    VGCF_SYSCALL_DISABLES_EVENTS: u64 = 1 << 4, "VGCF_syscall_disables_events";
    /// The vCPU is up.
    VGCF_ONLINE: u64 = 1 << 5, "VGCF_online";
    /// In [`IretContext::flags`]: return by sysret.
    VGCF_IN_SYSCALL: u64 = 1 << 8, "VGCF_in_syscall";
    /// First page of the guest's GDT that belongs to Xen.
    FIRST_RESERVED_GDT_PAGE: u32 = 14, "FIRST_RESERVED_GDT_PAGE";
    /// A leaf without subleaves, in [`CpuidLeaf::subleaf`].
    CPUID_NO_SUBLEAF: u32 = 0xffff_ffff, "XEN_CPUID_NO_SUBLEAF";
    /// Unknown MSRs read as 0 instead of faulting, in `xen_arch_domainconfig.misc_flags` (4.15 on).
    X86_MSR_RELAXED: u32 = 1, "XEN_X86_MSR_RELAXED";
}

abi_structs! {
    table LAYOUTS;

    /// A 64-bit vCPU's registers.
    CpuUserRegs = "struct cpu_user_regs", 200 {
        /// Register.
        r15 @ 0: u64 = "r15",
        /// Register.
        r14 @ 8: u64 = "r14",
        /// Register.
        r13 @ 16: u64 = "r13",
        /// Register.
        r12 @ 24: u64 = "r12",
        /// Register.
        rbp @ 32: u64 = "rbp",
        /// Register.
        rbx @ 40: u64 = "rbx",
        /// Register.
        r11 @ 48: u64 = "r11",
        /// Register.
        r10 @ 56: u64 = "r10",
        /// Register.
        r9 @ 64: u64 = "r9",
        /// Register.
        r8 @ 72: u64 = "r8",
        /// Register.
        rax @ 80: u64 = "rax",
        /// Register.
        rcx @ 88: u64 = "rcx",
        /// Register.
        rdx @ 96: u64 = "rdx",
        /// Register.
        rsi @ 104: u64 = "rsi",
        /// Register.
        rdi @ 112: u64 = "rdi",
        /// Private to Xen.
        error_code @ 120: u32 = "error_code",
        /// Private to Xen.
        entry_vector @ 124: u32 = "entry_vector",
        /// Instruction pointer.
        rip @ 128: u64 = "rip",
        /// Code segment.
        cs @ 136: u16 = "cs",
        pad0 @ 138: u16 = "_pad0",
        /// Events were masked.
        saved_upcall_mask @ 140: u8 = "saved_upcall_mask",
        pad1 @ 141: [u8; 3] = "_pad1",
        /// Flags; IF reads as "events not masked".
        rflags @ 144: u64 = "rflags",
        /// Stack pointer.
        rsp @ 152: u64 = "rsp",
        /// Stack segment.
        ss @ 160: u16 = "ss",
        pad2 @ 162: [u16; 3] = "_pad2",
        /// Segment.
        es @ 168: u16 = "es",
        pad3 @ 170: [u16; 3] = "_pad3",
        /// Segment.
        ds @ 176: u16 = "ds",
        pad4 @ 178: [u16; 3] = "_pad4",
        /// Segment.
        fs @ 184: u16 = "fs",
        pad5 @ 186: [u16; 3] = "_pad5",
        /// Segment.
        gs @ 192: u16 = "gs",
        pad6 @ 194: [u16; 3] = "_pad6",
    }

    /// One entry of the virtual IDT (set_trap_table); an entry with address 0 ends the list.
    TrapInfo = "struct trap_info", 16 {
        /// Exception vector.
        vector @ 0: u8 = "vector",
        /// Bits 0-1: lowest privilege that may raise it by software; bit 2: mask events on entry.
        flags @ 1: u8 = "flags",
        /// Code selector.
        cs @ 2: u16 = "cs",
        pad0 @ 4: u32,
        /// Handler's address.
        address @ 8: u64 = "address",
    }

    /// All of a vCPU's state that a builder sets.
    VcpuGuestContext = "struct vcpu_guest_context", 5168 {
        /// FXSAVE image.
        fpu_ctxt @ 0: [u8; 512] = "fpu_ctxt",
        /// `VGCF_*`.
        flags @ 512: u64 = "flags",
        /// Registers.
        user_regs @ 520: CpuUserRegs = "user_regs",
        /// Virtual IDT.
        trap_ctxt @ 720: [TrapInfo; 256] = "trap_ctxt",
        /// Linear address.
        ldt_base @ 4816: u64 = "ldt_base",
        /// Number of entries.
        ldt_ents @ 4824: u64 = "ldt_ents",
        /// Machine frames.
        gdt_frames @ 4832: [u64; 16] = "gdt_frames",
        /// Number of entries.
        gdt_ents @ 4960: u64 = "gdt_ents",
        /// Virtual TSS: SS1.
        kernel_ss @ 4968: u64 = "kernel_ss",
        /// Virtual TSS: RSP1.
        kernel_sp @ 4976: u64 = "kernel_sp",
        /// CR0 to CR7; CR1 holds the user page table's base.
        ctrlreg @ 4984: [u64; 8] = "ctrlreg",
        /// DB0 to DB7.
        debugreg @ 5048: [u64; 8] = "debugreg",
        /// Address of the event upcall.
        event_callback_eip @ 5112: u64 = "event_callback_eip",
        /// Address of the failsafe upcall.
        failsafe_callback_eip @ 5120: u64 = "failsafe_callback_eip",
        /// Address of the system call entry.
        syscall_callback_eip @ 5128: u64 = "syscall_callback_eip",
        /// Bits of VMASST_TYPE_*.
        vm_assist @ 5136: u64 = "vm_assist",
        /// Segment base.
        fs_base @ 5144: u64 = "fs_base",
        /// Segment base while in kernel mode.
        gs_base_kernel @ 5152: u64 = "gs_base_kernel",
        /// Segment base while in user mode.
        gs_base_user @ 5160: u64 = "gs_base_user",
    }

    /// The frame that the iret hypercall takes from the stack.
    IretContext = "struct iret_context", 72 {
        /// Register.
        rax @ 0: u64 = "rax",
        /// Register.
        r11 @ 8: u64 = "r11",
        /// Register.
        rcx @ 16: u64 = "rcx",
        /// [`VGCF_IN_SYSCALL`] or 0.
        flags @ 24: u64 = "flags",
        /// Instruction pointer.
        rip @ 32: u64 = "rip",
        /// Code segment.
        cs @ 40: u64 = "cs",
        /// Flags.
        rflags @ 48: u64 = "rflags",
        /// Stack pointer.
        rsp @ 56: u64 = "rsp",
        /// Stack segment.
        ss @ 64: u64 = "ss",
    }

    /// x86's part of [`SharedInfo`](crate::xen::SharedInfo).
    ArchSharedInfo = "struct arch_shared_info", 48 {
        /// The highest pfn with an entry in the p2m list, plus one.
        max_pfn @ 0: u64 = "max_pfn",
        /// Root of the three-level p2m tree.
        pfn_to_mfn_frame_list_list @ 8: u64 = "pfn_to_mfn_frame_list_list",
        /// NMI reason.
        nmi_reason @ 16: u64 = "nmi_reason",
        /// CR3 under which `p2m_vaddr` is valid; 0: use the tree.
        p2m_cr3 @ 24: u64 = "p2m_cr3",
        /// Virtual address of the linear p2m list.
        p2m_vaddr @ 32: u64 = "p2m_vaddr",
        /// Odd while the list changes.
        p2m_generation @ 40: u64 = "p2m_generation",
    }

    /// x86's part of [`VcpuInfo`](crate::xen::VcpuInfo).
    ArchVcpuInfo = "struct arch_vcpu_info", 16 {
        /// Address of the last page fault.
        cr2 @ 0: u64 = "cr2",
        pad @ 8: u64 = "pad",
    }

    /// One CPUID leaf of a CPU policy.
    CpuidLeaf = "xen_cpuid_leaf_t", 24 {
        /// Input eax.
        leaf @ 0: u32 = "leaf",
        /// Input ecx, or [`CPUID_NO_SUBLEAF`].
        subleaf @ 4: u32 = "subleaf",
        /// Output eax.
        a @ 8: u32 = "a",
        /// Output ebx.
        b @ 12: u32 = "b",
        /// Output ecx.
        c @ 16: u32 = "c",
        /// Output edx.
        d @ 20: u32 = "d",
    }

    /// One MSR of a CPU policy.
    MsrEntry = "xen_msr_entry_t", 16 {
        /// Number.
        idx @ 0: u32 = "idx",
        /// Must be 0.
        flags @ 4: u32 = "flags",
        /// Value.
        val @ 8: u64 = "val",
    }
}
