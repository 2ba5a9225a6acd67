//! The network interfaces of a VM.

use std::net::Ipv4Addr;

use fc_client::api::{RateLimiter, TokenBucket};
use fc_config::{NetworkSource, network};
use fc_proto::control::{FirecrackerNetworkInterface, IPConfiguration, StaticNetworkConfiguration};

use super::drive::rate_limiter;
use super::{SpecError, text};

/// A network interface on a tap of the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Interface {
    /// The tap.
    pub tap: String,
    /// The guest's MAC address; `None` lets the guest choose.
    pub mac: Option<String>,
    /// Limits on what the guest receives; values of a bucket below 1 count as not set, as in the original.
    pub rx: Option<RateLimiter>,
    /// Limits on what the guest sends; values of a bucket below 1 count as not set, as in the original.
    pub tx: Option<RateLimiter>,
    /// Whether the guest reaches the metadata service through it.
    pub mmds: bool,
    /// What the guest's kernel sets up; `None` leaves the interface without an address.
    pub ip: Option<Ip>,
}

/// An interface's address, for the guest's kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ip {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The length of its network prefix in bits, at most 32.
    pub prefix: u8,
    /// The default route.
    pub gateway: Option<Ipv4Addr>,
    /// At most 2.
    pub nameservers: Vec<Ipv4Addr>,
}

impl Ip {
    /// The kernel's argument for it (`ip=`, see Documentation/admin-guide/nfs/nfsroot.rst in Linux). The
    /// interface needs no name: it is the only one.
    #[must_use]
    pub fn kernel_arg(&self) -> String {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(self.prefix.min(32)))
            .unwrap_or_default();
        let optional =
            |address: Option<&Ipv4Addr>| address.map(ToString::to_string).unwrap_or_default();
        format!(
            "ip={}::{}:{}:::off:{}:{}:",
            self.address,
            optional(self.gateway.as_ref()),
            Ipv4Addr::from(mask),
            optional(self.nameservers.first()),
            optional(self.nameservers.get(1)),
        )
    }
}

/// The interfaces that a request asks for; those of the configuration if it asks for none.
pub(super) fn interfaces(
    requests: &[FirecrackerNetworkInterface],
    defaults: &[fc_config::NetworkInterface],
) -> Result<Vec<Interface>, SpecError> {
    let interfaces: Vec<Interface> = if requests.is_empty() {
        let defaults = defaults.iter().enumerate();
        defaults
            .map(|(index, default)| {
                configured(&format!("default_network_interfaces[{index}]"), default)
            })
            .collect::<Result<_, _>>()?
    } else {
        let requests = requests.iter().enumerate();
        requests
            .map(|(index, request)| requested(&format!("NetworkInterfaces[{index}]"), request))
            .collect::<Result<_, _>>()?
    };
    if interfaces.len() > 1 && interfaces.iter().any(|interface| interface.ip.is_some()) {
        return Err(SpecError::Value {
            field: "NetworkInterfaces".to_owned(),
            problem: "the guest's kernel sets up one interface only, so with IPConfig there can be no other"
                .to_owned(),
        });
    }
    Ok(interfaces)
}

fn requested(field: &str, request: &FirecrackerNetworkInterface) -> Result<Interface, SpecError> {
    let value = |problem: &str| SpecError::Value {
        field: field.to_owned(),
        problem: problem.to_owned(),
    };
    let fixed = match (request.CNIConfig.as_ref(), request.StaticConfig.as_ref()) {
        (None, Some(fixed)) => fixed,
        (Some(cni), None) if cni.NetworkName.is_empty() => {
            return Err(SpecError::Required {
                field: format!("{field}.CNIConfig.NetworkName"),
            });
        }
        (Some(_), None) => {
            return Err(SpecError::Unsupported {
                field: format!("{field}.CNIConfig"),
            });
        }
        (None, None) => return Err(value("needs CNIConfig or StaticConfig")),
        (Some(_), Some(_)) => return Err(value("cannot have both CNIConfig and StaticConfig")),
    };
    Ok(Interface {
        rx: request.InRateLimiter.as_ref().map(rate_limiter),
        tx: request.OutRateLimiter.as_ref().map(rate_limiter),
        mmds: request.AllowMMDS,
        ..requested_static(&format!("{field}.StaticConfig"), fixed)?
    })
}

fn requested_static(
    field: &str,
    fixed: &StaticNetworkConfiguration,
) -> Result<Interface, SpecError> {
    let tap = named(
        field,
        "HostDevName",
        network::interface_name(fixed.HostDevName.clone()),
    )?;
    let mac = named(
        field,
        "MacAddress",
        network::mac_address(fixed.MacAddress.clone()),
    )?;
    let ip = fixed.IPConfig.as_ref();
    Ok(Interface {
        tap: text(&tap).ok_or_else(|| SpecError::Required {
            field: format!("{field}.HostDevName"),
        })?,
        mac: text(&mac),
        rx: None,
        tx: None,
        mmds: false,
        ip: ip
            .map(|ip| requested_ip(&format!("{field}.IPConfig"), ip))
            .transpose()?,
    })
}

fn requested_ip(field: &str, ip: &IPConfiguration) -> Result<Ip, SpecError> {
    let (address, prefix) = named(field, "PrimaryAddr", network::cidr(ip.PrimaryAddr.clone()))?;
    let gateway = match ip.GatewayAddr.as_str() {
        "" => None,
        gateway => Some(named(field, "GatewayAddr", network::ipv4(gateway))?),
    };
    Ok(Ip {
        address,
        prefix,
        gateway,
        nameservers: named(
            field,
            "Nameservers",
            network::nameservers(ip.Nameservers.clone()),
        )?,
    })
}

fn named<T>(field: &str, name: &str, result: Result<T, String>) -> Result<T, SpecError> {
    result.map_err(|problem| SpecError::Value {
        field: format!("{field}.{name}"),
        problem,
    })
}

/// An interface of the configuration, which was checked when it was loaded.
fn configured(field: &str, default: &fc_config::NetworkInterface) -> Result<Interface, SpecError> {
    let fixed = match &default.source {
        NetworkSource::Static(fixed) => fixed,
        NetworkSource::Cni(_) => {
            return Err(SpecError::Unsupported {
                field: format!("{field}.CNIConfig (configuration)"),
            });
        }
    };
    Ok(Interface {
        tap: fixed.host_dev_name.clone(),
        mac: text(&fixed.mac_address),
        rx: default.in_rate_limiter.as_ref().map(configured_limiter),
        tx: default.out_rate_limiter.as_ref().map(configured_limiter),
        mmds: default.allow_mmds,
        ip: fixed.ip_config.as_ref().map(|ip| Ip {
            address: ip.primary_addr,
            prefix: ip.prefix_length,
            gateway: ip.gateway_addr,
            nameservers: ip.nameservers.clone(),
        }),
    })
}

fn configured_limiter(limiter: &fc_config::RateLimiter) -> RateLimiter {
    let bucket = |bucket: &fc_config::TokenBucket| TokenBucket {
        size: bucket.capacity,
        refill_time: bucket.refill_time_ms,
        one_time_burst: Some(bucket.one_time_burst).filter(|burst| *burst > 0),
    };
    RateLimiter {
        bandwidth: limiter.bandwidth.as_ref().map(bucket),
        ops: limiter.ops.as_ref().map(bucket),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fc_proto::control::CNIConfiguration;
    use fc_proto::protobuf::MessageField;

    fn fixed(tap: &str, ip: Option<IPConfiguration>) -> FirecrackerNetworkInterface {
        FirecrackerNetworkInterface {
            StaticConfig: MessageField::some(StaticNetworkConfiguration {
                HostDevName: tap.into(),
                MacAddress: "06:00:ac:10:00:02".into(),
                IPConfig: ip.into(),
                ..StaticNetworkConfiguration::default()
            }),
            ..FirecrackerNetworkInterface::default()
        }
    }

    fn ip(address: &str) -> IPConfiguration {
        IPConfiguration {
            PrimaryAddr: address.into(),
            GatewayAddr: "172.16.0.1".into(),
            Nameservers: vec!["1.1.1.1".into()],
            ..IPConfiguration::default()
        }
    }

    #[test]
    fn the_kernel_argument() {
        let interfaces = interfaces(&[fixed("tap0", Some(ip("172.16.0.2/24")))], &[]).unwrap();
        let ip = interfaces[0].ip.clone().unwrap();
        assert_eq!(
            ip.kernel_arg(),
            "ip=172.16.0.2::172.16.0.1:255.255.255.0:::off:1.1.1.1::"
        );
        let bare = Ip {
            prefix: 0,
            gateway: None,
            nameservers: Vec::new(),
            ..ip
        };
        assert_eq!(bare.kernel_arg(), "ip=172.16.0.2:::0.0.0.0:::off:::");
    }

    #[test]
    fn errors_name_the_field() {
        let cni = |name: &str| FirecrackerNetworkInterface {
            CNIConfig: MessageField::some(CNIConfiguration {
                NetworkName: name.into(),
                ..CNIConfiguration::default()
            }),
            ..FirecrackerNetworkInterface::default()
        };
        let both = FirecrackerNetworkInterface {
            CNIConfig: cni("net").CNIConfig,
            ..fixed("tap0", None)
        };
        let many = IPConfiguration {
            Nameservers: vec!["1.1.1.1".into(); 3],
            ..ip("10.0.0.2/8")
        };
        for (request, field) in [
            (
                FirecrackerNetworkInterface::default(),
                "NetworkInterfaces[0]: needs",
            ),
            (both, "NetworkInterfaces[0]: cannot"),
            (cni(""), "NetworkInterfaces[0].CNIConfig.NetworkName"),
            (
                cni("net"),
                "NetworkInterfaces[0].CNIConfig is not supported",
            ),
            (
                fixed("", None),
                "NetworkInterfaces[0].StaticConfig.HostDevName",
            ),
            (
                fixed("a/b", None),
                "NetworkInterfaces[0].StaticConfig.HostDevName",
            ),
            (
                fixed("tap0", Some(ip("172.16.0.2"))),
                "NetworkInterfaces[0].StaticConfig.IPConfig.PrimaryAddr",
            ),
            (
                fixed("tap0", Some(many)),
                "NetworkInterfaces[0].StaticConfig.IPConfig.Nameservers",
            ),
        ] {
            let error = interfaces(&[request], &[]).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
        let two = [fixed("tap0", Some(ip("10.0.0.2/8"))), fixed("tap1", None)];
        let error = interfaces(&two, &[]).unwrap_err().to_string();
        assert!(error.contains("IPConfig"), "{error}");
    }

    #[test]
    fn the_configuration_s_are_for_who_asks_for_none() {
        let default = fc_config::NetworkInterface {
            allow_mmds: true,
            in_rate_limiter: None,
            out_rate_limiter: None,
            source: NetworkSource::Static(fc_config::StaticConfig {
                mac_address: String::new(),
                host_dev_name: "tap9".into(),
                ip_config: None,
            }),
        };
        let defaults = [default];
        let taken = interfaces(&[], &defaults).unwrap();
        assert!(taken[0].tap == "tap9" && taken[0].mmds && taken[0].mac.is_none());
        let asked = interfaces(&[fixed("tap0", None)], &defaults).unwrap();
        assert!(asked.len() == 1 && asked[0].tap == "tap0");
    }
}
