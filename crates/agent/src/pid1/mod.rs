//! What the first process of a machine has to do before anything else can run.

mod cgroups;
mod devices;
mod mounts;
mod network;

use std::io;
use std::path::Path;

use nix::sys::reboot::set_cad_enabled;

use crate::machine::Role;
use crate::say;

/// Where programs are, when the kernel does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Name of the machine until the host gives it one.
const HOSTNAME: &str = "microvm";

/// Why the machine could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file system.
    #[error("Cannot mount {fstype} at {path}")]
    Mount {
        /// Its type.
        fstype: &'static str,
        /// Where.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The cgroups.
    #[error("Cannot set up cgroups: {action} {path}")]
    Cgroup {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The loopback interface.
    #[error("Cannot bring the loopback interface up")]
    Loopback(#[source] io::Error),
}

/// Sets the machine up as PID 1, with `cgroup_parent` for containers. Must run before any thread
/// is started.
///
/// # Errors
/// The first step that failed; containers cannot run without it.
pub fn set_up(cgroup_parent: &str) -> Result<(), SetupError> {
    if std::env::var_os("PATH").is_none() {
        // SAFETY: nothing else runs yet that could read the environment.
        unsafe { std::env::set_var("PATH", PATH) };
    }
    // Ctrl-Alt-Del (Firecracker's SendCtrlAltDel) then sends us SIGINT instead of resetting the
    // machine on the spot.
    if let Err(errno) = set_cad_enabled(false) {
        say!("Cannot take over Ctrl-Alt-Del: {errno}");
    }
    mounts::mount_all()?;
    cgroups::delegate(Path::new(mounts::CGROUPS), cgroup_parent)?;
    network::loopback_up().map_err(SetupError::Loopback)?;
    devices::load_drivers();
    if let Err(errno) = nix::unistd::sethostname(HOSTNAME) {
        say!("Cannot set the hostname: {errno}");
    }
    Ok(())
}

/// Makes a panic the machine's end: without PID 1 it would only hang.
pub fn end_machine_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        say!("Panic; resetting the machine");
        Role::Init.end(101);
    }));
}
