//! What a VMM may not offer: the balloon, network interfaces, limits on drives.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fc_conformance::bound::bound;
use fc_conformance::vmm::Vmm;
use serde_json::{Value, json};

use crate::running::{Guest, metrics_until_now, sum};
use crate::{OnBinary, OnGuest, drives};

/// Cases without a guest, with the device they need.
pub const BEFORE_START: &[(&str, Kind, OnBinary)] = &[
    (
        "devices::balloon_before_start",
        Kind::Balloon,
        balloon_before_start,
    ),
    (
        "devices::network_before_start",
        Kind::Network,
        network_before_start,
    ),
];

/// Cases on the running guest, with the device they need.
pub const RUNNING: &[(&str, Kind, OnGuest)] = &[
    ("devices::balloon_running", Kind::Balloon, balloon_running),
    ("devices::network_running", Kind::Network, network_running),
    (
        "devices::drive_limit_holds_and_can_be_lifted",
        Kind::DriveLimit,
        drive_limit,
    ),
];

/// What not every VMM offers.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Balloon,
    Network,
    DriveLimit,
}

/// Which of them a VMM offers here, or why not.
#[derive(Clone, Debug)]
pub struct Offers {
    balloon: Result<(), String>,
    network: Result<(), String>,
    drive_limit: Result<(), String>,
}

impl Offers {
    /// Nothing, for this reason.
    pub fn unknown(why: &str) -> Self {
        let nothing = || Err(why.to_owned());
        Self {
            balloon: nothing(),
            network: nothing(),
            drive_limit: nothing(),
        }
    }

    /// Asks a VMM that is started for it.
    pub fn ask(binary: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vmm = Vmm::start(binary, directory.path(), &[]);
        let ask = |path: &str, body: Value| {
            let fault = vmm.request("PUT", path, &body).fault().to_owned();
            match fault.strip_prefix("The requested operation is not supported: ") {
                Some(why) => Err(why.to_owned()),
                None if fault.contains("is not offered") => Err(fault),
                // Whatever else may be wrong with it is for the cases to find out.
                None => Ok(()),
            }
        };
        Self {
            balloon: ask("/balloon", balloon(0)),
            network: Tap::new("ask").and_then(|tap| {
                let body = interface("eth0", &tap.name, "06:00:00:00:00:01");
                ask("/network-interfaces/eth0", body)
            }),
            drive_limit: ask(
                "/drives/a",
                json!({
                    "drive_id": "a", "path_on_host": "/dev/null", "is_root_device": false, "is_read_only": true,
                    "rate_limiter": { "bandwidth": { "size": 1_000_000, "refill_time": 1000 } },
                }),
            ),
        }
    }

    /// Whether there is one of this kind.
    pub fn of(&self, kind: Kind) -> Result<(), String> {
        match kind {
            Kind::Balloon => self.balloon.clone(),
            Kind::Network => self.network.clone(),
            Kind::DriveLimit => self.drive_limit.clone(),
        }
    }
}

/// A network interface of the host for the VMM's end; goes when dropped.
pub struct Tap {
    /// Its name.
    pub name: String,
}

impl Tap {
    /// Makes one, or says why this machine has none. Its name has room for three letters of `purpose`
    /// beside our process id: another run may go on.
    pub fn new(purpose: &str) -> Result<Self, String> {
        let name = format!("fcc-{purpose}-{}", std::process::id());
        ip(&["tuntap", "add", &name, "mode", "tap"])?;
        Ok(Self { name })
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Nothing can be done about one that stays.
        drop(ip(&["link", "del", &self.name]));
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let mut command = Command::new("ip");
    let output = command.args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("no ip program: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {}: {}", args.join(" "), said.trim()))
}

fn balloon(amount_mib: u32) -> Value {
    json!({ "amount_mib": amount_mib, "deflate_on_oom": true, "stats_polling_interval_s": 1 })
}

/// A network interface's configuration.
pub fn interface(id: &str, tap: &str, mac: &str) -> Value {
    json!({ "iface_id": id, "host_dev_name": tap, "guest_mac": mac })
}

/// MAC address of the shared guest's interface.
pub const MAC: &str = "06:00:ac:10:00:02";

/// Gives the shared guest what the VMM offers.
pub fn configure(vmm: &Vmm, offers: &Offers) -> Option<Tap> {
    if offers.balloon.is_ok() {
        vmm.accept("PUT", "/balloon", &balloon(0));
    }
    offers.network.as_ref().ok()?;
    let tap = Tap::new("run").unwrap_or_else(|why| panic!("{why}"));
    let body = interface("eth0", &tap.name, MAC);
    vmm.accept("PUT", "/network-interfaces/eth0", &body);
    let metadata = json!({ "version": "V2", "network_interfaces": ["eth0"] });
    vmm.accept("PUT", "/mmds/config", &metadata);
    Some(tap)
}

fn balloon_before_start(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    assert_eq!(
        vmm.refuse("GET", "/balloon", &Value::Null),
        "Balloon config error: No balloon device found."
    );
    assert_eq!(
        vmm.refuse("PUT", "/balloon", &balloon(129)),
        "Balloon config error: Amount of pages requested is too large."
    );
    let fault = vmm.refuse("PUT", "/balloon", &json!({ "amount_mib": 1 }));
    assert!(fault.contains("missing field `deflate_on_oom`"), "{fault}");
    vmm.accept("PUT", "/balloon", &balloon(64));
    let config = vmm.get("/balloon");
    assert_eq!(
        (&config["amount_mib"], &config["stats_polling_interval_s"]),
        (&json!(64), &json!(1))
    );
    assert_eq!(vmm.get("/vm/config")["balloon"], config);
    assert_eq!(
        vmm.refuse("PATCH", "/machine-config", &json!({ "mem_size_mib": 32 })),
        "Machine config error: The memory size (MiB) is smaller than the previously set balloon device target size."
    );
    let too_early = "The requested operation is not supported before starting the microVM.";
    for (method, path, body) in [
        ("GET", "/balloon/statistics", Value::Null),
        ("PATCH", "/balloon", json!({ "amount_mib": 1 })),
        (
            "PATCH",
            "/balloon/statistics",
            json!({ "stats_polling_interval_s": 2 }),
        ),
    ] {
        assert_eq!(
            vmm.refuse(method, path, &body),
            too_early,
            "{method} {path}"
        );
    }
}

fn network_before_start(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let tap = Tap::new("cfg").unwrap_or_else(|why| panic!("{why}"));
    let first = interface("eth0", &tap.name, MAC);
    vmm.accept("PUT", "/network-interfaces/eth0", &first);
    let interfaces = vmm.get("/vm/config")["network-interfaces"].clone();
    for field in ["iface_id", "host_dev_name", "guest_mac"] {
        assert_eq!(interfaces[0][field], first[field], "{interfaces}");
    }
    // The same id again replaces it.
    vmm.accept("PUT", "/network-interfaces/eth0", &first);
    assert_eq!(
        vmm.refuse(
            "PUT",
            "/network-interfaces/eth1",
            &interface("eth1", "fcconf-no", MAC)
        ),
        format!("Network config error: The MAC address is already in use: {MAC}")
    );
    assert_eq!(
        vmm.refuse("PUT", "/network-interfaces/b", &first),
        "The id from the path [b] does not match the id from the body [eth0]!"
    );
    for mac in ["06:00:00:00:00", "06:00:00:00:00:0g", ""] {
        let body = interface("eth2", "fcconf-no", mac);
        let fault = vmm.refuse("PUT", "/network-interfaces/eth2", &body);
        assert!(
            fault.starts_with("An error occurred when deserializing"),
            "{fault}"
        );
    }
    let body = interface("eth3", "a-name-of-more-than-15", "06:00:00:00:00:03");
    let fault = vmm.refuse("PUT", "/network-interfaces/eth3", &body);
    assert!(fault.starts_with("Network config error: "), "{fault}");
    let update = json!({ "iface_id": "eth0" });
    assert_eq!(
        vmm.refuse("PATCH", "/network-interfaces/eth0", &update),
        "The requested operation is not supported before starting the microVM."
    );
}

/// Loads a driver from the root image, after those it needs; without such an image the kernel has them built in.
pub fn load(guest: &mut Guest, modules: &[&str]) {
    if !guest.has_modules {
        return;
    }
    guest.shell("mountpoint -q /mnt || mount -t erofs -o ro /dev/vda /mnt");
    for module in modules {
        let done = guest.shell(&format!(
            "grep -q '^{module} ' /proc/modules || insmod $(find /mnt/lib/modules -name {module}.ko) 2>&1; echo done"
        ));
        assert_eq!(done, "done", "{module}");
    }
}

fn balloon_running(guest: &mut Guest) {
    load(guest, &["virtio_balloon"]);
    guest
        .vmm
        .accept("PATCH", "/balloon", &json!({ "amount_mib": 32 }));
    assert_eq!(guest.vmm.get("/balloon")["amount_mib"], 32);
    // The API has nothing to wait on: the statistics are asked for until they are those of the new size.
    let deadline = Instant::now() + bound(120);
    loop {
        let statistics = guest.vmm.get("/balloon/statistics");
        assert_eq!(statistics["target_mib"], 32, "{statistics}");
        assert_eq!(statistics["target_pages"], 32 * 256, "{statistics}");
        if statistics["actual_mib"] == 32 && statistics["free_memory"].is_u64() {
            assert_eq!(statistics["actual_pages"], 32 * 256, "{statistics}");
            assert!(statistics["total_memory"].as_u64() > statistics["free_memory"].as_u64());
            break;
        }
        assert!(Instant::now() < deadline, "{statistics}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let metrics = metrics_until_now(guest);
    assert!(sum(&metrics, "balloon", "inflate_count") >= 1);
    let interval = json!({ "stats_polling_interval_s": 2 });
    guest.vmm.accept("PATCH", "/balloon/statistics", &interval);
    assert_eq!(guest.vmm.get("/balloon")["stats_polling_interval_s"], 2);
    // Statistics that were on from the start cannot be turned off, nor can all memory be taken.
    for (path, body) in [
        (
            "/balloon/statistics",
            json!({ "stats_polling_interval_s": 0 }),
        ),
        ("/balloon", json!({ "amount_mib": 1000 })),
    ] {
        let fault = guest.vmm.refuse("PATCH", path, &body);
        assert!(fault.starts_with("Balloon update error: "), "{fault}");
    }
    guest
        .vmm
        .accept("PATCH", "/balloon", &json!({ "amount_mib": 0 }));
}

fn network_running(guest: &mut Guest) {
    load(guest, &["failover", "net_failover", "virtio_net"]);
    assert_eq!(guest.shell("cat /sys/class/net/eth0/address"), MAC);
    // Limits on an interface that is not there.
    let unknown = json!({ "iface_id": "eth9" });
    let fault = guest
        .vmm
        .refuse("PATCH", "/network-interfaces/eth9", &unknown);
    assert!(fault.starts_with("Network config error: "), "{fault}");
}

/// A limit three times as slow as the guest is by itself, which on some machines is slow enough.
fn drive_limit(guest: &mut Guest) {
    const SIZE: u32 = 2 << 20;
    let patch = |guest: &Guest, limit: Value| {
        let body = json!({ "drive_id": "ro", "path_on_host": "image", "rate_limiter": { "bandwidth": limit } });
        guest.vmm.accept("PATCH", "/drives/ro", &body);
    };
    let read = |guest: &mut Guest| {
        drives::wait_for_sectors(guest, "vdb", 4096);
        guest.shell("echo 3 > /proc/sys/vm/drop_caches");
        let start = Instant::now();
        assert_eq!(guest.shell("cat /dev/vdb | wc -c"), SIZE.to_string());
        start.elapsed()
    };
    drives::attach_image(guest);
    let before = read(guest);
    let least = 3 * before + Duration::from_secs(2);
    // A second's worth comes at once.
    let size = u64::from(SIZE) * 1000 / (u64::try_from(least.as_millis()).unwrap() + 1000);
    patch(guest, json!({ "size": size, "refill_time": 1000 }));
    let limited = read(guest);
    assert!(
        limited > least.mul_f64(0.9),
        "{limited:?}, not limited {before:?}"
    );
    // A limit of nothing is none. What else the machine does may slow any of the reads; a limit slows them all.
    patch(guest, json!({ "size": 0, "refill_time": 0 }));
    let fast = limited.mul_f64(0.7);
    let mut lifted = read(guest);
    for _ in 0..10 {
        if lifted < fast {
            break;
        }
        lifted = lifted.min(read(guest));
    }
    assert!(lifted < fast, "{lifted:?}, limited {limited:?}");
}
