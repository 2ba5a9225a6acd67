//! The rate of the host's time stamp counter, which is also the guest's under TCG.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Shortest stretch over which the counter is measured; reading both clocks takes well under 100 ns, so
/// the error stays below 10 parts per million.
const MIN_SPAN: Duration = Duration::from_millis(20);

/// Readings of which the best is taken.
const TRIES: usize = 16;

/// One simultaneous reading of the counter and the clock.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    ticks: u64,
    clock_ns: u64,
}

impl Mark {
    /// Reads both now. Taken when the process starts, so that measuring costs no wait later.
    #[must_use]
    pub fn now() -> Self {
        // The process may be interrupted between the readings; the quickest of a few was not.
        let mut best = Self::read();
        for _ in 1..TRIES {
            let next = Self::read();
            if next.0 < best.0 {
                best = next;
            }
        }
        best.1
    }

    /// Ticks that the reading took, and the reading.
    fn read() -> (u64, Self) {
        let before = read_counter();
        let time = clock_gettime(ClockId::MonotonicRaw);
        let took = read_counter().wrapping_sub(before);
        let clock_ns = u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
            + u64::try_from(time.tv_nsec).unwrap_or(0);
        (
            took,
            Self {
                ticks: before.wrapping_add(took / 2),
                clock_ns,
            },
        )
    }

    /// The counter's rate in kHz: as the processor or hypervisor states it, else measured since `self`.
    pub async fn host_khz(self) -> u64 {
        if let Some(khz) = stated_khz() {
            return khz;
        }
        let waited = Duration::from_nanos(Self::now().clock_ns.saturating_sub(self.clock_ns));
        if let Some(rest) = MIN_SPAN.checked_sub(waited) {
            tokio::time::sleep(rest).await;
        }
        let end = Self::now();
        let ticks = u128::from(end.ticks.wrapping_sub(self.ticks));
        let nanos = u128::from(end.clock_ns.saturating_sub(self.clock_ns)).max(1);
        u64::try_from(ticks * 1_000_000 / nanos).unwrap_or(0)
    }
}

#[cfg(target_arch = "x86_64")]
fn read_counter() -> u64 {
    // SAFETY: every x86_64 processor has RDTSC, and Linux lets processes use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Leaf 0x15 (crystal clock and ratio), or a hypervisor's leaf 0x40000010 (kHz in EAX).
#[cfg(target_arch = "x86_64")]
fn stated_khz() -> Option<u64> {
    use std::arch::x86_64::__cpuid;
    const HYPERVISOR: u32 = 0x4000_0000;
    let nonzero = |value: u32| (value != 0).then_some(u64::from(value));

    if __cpuid(0).eax >= 0x15 {
        let leaf = __cpuid(0x15);
        if let (Some(denominator), Some(numerator), Some(crystal_hz)) =
            (nonzero(leaf.eax), nonzero(leaf.ebx), nonzero(leaf.ecx))
        {
            return Some(crystal_hz * numerator / denominator / 1000);
        }
    }
    let hypervisor_present = __cpuid(1).ecx & (1 << 31) != 0;
    let last = __cpuid(HYPERVISOR).eax;
    if hypervisor_present && (HYPERVISOR + 0x10..HYPERVISOR + 0x100).contains(&last) {
        return nonzero(__cpuid(HYPERVISOR + 0x10).eax);
    }
    None
}

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "firecracker-tcg emulates an x86_64 guest on an x86_64 host: the guest's clock is the host's TSC"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_believable_rate() {
        let khz = Mark::now().host_khz().await;
        assert!((100_000..20_000_000).contains(&khz), "{khz}");
    }
}
