//! The host's tap devices.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use crate::fault::TapFault;

/// Opens the tap device `name`, as Firecracker does: it is made if it does not exist and we may, and it goes with
/// the last descriptor unless it is persistent. With `offloads`, frames have a `virtio_net_hdr` in front, by which
/// they may be larger than the wire's.
///
/// # Errors
/// There is no `/dev/net/tun`, the name is too long, or the device is busy or not ours to use.
pub fn open(name: &str, offloads: bool) -> Result<File, TapFault> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(TapFault::OpenTun)?;
    // SAFETY: an all-zero `ifreq` is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays NUL.
    if name.len() >= request.ifr_name.len() {
        return Err(TapFault::InvalidName);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let header = if offloads { libc::IFF_VNET_HDR } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | header;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(|_| TapFault::InvalidName)?;
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq`, which outlives the call.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } == -1 {
        return Err(TapFault::Attach {
            error: io::Error::last_os_error(),
            name: name.to_owned(),
        });
    }
    Ok(tun)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_limit() {
        match open("a-name-of-16-byt", true) {
            Err(TapFault::OpenTun(error)) => println!("SKIPPED: /dev/net/tun: {error}"),
            Err(TapFault::InvalidName) => {}
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_device_has_one_user() {
        // A name of its own: another run of this test may be under way.
        let name = format!("fct{}", std::process::id());
        let first = match open(&name, true) {
            Ok(first) => first,
            Err(error) => {
                println!("SKIPPED: no tap device can be made: {error}");
                return;
            }
        };
        let error = open(&name, true).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "Error while creating ifreq structure: Device or resource busy (os error 16). Invalid TUN/TAP Backend \
                 provided by {name}. Check our documentation on setting up the network devices."
            )
        );
        drop(first);
        // A process that another test is just starting has a copy until its program runs.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while let Err(error) = open(&name, true) {
            assert!(std::time::Instant::now() < deadline, "{error}");
            std::thread::yield_now();
        }
    }
}
