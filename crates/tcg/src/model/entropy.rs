use serde::{Deserialize, Serialize};

use super::RateLimiter;

/// `PUT /entropy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyConfig {
    /// Limits on the bytes that the guest takes.
    pub rate_limiter: Option<RateLimiter>,
}
