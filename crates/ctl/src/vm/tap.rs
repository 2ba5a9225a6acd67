//! The value of `--tap`.

use std::str::FromStr;

use fc_proto::control::{FirecrackerNetworkInterface, StaticNetworkConfiguration};
use fc_proto::protobuf::MessageField;

/// A network interface as it is written on the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tap {
    name: String,
    mac: String,
    mmds: bool,
}

/// What is wrong with a `--tap`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TapError {
    /// A word after the name is not known.
    #[error("{0:?} is neither mac=MAC nor mmds")]
    Unknown(String),
    /// There is no name.
    #[error("The tap's name is missing")]
    NoName,
}

impl FromStr for Tap {
    type Err = TapError;

    fn from_str(text: &str) -> Result<Self, TapError> {
        let mut parts = text.split(',');
        let mut tap = Self {
            name: parts.next().unwrap_or_default().to_owned(),
            ..Self::default()
        };
        if tap.name.is_empty() {
            return Err(TapError::NoName);
        }
        for part in parts {
            match part.strip_prefix("mac=") {
                Some(mac) => mac.clone_into(&mut tap.mac),
                None if part == "mmds" => tap.mmds = true,
                None => return Err(TapError::Unknown(part.to_owned())),
            }
        }
        Ok(tap)
    }
}

impl From<&Tap> for FirecrackerNetworkInterface {
    fn from(tap: &Tap) -> Self {
        Self {
            AllowMMDS: tap.mmds,
            StaticConfig: MessageField::some(StaticNetworkConfiguration {
                HostDevName: tap.name.clone(),
                MacAddress: tap.mac.clone(),
                ..StaticNetworkConfiguration::default()
            }),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps() {
        let tap: Tap = "tap1,mac=02:00:00:00:00:01,mmds".parse().expect("a tap");
        let interface = FirecrackerNetworkInterface::from(&tap);
        assert!(interface.AllowMMDS);
        assert_eq!(interface.StaticConfig.HostDevName, "tap1");
        assert_eq!(interface.StaticConfig.MacAddress, "02:00:00:00:00:01");
        let plain: Tap = "tap0".parse().expect("a tap");
        assert!(!FirecrackerNetworkInterface::from(&plain).AllowMMDS);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| text.parse::<Tap>().expect_err("not a tap");
        assert_eq!(error(",mmds"), TapError::NoName);
        assert_eq!(error("tap0,x"), TapError::Unknown("x".to_owned()));
    }
}
