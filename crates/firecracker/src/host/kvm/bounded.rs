//! A virtual processor on a thread of its own, which can be interrupted.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

/// How long the processor may run. It needs a millisecond; a busy host may take its time to let it.
const RUN_BOUND: Duration = Duration::from_secs(2);

/// How long an interrupted processor may take to come back, which takes no time at all either.
const INTERRUPT_BOUND: Duration = Duration::from_secs(10);

/// Ends KVM_RUN. It is blocked on the thread from its first moment and let in by KVM only while the guest runs, so
/// it is never delivered: no handler is needed, and none of the process's is called.
const INTERRUPT: Signal = Signal::SIGALRM;

/// Runs `body`, which runs a processor made interruptible with [`let_in_interrupts`], on its own thread.
///
/// `None` if it did not come back although it was interrupted; the thread is then left to itself.
///
/// # Errors
/// If there is no thread to be had, or its signals cannot be blocked.
pub(super) fn run<T: Send + 'static>(
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let (sender, receiver) = mpsc::channel();
    // Blocked here, for the thread to inherit: on a busy host it may be interrupted before its first instruction.
    let mut before = SigSet::empty();
    pthread_sigmask(
        SigmaskHow::SIG_BLOCK,
        Some(&SigSet::from(INTERRUPT)),
        Some(&mut before),
    )?;
    let thread = thread::Builder::new()
        .name("kvm-probe".to_owned())
        .spawn(move || {
            // The receiver may have given up.
            let _ = sender.send(body());
        });
    before.thread_set_mask()?;
    let thread = thread?;
    let result = match receiver.recv_timeout(RUN_BOUND) {
        Err(RecvTimeoutError::Timeout) => {
            pthread_kill(thread.as_pthread_t(), INTERRUPT)?;
            receiver.recv_timeout(INTERRUPT_BOUND)
        }
        result => result,
    };
    match result {
        Ok(value) => {
            // It has nothing left to do.
            let _ = thread.join();
            Ok(Some(value))
        }
        Err(_) => Ok(None),
    }
}

/// The kernel's `struct kvm_signal_mask` with the 8 bytes of a signal set.
#[repr(C)]
struct SignalMask {
    length: u32,
    set: [u8; 8],
}

/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`; the size is that of the header alone.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;

/// Makes [`INTERRUPT`], and only that, interrupt the processor.
///
/// # Errors
/// If KVM refuses.
pub(super) fn let_in_interrupts(vcpu: &VcpuFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let mut all_but_one = SigSet::all();
    all_but_one.remove(INTERRUPT);
    let mut set = 0_u64;
    for signal in &all_but_one {
        set |= 1 << (signal as u32 - 1);
    }
    let mask = SignalMask {
        length: 8,
        set: set.to_ne_bytes(),
    };
    // SAFETY: the kernel reads `length` and then that many bytes, which `mask` has.
    let result =
        unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK as _, &raw const mask) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
