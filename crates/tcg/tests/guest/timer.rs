//! A guest whose processor the host does not run while the kernel measures its timer.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use fc_tcg::qemu::{QEMU_VARIABLE, find};
use fc_test_host::write_program;
use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// Four times as long as the kernel measures: a gap in the middle makes the timer so much too slow.
const GAP: Duration = Duration::from_millis(400);

/// The initial count of a timer that the kernel measures: it lets it count down from there.
const MEASURED: u32 = u32::MAX / 16;

/// Tries to have the gap while the kernel measures, which is a matter of 100 ms.
const TRIES: u32 = 60;

/// A monitor of the QEMU under test, which `firecracker-tcg` does not know of.
struct Monitor(UnixStream);

impl Monitor {
    /// Makes a program in `directory` that is QEMU with a monitor.
    fn prepare(directory: &Path) -> std::path::PathBuf {
        let script = directory.join("qemu");
        let socket = directory.join("monitor");
        let text = format!(
            "#!/bin/sh\nexec {} \"$@\" -chardev socket,id=test,server=on,wait=off,path={} -mon chardev=test\n",
            find().unwrap().display(),
            socket.display()
        );
        write_program(&script, &text);
        script
    }

    /// Connects to the monitor of the QEMU that has been started.
    fn connect(directory: &Path) -> Self {
        let mut monitor = Self(UnixStream::connect(directory.join("monitor")).unwrap());
        monitor.prompt();
        monitor
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.0, "{command}").unwrap();
        self.prompt()
    }

    /// What the timer counts down from; 0 until the guest uses it.
    fn initial_count(&mut self) -> u32 {
        let text = self.ask("info lapic");
        let (_, rest) = text.split_once("initial_count = ").expect("a timer");
        rest.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn prompt(&mut self) -> String {
        let mut text = Vec::new();
        let mut byte = [0];
        while !text.ends_with(b"(qemu) ") {
            self.0.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[test]
fn a_guest_whose_timer_the_host_spoilt_is_started_anew() {
    let guest_files = tempfile::tempdir().unwrap();
    let Some(guest) = Guest::make(guest_files.path()) else {
        return;
    };
    for _ in 0..TRIES {
        let directory = tempfile::tempdir().unwrap();
        if boot_with_a_gap(directory.path(), &guest) {
            return;
        }
    }
    panic!("no guest was started anew");
}

/// Boots a guest, whose processor does not run for a while when the kernel measures its timer. Returns whether it was
/// started anew: on a busy host this may look too late, or have the gap too late. Its timer works if there was one.
fn boot_with_a_gap(directory: &Path, guest: &Guest) -> bool {
    let qemu = Monitor::prepare(directory);
    let mut vmm = Vmm::start_with(directory, |command| {
        command.env(QEMU_VARIABLE, qemu);
    });
    vmm.ok("PUT", "/boot-source", &boot_source(guest, true));
    vmm.action("InstanceStart");
    let qemu = Pid::from_raw(vmm.qemu().unwrap().cast_signed()).unwrap();

    let mut monitor = Monitor::connect(directory);
    let deadline = Instant::now() + BOUND;
    let mut count = 0;
    while count == 0 {
        assert!(Instant::now() < deadline, "the timer is not used");
        count = monitor.initial_count();
    }
    if count != MEASURED {
        return false;
    }
    kill_process(qemu, Signal::STOP).unwrap();
    std::thread::sleep(GAP);
    kill_process(qemu, Signal::CONT).unwrap();

    vmm.wait_line("READY");
    // Without a timer this would never end.
    assert_eq!(vmm.shell("sleep 1; echo slept"), "slept");
    // The guest's own reset ends the VM, whatever happened before.
    vmm.tell("reboot -f");
    assert_eq!(vmm.wait().code(), Some(0));
    vmm.log().contains("the guest is started anew")
}
