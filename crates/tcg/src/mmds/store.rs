//! The data, and what Firecracker checks of a configuration.

use serde_json::{Map, Value};

use crate::fault::TapFault;
use crate::model::MmdsConfig;

/// A store of JSON.
#[derive(Debug)]
pub struct Store {
    value: Value,
    /// Whether it was ever put.
    initialized: bool,
    limit: usize,
}

/// A request on the store fails.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum MmdsFault {
    #[error("The MMDS patch request doesn't fit.")]
    LimitExceeded,
    #[error("The MMDS data store is not initialized.")]
    NotInitialized,
}

/// A configuration that is refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum MmdsConfigFault {
    #[error("The list of network interface IDs that allow forwarding MMDS requests is empty.")]
    NoInterfaces,
    #[error("The MMDS IPv4 address is not link local.")]
    InvalidAddress,
    #[error(
        "The list of network interface IDs provided contains at least one ID that does not correspond to any existing \
         network interface."
    )]
    UnknownInterface,
    #[error("{0}")]
    Tap(#[from] TapFault),
}

/// A path that a guest asks for leads to nothing that can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum LookupError {
    #[error("The MMDS resource does not exist.")]
    NotFound,
    #[error("Cannot retrieve value. The value has an unsupported type.")]
    UnsupportedType,
}

impl Store {
    /// An empty store for `limit` bytes of JSON.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            value: Value::Null,
            initialized: false,
            limit,
        }
    }

    /// The whole content; as in Firecracker's answers, `null` is an empty object.
    #[must_use]
    pub fn value(&self) -> Value {
        match &self.value {
            Value::Null => Value::Object(Map::new()),
            value => value.clone(),
        }
    }

    /// What is at `path`, whose parts are keys and indices: as JSON, or as EC2's service tells it, the keys of an object
    /// in lines and text as it is.
    ///
    /// # Errors
    /// There is nothing, or nothing that EC2's service could tell.
    pub fn lookup(&self, path: &str, json: bool) -> Result<String, LookupError> {
        let path = path.strip_suffix('/').unwrap_or(path);
        let value = self.value.pointer(path).ok_or(LookupError::NotFound)?;
        match value {
            _ if json => Ok(value.to_string()),
            Value::String(text) => Ok(text.clone()),
            Value::Object(fields) => {
                let lines = fields.iter().map(|(key, value)| match value {
                    Value::Object(_) => format!("{key}/"),
                    _ => key.clone(),
                });
                Ok(lines.collect::<Vec<_>>().join("\n"))
            }
            _ => Err(LookupError::UnsupportedType),
        }
    }

    /// Replaces the content.
    ///
    /// # Errors
    /// It is too large.
    pub fn put(&mut self, value: Value) -> Result<(), MmdsFault> {
        if value.to_string().len() > self.limit {
            return Err(MmdsFault::LimitExceeded);
        }
        self.value = value;
        self.initialized = true;
        Ok(())
    }

    /// Merges `patch` into the content (RFC 7396).
    ///
    /// # Errors
    /// Nothing was put before, or the result is too large.
    pub fn patch(&mut self, patch: &Value) -> Result<(), MmdsFault> {
        if !self.initialized {
            return Err(MmdsFault::NotInitialized);
        }
        let mut patched = self.value.clone();
        merge(&mut patched, patch);
        self.put(patched)
    }
}

/// JSON merge patch: objects are merged, `null` removes, everything else replaces.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// Checks what Firecracker checks of a configuration; `interfaces` are the ids of those that are configured.
///
/// # Errors
/// Firecracker would refuse it.
pub fn check<'a>(
    config: &MmdsConfig,
    interfaces: impl Iterator<Item = &'a str> + Clone,
) -> Result<(), MmdsConfigFault> {
    if let Some(address) = config.ipv4_address
        && !matches!(address.octets(), [169, 254, 1..=254, _])
    {
        return Err(MmdsConfigFault::InvalidAddress);
    }
    if config.network_interfaces.is_empty() {
        return Err(MmdsConfigFault::NoInterfaces);
    }
    let known = |id: &String| interfaces.clone().any(|known| known == id);
    if !config.network_interfaces.iter().all(known) {
        return Err(MmdsConfigFault::UnknownInterface);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn put_and_patch() {
        let mut store = Store::new(100);
        assert_eq!(store.value(), json!({}));
        assert_eq!(store.patch(&json!({})), Err(MmdsFault::NotInitialized));
        store
            .put(json!({ "a": { "b": 1, "c": [1, 2] }, "d": "e" }))
            .unwrap();
        store
            .patch(&json!({ "a": { "b": null, "c": [3], "n": { "x": null } }, "d": { "f": 2 } }))
            .unwrap();
        let expected = json!({ "a": { "c": [3], "n": {} }, "d": { "f": 2 } });
        assert_eq!(store.value(), expected);

        let long = "a".repeat(99);
        assert_eq!(store.put(json!(long)), Err(MmdsFault::LimitExceeded));
        let patch = json!({ "g": long });
        assert_eq!(store.patch(&patch), Err(MmdsFault::LimitExceeded));
        assert_eq!(store.value(), expected);
        store.put(json!("a".repeat(98))).unwrap();
    }

    #[test]
    fn configurations() {
        let check = |json: Value| {
            let config: MmdsConfig = serde_json::from_value(json).unwrap();
            check(&config, ["eth0", "eth1"].into_iter())
        };
        check(json!({ "version": "V2", "network_interfaces": ["eth1"] })).unwrap();
        for address in ["169.254.0.1", "169.254.255.1", "10.0.0.1"] {
            let config = json!({ "network_interfaces": ["eth0"], "ipv4_address": address });
            assert!(matches!(
                check(config),
                Err(MmdsConfigFault::InvalidAddress)
            ));
        }
        let config = json!({ "network_interfaces": [], "ipv4_address": "169.254.169.254" });
        assert!(matches!(check(config), Err(MmdsConfigFault::NoInterfaces)));
        let config = json!({ "network_interfaces": ["eth0", "eth2"] });
        assert!(matches!(
            check(config),
            Err(MmdsConfigFault::UnknownInterface)
        ));
    }
}
