//! Network interfaces of a running guest, on tap devices of the test's own with link-local addresses, which
//! the machine routes nowhere else.

use std::io::Read;
use std::net::TcpListener;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::Vmm;

const MAC: &str = "06:00:a9:fe:4d:02";

/// Bytes that the guest sends to measure by.
const SIZE: usize = 1_000_000;

/// A bucket of 128 KiB that fills in half a second.
const BUCKET: usize = 128 << 10;

/// One of this run's eight addresses, of which each tap has a network of four: another run may be under way.
fn address(number: u32) -> String {
    let run = std::process::id() % 4096;
    format!("169.254.{}.{}", 16 + run / 32, run % 32 * 8 + number)
}

/// Two taps: one as it is, and one with a limiter.
pub struct Taps {
    plain: String,
    limited: String,
}

/// Taps that can be had; says why there are none.
pub fn taps() -> Option<Taps> {
    let name = |kind| format!("fctcg{kind}{}", std::process::id());
    let taps = Taps {
        plain: name('p'),
        limited: name('l'),
    };
    if let Err(error) = fc_tcg::tap::open(&taps.plain, true) {
        println!("SKIPPED: no network interface: {error}");
        return None;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        println!("SKIPPED: no network interface: ip is missing: install iproute2");
        return None;
    }
    Some(taps)
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .unwrap();
    assert!(status.success(), "ip {arguments}");
}

pub fn configure(vmm: &Vmm, taps: &Taps) {
    let Taps { plain, limited } = taps;
    let body = json!({ "iface_id": "net", "host_dev_name": plain, "guest_mac": MAC });
    vmm.ok("PUT", "/network-interfaces/net", &body);
    // The same again replaces it, and the tap device is free for it.
    vmm.ok("PUT", "/network-interfaces/net", &body);
    let other = json!({ "iface_id": "other", "host_dev_name": "other", "guest_mac": MAC });
    assert_eq!(
        vmm.fault("PUT", "/network-interfaces/other", &other),
        format!("Network config error: The MAC address is already in use: {MAC}")
    );
    let body = json!({
        "iface_id": "slow", "host_dev_name": limited, "tx_rate_limiter": { "ops": { "size": 0, "refill_time": 0 } },
    });
    vmm.ok("PUT", "/network-interfaces/slow", &body);
    // The devices are there while the VMM has them.
    ip(&format!("addr add {}/30 dev {plain}", address(1)));
    ip(&format!("link set {plain} up"));
    ip(&format!("addr add {}/30 dev {limited}", address(5)));
    ip(&format!("link set {limited} up"));
}

/// Sends [`SIZE`] bytes to the host; returns how long it took, from before the guest is asked to: the host accepts and
/// buffers what it sends before this process is told of it.
fn send(vmm: &mut Vmm, host: &str) -> Duration {
    let listener = TcpListener::bind((host, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (guest, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        // The guest's nc ends when we hang up.
        guest.take(SIZE as u64).read_to_end(&mut received).unwrap();
        received
    });
    let start = Instant::now();
    vmm.shell(&format!(
        "yes 0123456 | head -c {SIZE} | nc {host} {port}; echo"
    ));
    let received = server.join().unwrap();
    let took = start.elapsed();
    assert_eq!(received.len(), SIZE);
    assert!(received.chunks(8).all(|chunk| chunk == b"0123456\n"));
    took
}

pub fn carry_traffic(vmm: &mut Vmm, taps: &Taps) {
    assert_eq!(vmm.shell("cat /sys/class/net/eth0/address"), MAC);
    for (interface, number) in [("eth0", 2), ("eth1", 6)] {
        let address = address(number);
        vmm.shell(&format!(
            "ip addr add {address}/30 dev {interface} && ip link set {interface} up; echo"
        ));
    }
    let hosts = [1, 5].map(address);
    for host in &hosts {
        let ping = format!("ping -c 1 -W 60 {host} | grep -c '1 packets received'");
        assert_eq!(vmm.shell(&ping), "1", "{host}");
    }
    let plain = send(vmm, &hosts[0]);
    let free = send(vmm, &hosts[1]);

    let patch = |id: &str, bytes| {
        let limiter = json!({ "bandwidth": { "size": bytes, "refill_time": 500 } });
        json!({ "iface_id": id, "tx_rate_limiter": limiter })
    };
    vmm.ok("PATCH", "/network-interfaces/slow", &patch("slow", BUCKET));
    let limited = send(vmm, &hosts[1]);
    println!(
        "sending {SIZE} bytes took {plain:?}; through the relay {free:?}, limited to 256 KiB/s {limited:?}"
    );
    // The bucket's worth goes at once, the rest at its rate.
    let least = (SIZE - BUCKET) as f64 / (2 * BUCKET) as f64;
    assert!(limited.as_secs_f64() > 0.9 * least, "{limited:?}");
    let shown = vmm.request("GET", "/vm/config", "").1["network-interfaces"].take();
    assert_eq!(shown[0]["host_dev_name"], json!(taps.plain));
    assert_eq!(shown[0]["guest_mac"], MAC);
    assert_eq!(shown[1]["tx_rate_limiter"]["bandwidth"]["size"], BUCKET);
    vmm.ok("PATCH", "/network-interfaces/slow", &patch("slow", 0));

    let fault = vmm.fault("PATCH", "/network-interfaces/net", &patch("net", BUCKET));
    assert!(
        fault.contains("only if there was one before the start"),
        "{fault}"
    );
    let fault = vmm.fault("PATCH", "/network-interfaces/no", &patch("no", BUCKET));
    assert!(fault.contains("Device not found"), "{fault}");
}
