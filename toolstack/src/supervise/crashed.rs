//! Where the vCPUs of a guest stood when it crashed, for the log: often the only trace, since the guest is removed.

use xen_hal::{DomainInfo, Inspect};
use xen_sys::arch_x86::{VGCF_IN_KERNEL, VcpuGuestContext};
use xen_sys::{Plain, VcpuId};

/// Most vCPUs that are told of.
const MOST: usize = 4;

/// A line for each vCPU that had been started: where it was, and what a debugger asks for first. If none can be read, why.
pub fn vcpus<C: Inspect>(control: &C, info: &DomainInfo) -> Vec<String> {
    let all =
        (0..=info.max_vcpu_id).map(|vcpu| (vcpu, control.vcpu_context(info.dom, VcpuId(vcpu))));
    let mut refusal = None;
    let started = all.filter_map(|(vcpu, bytes)| match bytes {
        Ok(bytes) => VcpuGuestContext::from_prefix(&bytes).map(|context| line(vcpu, &context)),
        Err(error) => {
            refusal.get_or_insert(error);
            None
        }
    });
    let lines: Vec<String> = started.take(MOST).collect();
    match (lines.is_empty(), refusal) {
        (true, Some(error)) => vec![format!("its registers cannot be read: {error}")],
        _ => lines,
    }
}

fn line(vcpu: u32, context: &VcpuGuestContext) -> String {
    let registers = &context.user_regs;
    let mode = match context.flags & VGCF_IN_KERNEL {
        0 => "user",
        _ => "kernel",
    };
    format!(
        "vCPU {vcpu} was in {mode} mode at rip {:#x} with rsp {:#x}, rax {:#x}, cr2 {:#x}, cr3 {:#x}",
        registers.rip, registers.rsp, registers.rax, context.ctrlreg[2], context.ctrlreg[3]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_where_it_was() {
        let mut context = VcpuGuestContext::ZERO;
        context.user_regs.rip = 0xffff_ffff_8308_34ae;
        context.user_regs.rax = 0u64.wrapping_sub(22);
        context.ctrlreg[3] = 0x7c80_3000;
        let told = line(1, &context);
        let words = "vCPU 1 was in user mode at rip 0xffffffff830834ae with rsp 0x0, rax 0xffffffffffffffea, cr2 0x0, \
                     cr3 0x7c803000";
        assert_eq!(told, words);
        context.flags = VGCF_IN_KERNEL;
        assert!(line(0, &context).contains("in kernel mode"));
    }
}
