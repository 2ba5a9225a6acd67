use serde::{Deserialize, Serialize};

/// A bucket of `size` tokens that fills up in `refill_time` milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct TokenBucket {
    /// Tokens: bytes or operations. 0 means no limit.
    pub size: u64,
    /// Extra tokens at the start that are not refilled.
    pub one_time_burst: Option<u64>,
    /// Milliseconds; 0 means no limit.
    pub refill_time: u64,
}

/// Limits on bytes and operations; an absent bucket limits nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Counts bytes.
    pub bandwidth: Option<TokenBucket>,
    /// Counts operations.
    pub ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// Whether it limits anything.
    #[must_use]
    pub fn limits(&self) -> bool {
        [self.bandwidth, self.ops]
            .iter()
            .flatten()
            .any(|bucket| bucket.size != 0 && bucket.refill_time != 0)
    }
}
