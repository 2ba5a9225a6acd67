//! A network interface between `PUT /network-interfaces` and the start of the guest.

use std::fs::File;
use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::fault::TapFault;
use crate::model::{MacAddress, NetworkConfig};
use crate::tap;

/// An interface with its tap device, which is ours from the moment it is configured.
#[derive(Debug)]
pub struct Interface {
    /// As configured.
    pub config: NetworkConfig,
    /// The tap device.
    pub tap: File,
}

impl Interface {
    /// Opens the tap device.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn new(config: NetworkConfig) -> Result<Self, TapFault> {
        let tap = tap::open(&config.host_dev_name)?;
        Ok(Self { config, tap })
    }

    /// The guest's address. Without one, Firecracker's guests choose at random; QEMU would give all of them the
    /// same.
    ///
    /// # Errors
    /// The host has no random numbers.
    pub fn mac(&self) -> io::Result<MacAddress> {
        if let Some(mac) = self.config.guest_mac {
            return Ok(mac);
        }
        let mut bytes = [0; 6];
        getrandom(&mut bytes[..], GetRandomFlags::empty())?;
        // Of one station, and locally administered.
        bytes[0] = bytes[0] & !1 | 2;
        Ok(MacAddress(bytes))
    }
}
