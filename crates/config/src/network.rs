//! `default_network_interfaces`: the interfaces of a VM that asks for none.
//!
//! Keys are the JSON names of the original's protobuf messages (`AllowMMDS`, `CNIConfig`, ...). The
//! functions check single values, for those messages too.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::ConfigError;
use crate::document::Object;

/// Linux' IFNAMSIZ without the final NUL.
const MAX_INTERFACE_NAME: usize = 15;

/// Nameservers that fit on a kernel command line (`ip=`).
const MAX_NAMESERVERS: usize = 2;

/// One network interface of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkInterface {
    /// `AllowMMDS`: whether the guest reaches the metadata service through it. Default false.
    pub allow_mmds: bool,
    /// `InRateLimiter`: limit on what the guest receives. Default none.
    pub in_rate_limiter: Option<RateLimiter>,
    /// `OutRateLimiter`: limit on what the guest sends. Default none.
    pub out_rate_limiter: Option<RateLimiter>,
    /// Where the host's side comes from.
    pub source: NetworkSource,
}

/// Where the host's side of an interface comes from: exactly one of the two keys is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkSource {
    /// `CNIConfig`: CNI plugins make it.
    Cni(CniConfig),
    /// `StaticConfig`: it exists.
    Static(StaticConfig),
}

/// `CNIConfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniConfig {
    /// `NetworkName`: the network, as CNI's configuration names it. Required.
    pub network_name: String,
    /// `InterfaceName`: the interface that CNI makes; empty lets the runtime choose.
    pub interface_name: String,
    /// `BinPath`: where plugins are looked for; empty means CNI's default.
    pub bin_path: Vec<PathBuf>,
    /// `ConfDir`: where networks are looked for; empty means CNI's default.
    pub conf_dir: PathBuf,
    /// `CacheDir`: where CNI keeps results; empty means the runtime's default.
    pub cache_dir: PathBuf,
    /// `Args`: further arguments for the plugins.
    pub args: Vec<CniArg>,
}

/// One of `CNIConfig.Args`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniArg {
    /// `Key`.
    pub key: String,
    /// `Value`.
    pub value: String,
}

/// `StaticConfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticConfig {
    /// `MacAddress`: the guest's address; empty lets the VMM choose.
    pub mac_address: String,
    /// `HostDevName`: the tap on the host. Required.
    pub host_dev_name: String,
    /// `IPConfig`: what the guest sets up; none leaves the interface without an address.
    pub ip_config: Option<IpConfig>,
}

/// `IPConfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// `PrimaryAddr`: the guest's address. Required, written as `192.0.2.2/24`.
    pub primary_addr: Ipv4Addr,
    /// The length of `PrimaryAddr`'s network prefix in bits.
    pub prefix_length: u8,
    /// `GatewayAddr`: the default route. Default none.
    pub gateway_addr: Option<Ipv4Addr>,
    /// `Nameservers`: at most 2.
    pub nameservers: Vec<Ipv4Addr>,
}

/// A limit on bytes, on operations, or on both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimiter {
    /// `Bandwidth`: tokens are bytes.
    pub bandwidth: Option<TokenBucket>,
    /// `Ops`: tokens are operations.
    pub ops: Option<TokenBucket>,
}

/// `Capacity` tokens every `RefillTime`. A value of 0 is not set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBucket {
    /// `OneTimeBurst`: tokens that are there once, at first.
    pub one_time_burst: u64,
    /// `RefillTime` in milliseconds.
    pub refill_time_ms: u64,
    /// `Capacity`: tokens.
    pub capacity: u64,
}

impl NetworkInterface {
    pub(crate) fn read(object: &mut Object<'_>) -> Result<Self, ConfigError> {
        let cni = object.object("CNIConfig", CniConfig::read)?;
        let fixed = object.object("StaticConfig", StaticConfig::read)?;
        let source = match (cni, fixed) {
            (Some(cni), None) => NetworkSource::Cni(cni),
            (None, Some(fixed)) => NetworkSource::Static(fixed),
            _ => return Err(object.invalid("needs exactly one of CNIConfig and StaticConfig")),
        };
        Ok(Self {
            allow_mmds: object.read("AllowMMDS")?.unwrap_or_default(),
            in_rate_limiter: object.object("InRateLimiter", RateLimiter::read)?,
            out_rate_limiter: object.object("OutRateLimiter", RateLimiter::read)?,
            source,
        })
    }
}

impl CniConfig {
    fn read(object: &mut Object<'_>) -> Result<Self, ConfigError> {
        let network_name = object.read::<String>("NetworkName")?.unwrap_or_default();
        if network_name.is_empty() {
            return Err(object.invalid("needs NetworkName"));
        }
        Ok(Self {
            network_name,
            interface_name: object
                .read_with("InterfaceName", interface_name)?
                .unwrap_or_default(),
            bin_path: object.read("BinPath")?.unwrap_or_default(),
            conf_dir: object.read("ConfDir")?.unwrap_or_default(),
            cache_dir: object.read("CacheDir")?.unwrap_or_default(),
            args: object.objects("Args", CniArg::read)?.unwrap_or_default(),
        })
    }
}

impl CniArg {
    fn read(object: &mut Object<'_>) -> Result<Self, ConfigError> {
        let key = object.read::<String>("Key")?.unwrap_or_default();
        if key.is_empty() {
            return Err(object.invalid("needs Key"));
        }
        Ok(Self {
            key,
            value: object.read("Value")?.unwrap_or_default(),
        })
    }
}

impl StaticConfig {
    fn read(object: &mut Object<'_>) -> Result<Self, ConfigError> {
        let host_dev_name = object
            .read_with("HostDevName", interface_name)?
            .unwrap_or_default();
        if host_dev_name.is_empty() {
            return Err(object.invalid("needs HostDevName"));
        }
        Ok(Self {
            mac_address: object
                .read_with("MacAddress", mac_address)?
                .unwrap_or_default(),
            host_dev_name,
            ip_config: object.object("IPConfig", IpConfig::read)?,
        })
    }
}

impl IpConfig {
    fn read(object: &mut Object<'_>) -> Result<Self, ConfigError> {
        let Some((primary_addr, prefix_length)) = object.read_with("PrimaryAddr", cidr)? else {
            return Err(object.invalid("needs PrimaryAddr"));
        };
        Ok(Self {
            primary_addr,
            prefix_length,
            gateway_addr: object
                .read_with("GatewayAddr", |text: String| match text.as_str() {
                    "" => Ok(None),
                    text => ipv4(text).map(Some),
                })?
                .flatten(),
            nameservers: object
                .read_with("Nameservers", nameservers)?
                .unwrap_or_default(),
        })
    }
}

impl RateLimiter {
    fn read(object: &mut Object<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            bandwidth: object.object("Bandwidth", TokenBucket::read)?,
            ops: object.object("Ops", TokenBucket::read)?,
        })
    }
}

impl TokenBucket {
    fn read(object: &mut Object<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            one_time_burst: object.read("OneTimeBurst")?.unwrap_or_default(),
            refill_time_ms: object.read("RefillTime")?.unwrap_or_default(),
            capacity: object.read("Capacity")?.unwrap_or_default(),
        })
    }
}

/// Checks the name of a network interface; empty is none.
///
/// # Errors
/// What is wrong with it.
pub fn interface_name(name: String) -> Result<String, String> {
    let odd = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if name.len() > MAX_INTERFACE_NAME || name.contains(odd) || name == "." || name == ".." {
        return Err(format!("{name:?} is not the name of a network interface"));
    }
    Ok(name)
}

/// Checks a MAC address; empty is none.
///
/// # Errors
/// What is wrong with it.
pub fn mac_address(address: String) -> Result<String, String> {
    let octets: Vec<&str> = address.split(':').collect();
    let hex = |octet: &&str| octet.len() == 2 && octet.bytes().all(|b| b.is_ascii_hexdigit());
    if address.is_empty() || (octets.len() == 6 && octets.iter().all(hex)) {
        Ok(address)
    } else {
        Err(format!(
            "{address:?} is not a MAC address such as 06:00:ac:10:00:02"
        ))
    }
}

/// Reads an IPv4 address with the length of its network prefix in bits.
///
/// # Errors
/// What is wrong with it.
pub fn cidr(text: String) -> Result<(Ipv4Addr, u8), String> {
    let problem = || format!("{text:?} is not an IPv4 address with a prefix such as 192.0.2.2/24");
    let (address, prefix) = text.split_once('/').ok_or_else(problem)?;
    let prefix = prefix
        .parse()
        .ok()
        .filter(|&bits| bits <= 32)
        .ok_or_else(problem)?;
    Ok((address.parse().map_err(|_| problem())?, prefix))
}

/// Reads an IPv4 address.
///
/// # Errors
/// What is wrong with it.
pub fn ipv4(text: &str) -> Result<Ipv4Addr, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not an IPv4 address"))
}

/// Reads the addresses of nameservers, as many as fit on a kernel command line.
///
/// # Errors
/// What is wrong with them.
pub fn nameservers(texts: Vec<String>) -> Result<Vec<Ipv4Addr>, String> {
    if texts.len() > MAX_NAMESERVERS {
        return Err(format!(
            "at most {MAX_NAMESERVERS} nameservers can be given"
        ));
    }
    texts.iter().map(|text| ipv4(text)).collect()
}
