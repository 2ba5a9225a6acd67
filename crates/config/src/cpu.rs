//! What the host's processor is, as far as defaults depend on it.

/// Whether the host is an Intel x86_64: the only one for which Firecracker's built-in template `T2` is made.
#[must_use]
pub fn is_intel() -> bool {
    cfg!(target_arch = "x86_64")
        && std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpuinfo| vendor_is_intel(&cpuinfo))
}

fn vendor_is_intel(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .any(|(key, value)| key.trim() == "vendor_id" && value.trim() == "GenuineIntel")
}

#[cfg(test)]
mod tests {
    use super::vendor_is_intel;

    #[test]
    fn vendor_is_read() {
        assert!(vendor_is_intel(
            "processor\t: 0\nvendor_id\t: GenuineIntel\n"
        ));
        assert!(!vendor_is_intel(
            "processor\t: 0\nvendor_id\t: AuthenticAMD\n"
        ));
        assert!(!vendor_is_intel(""));
    }
}
