//! First program in the guest (`/init` of the initrd).
//!
//! Mounts `/proc`, `/sys` and `/dev`, loads the modules listed in `/modules/order`, waits for the
//! root device, mounts the root image, frees the initrd's memory and executes the image's init in
//! its place. It keeps no state and leaves nothing running.
//!
//! It can only fail by saying so on the console and resetting the machine: the host then sees the
//! VM end at once, with the reason as its last line.

mod cmdline;
mod modules;
mod root;
mod switch;
mod uevent;

use std::convert::Infallible;
use std::ffi::OsString;

use nix::sys::reboot::{RebootMode, reboot};
use nix::time::{ClockId, clock_gettime};

use cmdline::Cmdline;
use uevent::Uevents;

/// Environment variable through which the agent learns when the guest's first program started:
/// `CLOCK_BOOTTIME` in nanoseconds, decimal.
const START_TIME_ENV: &str = "FC_INIT_BOOTTIME_NS";

/// Why the image's init could not be started.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("Cannot prepare the initrd's own file systems")]
    Mounts(#[source] switch::MountError),
    #[error("Cannot listen for new devices")]
    Uevents(#[source] nix::Error),
    #[error(transparent)]
    Cmdline(#[from] cmdline::CmdlineError),
    #[error(transparent)]
    Modules(#[from] modules::ModuleError),
    #[error(transparent)]
    Root(#[from] root::RootError),
    #[error(transparent)]
    Switch(#[from] switch::SwitchError),
}

fn main() {
    let Err(error) = boot();
    eprintln!("firecracker-initrd: {}", fc_errors::chain(&error));
    if std::process::id() == 1 {
        // A reset ends Firecracker and QEMU alike; powering off does not end Firecracker.
        let Err(errno) = reboot(RebootMode::RB_AUTOBOOT);
        eprintln!("firecracker-initrd: Cannot reset the machine: {errno}");
    }
    // As PID 1 this makes the kernel panic, which ends the VM too.
    std::process::exit(1);
}

fn boot() -> Result<Infallible, InitError> {
    let started = boottime_ns();
    switch::mount_api_filesystems().map_err(InitError::Mounts)?;
    let cmdline = Cmdline::read()?;
    // Before the modules: the event of a device that a module brings must not be missed.
    let uevents = Uevents::open().map_err(InitError::Uevents)?;
    modules::load_all()?;
    root::mount(&cmdline, &uevents)?;
    drop(uevents);
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let environment = started.map(|ns| (START_TIME_ENV, ns.to_string()));
    Ok(switch::into_root(&cmdline.init, &arguments, environment)?)
}

/// Now, on the clock that counts from the kernel's start.
fn boottime_ns() -> Option<i64> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    Some(now.tv_sec() * 1_000_000_000 + now.tv_nsec())
}
