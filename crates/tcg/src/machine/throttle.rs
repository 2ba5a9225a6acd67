//! A drive's rate limiter in QEMU's terms.
//!
//! QEMU's limits are leaky buckets on the device, so they survive swaps of the file. Rates are the same as
//! Firecracker's. Bursts differ: QEMU wants a bucket of at least one second's tokens, or has one of a tenth of a
//! second's; and a one-time burst, which adds to the bucket here, fills up again when the guest is idle.

use serde_json::{Value, json};

use crate::model::{RateLimiter, TokenBucket};

/// Largest value that QEMU takes (`THROTTLE_VALUE_MAX`).
const MAX: u64 = 1_000_000_000_000_000;

/// Arguments of `block_set_io_throttle` for a device; no limiter ends all limits.
pub fn arguments(device: &str, limiter: Option<RateLimiter>) -> Value {
    let limiter = limiter.unwrap_or_default();
    let mut arguments =
        json!({ "id": device, "bps_rd": 0, "bps_wr": 0, "iops_rd": 0, "iops_wr": 0 });
    for (name, burst_name, bucket) in [
        ("bps", "bps_max", limiter.bandwidth),
        ("iops", "iops_max", limiter.ops),
    ] {
        let limit = bucket.filter(TokenBucket::limits).map(Limit::of);
        arguments[name] = json!(limit.map_or(0, |limit| limit.per_second));
        if let Some(burst) = limit.and_then(|limit| limit.burst) {
            arguments[burst_name] = json!(burst);
        }
    }
    arguments
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    per_second: u64,
    /// Tokens in a full bucket, if QEMU can have a bucket of that size.
    burst: Option<u64>,
}

impl Limit {
    fn of(bucket: TokenBucket) -> Self {
        let clamp = |tokens: u128| u64::try_from(tokens).map_or(MAX, |it| it.clamp(1, MAX));
        let size = u128::from(bucket.size);
        let per_second = clamp(size * 1000 / u128::from(bucket.refill_time));
        let burst = clamp(size + u128::from(bucket.one_time_burst.unwrap_or(0)));
        Self {
            per_second,
            burst: (burst >= per_second).then_some(burst),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(size: u64, refill_time: u64, one_time_burst: Option<u64>) -> Limit {
        Limit::of(TokenBucket {
            size,
            one_time_burst,
            refill_time,
        })
    }

    #[test]
    fn rates_and_bursts() {
        let expected = |per_second, burst| Limit { per_second, burst };
        assert_eq!(limit(1000, 2000, None), expected(500, Some(1000)));
        assert_eq!(limit(1000, 100, None), expected(10_000, None));
        assert_eq!(limit(1000, 100, Some(9000)), expected(10_000, Some(10_000)));
        assert_eq!(limit(1, 1_000_000, None), expected(1, Some(1)));
        assert_eq!(limit(u64::MAX, 1, Some(u64::MAX)), expected(MAX, Some(MAX)));
    }

    #[test]
    fn no_limiter_ends_all_limits() {
        assert_eq!(
            arguments("d", None),
            json!({ "id": "d", "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0 })
        );
    }
}
