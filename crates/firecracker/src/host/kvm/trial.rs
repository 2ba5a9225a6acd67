//! A guest of a few instructions, in 32-bit protected mode without paging: what every x86 processor with
//! virtualization runs by itself, the oldest included.

use std::io;

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use super::{Kvm, bounded, not_opened};

/// A guest and what its accumulator holds when it halts.
pub(super) struct Guest {
    code: &'static [u8],
    eax: u64,
}

/// `popcnt eax, ecx; paddd xmm0, xmm1; hlt`, with [`ECX`].
pub(super) const ORDINARY: Guest = Guest {
    code: &[0xf3, 0x0f, 0xb8, 0xc1, 0x66, 0x0f, 0xfe, 0xc1, 0xf4],
    eax: ECX.count_ones() as u64,
};

/// `jmp .`
#[cfg(test)]
pub(super) const ENDLESS: Guest = Guest {
    code: &[0xeb, 0xfe],
    eax: 0,
};

/// What the guest's count register holds at first.
const ECX: u64 = 0xf0f0;

/// Where the guest's only page is, in its physical memory.
const CODE_ADDRESS: u64 = 0x1000;

/// Where KVM on Intel keeps what it needs for guests without paging: three pages below the firmware's place.
const TSS_ADDRESS: usize = 0xfffb_d000;

const CR0_PROTECTED: u64 = 1;
const CR4_SSE: u64 = 1 << 9;

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// How the guest ended.
enum End {
    Halted { eax: u64 },
    NotEmulated,
    Interrupted,
    Unexpected(String),
}

pub(super) fn run(guest: &'static Guest) -> Kvm {
    let kvm = match kvm_ioctls::Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return not_opened(error.into()),
    };
    let end = match bounded::run(move || run_guest(&kvm, guest)) {
        Ok(Some(Ok(end))) => end,
        Ok(Some(Err(error))) | Err(error) => {
            return Kvm::Unusable {
                why: error.to_string(),
            };
        }
        Ok(None) => {
            return Kvm::Unusable {
                why: "a virtual processor could not be stopped".to_owned(),
            };
        }
    };
    let why = match end {
        End::Halted { eax } if eax == guest.eax => return Kvm::Hardware,
        End::Halted { eax } => format!("it computes wrongly: {eax:#x} instead of {:#x}", guest.eax),
        End::NotEmulated => "it interprets guest code instead of running it".to_owned(),
        End::Interrupted => "a few instructions did not end".to_owned(),
        End::Unexpected(exit) => format!("a few instructions ended with {exit}"),
    };
    Kvm::Paravirtual { why }
}

fn run_guest(kvm: &kvm_ioctls::Kvm, guest: &Guest) -> io::Result<End> {
    // Declared before the VM, so that the VM goes first.
    let mut page = Box::new(Page([0; 4096]));
    page.0[..guest.code.len()].copy_from_slice(guest.code);
    let vm = kvm.create_vm()?;
    vm.set_tss_address(TSS_ADDRESS)?;
    give_memory(&vm, &mut page)?;
    let mut vcpu = vm.create_vcpu(0)?;
    set_registers(&vcpu)?;
    bounded::let_in_interrupts(&vcpu)?;

    let end = match vcpu.run() {
        Ok(VcpuExit::Hlt) => None,
        Ok(VcpuExit::InternalError) => Some(End::Unexpected("an internal error".to_owned())),
        Ok(exit) => Some(End::Unexpected(format!("{exit:?}"))),
        Err(error) if error.errno() == libc::EINTR => Some(End::Interrupted),
        Err(error) => return Err(error.into()),
    };
    let registers = vcpu.get_regs()?;
    Ok(match end {
        None => End::Halted { eax: registers.rax },
        Some(End::Unexpected(_)) if emulation_failed(&mut vcpu) => End::NotEmulated,
        Some(end) => end,
    })
}

fn give_memory(vm: &VmFd, page: &mut Page) -> io::Result<()> {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: CODE_ADDRESS,
        memory_size: page.0.len() as u64,
        userspace_addr: page.0.as_mut_ptr() as u64,
    };
    // SAFETY: the page is whole, aligned, and outlives the VM in the only caller, which does not touch it
    // while the guest runs.
    unsafe { vm.set_user_memory_region(region) }?;
    Ok(())
}

fn set_registers(vcpu: &VcpuFd) -> io::Result<()> {
    let data = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: 16,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let mut special = vcpu.get_sregs()?;
    special.cs = kvm_segment {
        selector: 8,
        type_: 11,
        ..data
    };
    for segment in [
        &mut special.ds,
        &mut special.es,
        &mut special.ss,
        &mut special.fs,
        &mut special.gs,
    ] {
        *segment = data;
    }
    special.cr0 |= CR0_PROTECTED;
    special.cr4 |= CR4_SSE;
    vcpu.set_sregs(&special)?;

    let mut registers = vcpu.get_regs()?;
    registers.rip = CODE_ADDRESS;
    registers.rcx = ECX;
    registers.rax = 0;
    // Bit 1 is always set.
    registers.rflags = 2;
    vcpu.set_regs(&registers)?;
    Ok(())
}

/// Whether the processor's last exit says that KVM's interpreter gave up.
fn emulation_failed(vcpu: &mut VcpuFd) -> bool {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
        return false;
    }
    // SAFETY: for this exit reason the kernel has filled in this member; any bytes are valid in it.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    internal.suberror == KVM_INTERNAL_ERROR_EMULATION
}
