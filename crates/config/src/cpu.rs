//! What the host's processor is, as far as defaults depend on it.

/// Whether the host is an Intel x86_64: the only one for which Firecracker's built-in template `T2` is made.
#[must_use]
#[cfg(target_arch = "x86_64")]
pub fn is_intel() -> bool {
    // The processor itself is asked: /proc/cpuinfo takes milliseconds.
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx] == [*b"Genu", *b"ineI", *b"ntel"].map(u32::from_le_bytes)
}

/// Whether the host is an Intel x86_64: the only one for which Firecracker's built-in template `T2` is made.
#[must_use]
#[cfg(not(target_arch = "x86_64"))]
pub fn is_intel() -> bool {
    false
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_agrees() {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").expect("cpuinfo");
        assert_eq!(super::is_intel(), cpuinfo.contains("GenuineIntel"));
    }
}
