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

impl TokenBucket {
    /// Whether it limits anything.
    #[must_use]
    pub fn limits(&self) -> bool {
        self.size != 0 && self.refill_time != 0
    }
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
    /// Only the buckets that limit; `None` if there are none. Firecracker shows limiters so.
    #[must_use]
    pub fn effective(self) -> Option<Self> {
        let limiter = Self {
            bandwidth: self.bandwidth.filter(TokenBucket::limits),
            ops: self.ops.filter(TokenBucket::limits),
        };
        (limiter != Self::default()).then_some(limiter)
    }

    /// `self` with the buckets of `update` in place of its own; one that limits nothing ends a limit.
    #[must_use]
    pub fn updated(self, update: Self) -> Option<Self> {
        Self {
            bandwidth: update.bandwidth.or(self.bandwidth),
            ops: update.ops.or(self.ops),
        }
        .effective()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(json: &str) -> RateLimiter {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_update_keeps_sets_and_ends_limits() {
        let both =
            limiter(r#"{"bandwidth":{"size":9,"refill_time":1},"ops":{"size":5,"refill_time":1}}"#);
        let update = limiter(r#"{"bandwidth":{"size":7,"refill_time":2,"one_time_burst":3}}"#);
        let updated = both.updated(update).unwrap();
        assert_eq!(updated.ops, both.ops);
        assert_eq!(updated.bandwidth, update.bandwidth);
        let end = limiter(r#"{"ops":{"size":0,"refill_time":1}}"#);
        assert_eq!(updated.updated(end).unwrap().ops, None);
        let end =
            limiter(r#"{"ops":{"size":0,"refill_time":1},"bandwidth":{"size":1,"refill_time":0}}"#);
        assert_eq!(updated.updated(end), None);
        assert_eq!(RateLimiter::default().effective(), None);
    }
}
