//! The balloon of a running guest.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{BOUND, Vmm};

fn statistics(vmm: &Vmm) -> Value {
    let (status, body) = vmm.request("GET", "/balloon/statistics", "");
    assert_eq!(status, 200, "{body}");
    body
}

fn wait_for(vmm: &Vmm, what: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + BOUND;
    loop {
        let statistics = statistics(vmm);
        if what(&statistics) {
            return statistics;
        }
        assert!(Instant::now() < deadline, "{statistics}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// `deflate_on_oom`: a program that needs what the balloon holds gets it, and is not killed.
fn gives_it_back_when_short(vmm: &mut Vmm) {
    let available = vmm.shell("grep MemAvailable /proc/meminfo | tr -dc 0-9");
    let available: u64 = available.parse().unwrap();
    let target = available / 1024 - 16;
    vmm.ok("PATCH", "/balloon", &json!({ "amount_mib": target }));
    wait_for(vmm, |it| it["actual_mib"] == target);
    let done = vmm.shell("dd if=/dev/zero of=/dev/null bs=32M count=1 2>/dev/null && echo done");
    assert_eq!(done, "done");
    wait_for(vmm, |it| it["actual_mib"].as_u64() < Some(target));
    vmm.ok("PATCH", "/balloon", &json!({ "amount_mib": 0 }));
    wait_for(vmm, |it| it["actual_mib"] == 0);
}

pub fn gives_memory(vmm: &mut Vmm) {
    // The size that was configured before the start.
    let told = wait_for(vmm, |it| {
        it["actual_mib"] == 8 && it["total_memory"].is_u64()
    });
    assert_eq!(told["target_pages"], 8 * 256);
    assert!(told["free_memory"].as_u64().unwrap() > 1 << 20, "{told}");

    let free = |vmm: &mut Vmm| -> i64 {
        let kib = vmm.shell("grep MemFree /proc/meminfo | tr -dc 0-9");
        kib.parse().unwrap()
    };
    let before = free(vmm);
    vmm.ok("PATCH", "/balloon", &json!({ "amount_mib": 32 }));
    wait_for(vmm, |it| it["actual_mib"] == 32);
    let taken = before - free(vmm);
    assert!(taken > 16 * 1024, "{taken} KiB");
    assert_eq!(vmm.request("GET", "/balloon", "").1["amount_mib"], 32);
    vmm.ok("PATCH", "/balloon", &json!({ "amount_mib": 0 }));
    wait_for(vmm, |it| it["actual_mib"] == 0);

    gives_it_back_when_short(vmm);
    let interval = |seconds| json!({ "stats_polling_interval_s": seconds });
    vmm.ok("PATCH", "/balloon/statistics", &interval(2));
    assert_eq!(
        vmm.fault("PATCH", "/balloon/statistics", &interval(0)),
        "Balloon update error: Balloon: Statistics cannot be enabled/disabled after activation."
    );
    assert_eq!(
        vmm.fault("PATCH", "/balloon", &json!({ "amount_mib": 129 })),
        "Balloon update error: Balloon: Requested memory should be less than 129MiB"
    );
}
