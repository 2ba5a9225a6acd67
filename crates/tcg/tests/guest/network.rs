//! A network interface of a running guest, on a tap device of the test's own with link-local addresses, which
//! the machine routes nowhere else.

use std::io::Read;
use std::net::TcpListener;
use std::process::Command;
use std::thread;

use serde_json::json;

use crate::support::Vmm;

const MAC: &str = "06:00:a9:fe:4d:02";

/// Name of a tap device that can be had; says why there is none.
pub fn tap() -> Option<String> {
    let name = format!("fctcg{}", std::process::id());
    if let Err(error) = fc_tcg::tap::open(&name) {
        println!("SKIPPED: no network interface: {error}");
        return None;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        println!("SKIPPED: no network interface: ip is missing: install iproute2");
        return None;
    }
    Some(name)
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .unwrap();
    assert!(status.success(), "ip {arguments}");
}

pub fn configure(vmm: &Vmm, tap: &str) {
    let body = json!({ "iface_id": "net", "host_dev_name": tap, "guest_mac": MAC });
    vmm.ok("PUT", "/network-interfaces/net", &body);
    // The same again replaces it, and the tap device is free for it.
    vmm.ok("PUT", "/network-interfaces/net", &body);
    let other = json!({ "iface_id": "other", "host_dev_name": "other", "guest_mac": MAC });
    assert_eq!(
        vmm.fault("PUT", "/network-interfaces/other", &other),
        format!("Network config error: The MAC address is already in use: {MAC}")
    );
    // The device is there while the VMM has it.
    ip(&format!("addr add 169.254.77.1/30 dev {tap}"));
    ip(&format!("link set {tap} up"));
}

pub fn carries_traffic(vmm: &mut Vmm, tap: &str) {
    assert_eq!(vmm.shell("cat /sys/class/net/eth0/address"), MAC);
    vmm.shell("ip addr add 169.254.77.2/30 dev eth0 && ip link set eth0 up; echo");
    assert_eq!(
        vmm.shell("ping -c 1 -W 10 169.254.77.1 | grep -c '1 packets received'"),
        "1"
    );
    let listener = TcpListener::bind("169.254.77.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (guest, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        // The guest's nc ends when we hang up.
        guest.take(1_000_000).read_to_end(&mut received).unwrap();
        received
    });
    vmm.shell(&format!(
        "yes 0123456 | head -c 1000000 | nc 169.254.77.1 {port}; echo"
    ));
    let received = server.join().unwrap();
    assert_eq!(received.len(), 1_000_000);
    assert!(received.chunks(8).all(|chunk| chunk == b"0123456\n"));
    let config = &vmm.request("GET", "/vm/config", "").1["network-interfaces"][0];
    assert_eq!(config["host_dev_name"], tap);
    assert_eq!(config["guest_mac"], MAC);
}
