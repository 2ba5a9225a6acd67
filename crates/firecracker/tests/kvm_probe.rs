//! The probe leaves nothing behind. In a process of its own, so that nothing else comes and goes.

use std::time::{Duration, Instant};

use fc_client::host::kvm::{Kvm, probe};

/// For what the kernel does at once, unless the host is very busy.
const BOUND: Duration = Duration::from_secs(30);

fn entries(dir: &str) -> usize {
    std::fs::read_dir(dir)
        .expect("a directory of /proc")
        .count()
}

fn left_behind() -> (usize, usize, bool) {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the mappings");
    (
        entries("/proc/self/fd"),
        entries("/proc/self/task"),
        maps.contains("kvm"),
    )
}

#[test]
fn nothing_is_left_behind() {
    let before = left_behind();
    let first = probe();
    if let Kvm::Absent | Kvm::Denied { .. } | Kvm::Unusable { .. } = first {
        println!("SKIPPED: no usable KVM here: {first}");
        return;
    }
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(probe(), first);
    }
    println!("{first}: 20 probes in {:?}", start.elapsed());
    // A thread that was joined is listed until the kernel has put it away.
    let deadline = Instant::now() + BOUND;
    while left_behind() != before && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(left_behind(), before);
}
