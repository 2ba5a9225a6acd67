//! A network interface between `PUT /network-interfaces` and the start of the guest.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::fault::{NetworkFault, TapFault};
use crate::limit::Limit;
use crate::mmds::{Mmds, Stack};
use crate::model::{MacAddress, NetworkConfig, NetworkUpdate, RateLimiter};
use crate::qemu::Link;
use crate::relay::{Limits, Relay};
use crate::tap;
use crate::traffic::Traffic;

/// An interface with its tap device, which is ours from the moment it is configured.
#[derive(Debug)]
pub struct Interface {
    /// As configured.
    pub config: NetworkConfig,
    tap: File,
    /// Present if a limiter was configured before the start, if only one that does not limit, or the metadata service:
    /// frames then go through a [`Relay`], and limits can be changed.
    limits: Option<Limits>,
    /// The service that answers on it, and at which address.
    metadata: Option<(Ipv4Addr, Mmds)>,
    /// What had gone over the tap device before it was ours.
    before: Traffic,
}

impl Interface {
    /// Opens the tap device.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn new(mut config: NetworkConfig) -> Result<Self, TapFault> {
        let limited = config.rx_rate_limiter.is_some() || config.tx_rate_limiter.is_some();
        let limits = limited.then(|| limits(&config));
        config.rx_rate_limiter = config.rx_rate_limiter.and_then(RateLimiter::effective);
        config.tx_rate_limiter = config.tx_rate_limiter.and_then(RateLimiter::effective);
        let tap = tap::open(&config.host_dev_name, !limited)?;
        // Where it cannot be read now, it cannot later.
        let before = Traffic::read(&config.host_dev_name);
        Ok(Self {
            config,
            tap,
            limits,
            metadata: None,
            before: before.ok().flatten().unwrap_or_default(),
        })
    }

    /// Lets guests ask `mmds` at `address` on this interface, or no longer.
    ///
    /// # Errors
    /// The tap device cannot be opened once more, without offloads.
    pub fn serve_metadata(&mut self, service: Option<(Ipv4Addr, Mmds)>) -> Result<(), TapFault> {
        if service.is_some() && self.limits.is_none() {
            // It can be opened only when it is not open.
            self.tap = File::open("/dev/null").map_err(TapFault::OpenTun)?;
            self.tap = tap::open(&self.config.host_dev_name, false)?;
            self.limits = Some(limits(&self.config));
        }
        self.metadata = service;
        Ok(())
    }

    /// Where guests can ask for metadata.
    #[must_use]
    pub fn metadata_address(&self) -> Option<Ipv4Addr> {
        self.metadata.as_ref().map(|(address, _)| *address)
    }

    /// What QEMU is connected to, and what must live as long as QEMU for it.
    ///
    /// # Errors
    /// The host refuses a descriptor.
    pub fn connect(&self) -> io::Result<(Link, Option<Relay>)> {
        match &self.limits {
            None => Ok((Link::Tap(self.tap.try_clone()?.into()), None)),
            Some(limits) => {
                let service = self.metadata.clone();
                let service = service.map(|(address, mmds)| Stack::new(address, mmds));
                let (relay, of_qemu) = Relay::start(&self.tap, limits, service)?;
                Ok((Link::Socket(of_qemu), Some(relay)))
            }
        }
    }

    /// What has gone over it, under Firecracker's names; none where the kernel does not say.
    #[must_use]
    pub fn traffic(&self) -> Option<[(&'static str, u64); 4]> {
        let now = Traffic::read(&self.config.host_dev_name).ok().flatten()?;
        Some(now.since(self.before))
    }

    /// Changes limits.
    ///
    /// # Errors
    /// There were none before the start.
    pub fn update(&mut self, update: &NetworkUpdate) -> Result<(), NetworkFault> {
        let changes = [update.rx_rate_limiter, update.tx_rate_limiter];
        let Some(limits) = &self.limits else {
            let limiting = changes
                .into_iter()
                .flatten()
                .any(|it| it.effective().is_some());
            return match limiting {
                true => Err(NetworkFault::LimiterTooLate),
                false => Ok(()),
            };
        };
        let config = &mut self.config;
        for (change, limit, current) in [
            (
                update.rx_rate_limiter,
                &limits.rx,
                &mut config.rx_rate_limiter,
            ),
            (
                update.tx_rate_limiter,
                &limits.tx,
                &mut config.tx_rate_limiter,
            ),
        ] {
            if let Some(change) = change {
                limit.update(change);
                *current = current.unwrap_or_default().updated(change);
            }
        }
        Ok(())
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

/// Full buckets, as configured.
fn limits(config: &NetworkConfig) -> Limits {
    let limit = |limiter: Option<RateLimiter>| Arc::new(Limit::new(limiter.unwrap_or_default()));
    Limits {
        rx: limit(config.rx_rate_limiter),
        tx: limit(config.tx_rate_limiter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(limited: bool) -> Interface {
        let limit = || Arc::new(Limit::new(RateLimiter::default()));
        Interface {
            config: NetworkConfig::default(),
            tap: File::open("/dev/null").unwrap(),
            limits: limited.then(|| Limits {
                rx: limit(),
                tx: limit(),
            }),
            metadata: None,
            before: Traffic::default(),
        }
    }

    fn update(json: &str) -> NetworkUpdate {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn random_addresses_differ_and_are_local() {
        let interface = interface(false);
        let (first, second) = (interface.mac().unwrap(), interface.mac().unwrap());
        assert_ne!(first, second);
        assert_eq!(first.0[0] & 3, 2, "{first}");
    }

    #[test]
    fn limits_change_where_there_are_some() {
        let rx =
            update(r#"{"iface_id":"a","rx_rate_limiter":{"ops":{"size":5,"refill_time":10}}}"#);
        let end =
            update(r#"{"iface_id":"a","rx_rate_limiter":{"ops":{"size":0,"refill_time":0}}}"#);
        let mut limited = interface(true);
        limited.update(&rx).unwrap();
        assert_eq!(limited.config.rx_rate_limiter, rx.rx_rate_limiter);
        assert_eq!(limited.config.tx_rate_limiter, None);
        limited.update(&end).unwrap();
        assert_eq!(limited.config.rx_rate_limiter, None);

        let mut plain = interface(false);
        assert!(matches!(
            plain.update(&rx),
            Err(NetworkFault::LimiterTooLate)
        ));
        plain.update(&end).unwrap();
    }
}
