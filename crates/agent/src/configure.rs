//! Gives the VM its identity: hostname, clock, randomness.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime};

use fc_proto::guest::ConfigureRequest;
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use ttrpc::Code;

use crate::rpc::status;

/// Longest random seed that is taken.
const MAX_SEED: usize = 512;
/// A clock that is off by less is left alone: setting it could make it jump back.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(10);

/// Version of this agent, as it tells the host.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why the VM could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// More than the kernel needs.
    #[error("Random seed has {0} bytes, at most {MAX_SEED} are accepted")]
    SeedTooLong(usize),
    /// The hostname.
    #[error("Cannot set hostname {name:?}")]
    Hostname {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The clock.
    #[error("Cannot set the clock")]
    Clock(#[source] Errno),
    /// The random pool.
    #[error("Cannot seed the random pool")]
    Seed(#[source] io::Error),
}

/// Sets what the request names. The seed is looked at first, so that a wrong request sets nothing.
/// Repeating it sets the same again.
///
/// # Errors
/// See [`ConfigureError`].
pub fn apply(request: &ConfigureRequest) -> Result<(), ConfigureError> {
    if request.random_seed.len() > MAX_SEED {
        return Err(ConfigureError::SeedTooLong(request.random_seed.len()));
    }
    if !request.hostname.is_empty() {
        nix::unistd::sethostname(&request.hostname).map_err(|source| ConfigureError::Hostname {
            name: request.hostname.clone(),
            source,
        })?;
    }
    if let Ok(unix_ns) = u64::try_from(request.unix_time_ns)
        && unix_ns > 0
    {
        set_clock(Duration::from_nanos(unix_ns)).map_err(ConfigureError::Clock)?;
    }
    if !request.random_seed.is_empty() {
        seed(&request.random_seed).map_err(ConfigureError::Seed)?;
    }
    Ok(())
}

fn set_clock(unix: Duration) -> nix::Result<()> {
    let wanted = SystemTime::UNIX_EPOCH + unix;
    let now = SystemTime::now();
    let off = now
        .duration_since(wanted)
        .or_else(|_| wanted.duration_since(now))
        .unwrap_or_default();
    if off < CLOCK_TOLERANCE {
        return Ok(());
    }
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(unix))
}

/// `struct rand_pool_info` of linux/random.h with room for the longest seed.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    data: [u8; MAX_SEED],
}

nix::ioctl_write_ptr_bad!(
    /// Mixes bytes into the random pool and credits them (`RNDADDENTROPY`, random(4)).
    add_entropy,
    nix::request_code_write!(b'R', 0x03, 2 * size_of::<libc::c_int>()),
    RandPoolInfo
);

/// Mixes in `seed`, at most [`MAX_SEED`] bytes, and credits it as fully random: it comes from the
/// host, which the guest has to trust anyway.
fn seed(seed: &[u8]) -> io::Result<()> {
    let bytes = libc::c_int::try_from(seed.len()).map_err(io::Error::other)?;
    let mut info = RandPoolInfo {
        entropy_bits: bytes * 8,
        bytes,
        data: [0; MAX_SEED],
    };
    info.data[..seed.len()].copy_from_slice(seed);
    let file = OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads the two integers and `bytes` bytes, which `info` holds.
    unsafe { add_entropy(file.as_raw_fd(), &raw const info) }?;
    Ok(())
}

impl From<ConfigureError> for ttrpc::Error {
    fn from(error: ConfigureError) -> Self {
        let code = match error {
            ConfigureError::SeedTooLong(_) => Code::INVALID_ARGUMENT,
            _ => Code::UNKNOWN,
        };
        status(code, &error)
    }
}

/// Now, in nanoseconds on the clock that counts from the kernel's start.
#[must_use]
pub fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
    now.map_or(0, |now| {
        u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_that_is_too_long_is_refused_before_anything_is_set() {
        let mut request = ConfigureRequest::new();
        request.hostname = "must-not-be-set".to_owned();
        request.random_seed = vec![0; MAX_SEED + 1];
        assert!(matches!(
            apply(&request),
            Err(ConfigureError::SeedTooLong(513))
        ));
    }

    #[test]
    fn time_since_boot_grows() {
        let first = boottime_ns();
        assert!(first > 0 && boottime_ns() >= first);
    }
}
