//! Pausing and resuming: the last cases on the running guest, for VMMs that lame it by that.

use std::time::{Duration, Instant};

use fc_conformance::vmm::Vmm;
use serde_json::json;

use crate::running::Guest;
use crate::{OnGuest, drives, vsock};

pub const CASES: &[(&str, OnGuest)] = &[
    ("pause::nothing_runs_meanwhile", nothing_runs),
    ("pause::clocks_go_on", clocks),
    ("pause::drives_can_be_patched", patch_drive),
    ("pause::vsock_works_afterwards", vsock_works),
];

/// Long enough to show in clocks that are read with some delay.
const PAUSE: Duration = Duration::from_secs(4);

fn pause(vmm: &Vmm) {
    vmm.accept("PATCH", "/vm", &json!({ "state": "Paused" }));
}

fn resume(vmm: &Vmm) {
    vmm.accept("PATCH", "/vm", &json!({ "state": "Resumed" }));
}

fn nothing_runs(guest: &mut Guest) {
    guest.shell("true");
    for _ in 0..2 {
        pause(&guest.vmm);
        assert_eq!(guest.vmm.state(), "Paused");
    }
    guest.vmm.type_line("echo AWAKE");
    assert!(guest.vmm.is_silent(Duration::from_millis(700)));
    for _ in 0..2 {
        resume(&guest.vmm);
        assert_eq!(guest.vmm.state(), "Running");
    }
    guest.vmm.wait_line("AWAKE");
}

/// What the guest's clocks showed at some time between two.
struct Reading {
    asked: Instant,
    answered: Instant,
    /// Seconds since the boot and since 1970, each with the unit it is shown in.
    clocks: [(&'static str, f64, f64); 2],
}

fn read_clocks(guest: &mut Guest) -> Reading {
    let asked = Instant::now();
    let text = guest.shell("cut -d ' ' -f 1 /proc/uptime; date +%s");
    let answered = Instant::now();
    let shown: Vec<f64> = text.split(' ').map(|time| time.parse().unwrap()).collect();
    Reading {
        asked,
        answered,
        clocks: [
            ("the time since the boot", shown[0], 0.01),
            ("the time of day", shown[1], 1.0),
        ],
    }
}

/// Neither the time since the boot nor the time of day lags behind the host's.
fn clocks(guest: &mut Guest) {
    let before = read_clocks(guest);
    pause(&guest.vmm);
    std::thread::sleep(PAUSE);
    resume(&guest.vmm);
    let after = read_clocks(guest);
    let least = (after.asked - before.answered).as_secs_f64();
    let most = (after.answered - before.asked).as_secs_f64();
    for ((clock, then, unit), (_, now, _)) in before.clocks.into_iter().zip(after.clocks) {
        let passed = now - then;
        // The host's clock may be slewed meanwhile.
        let slack = unit + 0.1;
        assert!(
            (least - slack..most + slack).contains(&passed),
            "{clock} went on by {passed} s while {least} to {most} s passed on the host"
        );
    }
}

fn patch_drive(guest: &mut Guest) {
    pause(&guest.vmm);
    drives::patch(guest, "ro", "stub");
    assert_eq!(guest.vmm.state(), "Paused");
    resume(&guest.vmm);
    drives::wait_for_sectors(guest, "vdb", 1);
    drives::attach_image(guest);
}

/// A connection from before stays, and there can be new ones.
fn vsock_works(guest: &mut Guest) {
    let mut kept = vsock::connect(guest, vsock::ECHO);
    vsock::echo(&mut kept, 10_000, 1);
    pause(&guest.vmm);
    resume(&guest.vmm);
    vsock::echo(&mut kept, 100_000, 2);
    vsock::echo(&mut vsock::connect(guest, vsock::ECHO), 100_000, 3);
}
