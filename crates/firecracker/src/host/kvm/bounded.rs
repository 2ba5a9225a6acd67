//! A virtual processor on a thread of its own, which can be interrupted.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::time::ClockId;

/// How long the processor may run, in time of its thread. It needs a millisecond.
const RUN_BOUND: Duration = Duration::from_secs(1);

/// How long it may take in all: a busy host lets the thread wait, and nobody else has to.
const WAIT_BOUND: Duration = Duration::from_secs(30);

/// The shortest wait for a thread that has almost used up its time.
const LEAST_WAIT: Duration = Duration::from_millis(10);

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
    let result = match receive(&receiver, &ThreadClock::of(&thread)) {
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

/// What the thread sends; a timeout when it has used up its time, or is not let run at all.
fn receive<T>(receiver: &Receiver<T>, clock: &ThreadClock) -> Result<T, RecvTimeoutError> {
    let begin = Instant::now();
    loop {
        // It uses no more time than passes, so that it needs this long at least.
        let wait = RUN_BOUND.saturating_sub(clock.used()).max(LEAST_WAIT);
        match receiver.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout)
                if clock.used() < RUN_BOUND && begin.elapsed() < WAIT_BOUND => {}
            result => return result,
        }
    }
}

/// The clock of the processor time that a thread uses.
struct ThreadClock(Option<ClockId>);

impl ThreadClock {
    /// Of a thread that has not been joined.
    fn of<T>(thread: &JoinHandle<T>) -> Self {
        let mut clock = 0;
        // SAFETY: the handle is of a thread that was neither joined nor detached; `clock` is there to be written.
        let result = unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) };
        Self((result == 0).then(|| ClockId::from_raw(clock)))
    }

    /// What the thread has used so far. A clock that cannot be read is of a thread that has ended.
    fn used(&self) -> Duration {
        self.0
            .and_then(|clock| clock.now().ok())
            .map_or(Duration::ZERO, Duration::from)
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
