//! The VM's loopback interface.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

nix::ioctl_readwrite_bad!(
    /// Reads an interface's flags (`SIOCGIFFLAGS`, netdevice(7)).
    get_flags,
    libc::SIOCGIFFLAGS,
    libc::ifreq
);
nix::ioctl_write_ptr_bad!(
    /// Sets an interface's flags (`SIOCSIFFLAGS`, netdevice(7)).
    set_flags,
    libc::SIOCSIFFLAGS,
    libc::ifreq
);

/// Brings `lo` up; it has its address by itself.
pub(super) fn loopback_up() -> io::Result<()> {
    let any = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut name = [0; libc::IFNAMSIZ];
    for (target, byte) in name.iter_mut().zip(c"lo".to_bytes()) {
        *target = libc::c_char::from_ne_bytes([*byte]);
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    };
    // SAFETY: the kernel reads the name and writes the flags; `request` is a whole ifreq.
    unsafe { get_flags(any.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the call above has set the flags, so that member of the union is the valid one.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags }) | libc::IFF_UP;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the kernel reads name and flags from a whole ifreq.
    unsafe { set_flags(any.as_raw_fd(), &raw const request) }?;
    Ok(())
}
