use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::RateLimiter;

/// `PUT /network-interfaces/{iface_id}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Identifies the interface; letters, digits and underscores.
    pub iface_id: String,
    /// Name of the host's tap device.
    pub host_dev_name: String,
    /// The guest's address; a random one when absent.
    pub guest_mac: Option<MacAddress>,
    /// Limits on what the guest receives.
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits on what the guest sends.
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// `PATCH /network-interfaces/{iface_id}`: absent limiters and buckets stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkUpdate {
    /// The interface.
    pub iface_id: String,
    /// New limits on what the guest receives.
    pub rx_rate_limiter: Option<RateLimiter>,
    /// New limits on what the guest sends.
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// An Ethernet address, `06:00:ac:10:00:02`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// The text is no Ethernet address; it is its own message, as in Firecracker.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoMacAddress(String);

impl FromStr for MacAddress {
    type Err = NoMacAddress;

    fn from_str(text: &str) -> Result<Self, NoMacAddress> {
        let none = || NoMacAddress(text.to_owned());
        let parts: Vec<&str> = text.split(':').collect();
        let parts: [&str; 6] = parts.try_into().map_err(|_| none())?;
        let mut bytes = [0; 6];
        for (byte, part) in bytes.iter_mut().zip(parts) {
            // A sign would pass for a digit.
            if part.len() != 2 || !part.bytes().all(|it| it.is_ascii_hexdigit()) {
                return Err(none());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| none())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = NoMacAddress;

    fn try_from(text: String) -> Result<Self, NoMacAddress> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, last] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{last:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let address: MacAddress = "06:00:AC:10:00:02".parse().unwrap();
        assert_eq!(address, MacAddress([6, 0, 0xac, 0x10, 0, 2]));
        assert_eq!(address.to_string(), "06:00:ac:10:00:02");
        for bad in [
            "",
            "06:00:ac:10:00",
            "06:00:ac:10:00:02:03",
            "6:0:ac:10:0:2",
            "+6:00:ac:10:00:02",
        ] {
            assert_eq!(
                bad.parse::<MacAddress>(),
                Err(NoMacAddress(bad.into())),
                "{bad}"
            );
        }
    }
}
