//! A rate limiter that is really ours: two buckets of tokens, of bytes and of operations.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::model::{RateLimiter, TokenBucket};

/// Longest time in which a bucket fills, in milliseconds: 11 days. It keeps the arithmetic within its bounds.
const MAX_REFILL_MS: u64 = 1_000_000_000;

/// A rate limiter that can be waited for, and changed meanwhile.
#[derive(Debug)]
pub struct Limit {
    buckets: Mutex<Buckets>,
    changed: Notify,
}

#[derive(Debug)]
struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limit {
    /// A limiter with full buckets.
    #[must_use]
    pub fn new(config: RateLimiter) -> Self {
        let now = Instant::now();
        Self {
            buckets: Mutex::new(Buckets {
                bytes: Bucket::new(config.bandwidth, now),
                operations: Bucket::new(config.ops, now),
            }),
            changed: Notify::new(),
        }
    }

    /// Puts new, full buckets in place of those that `update` has.
    pub fn update(&self, update: RateLimiter) {
        let now = Instant::now();
        {
            let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
            if update.bandwidth.is_some() {
                buckets.bytes = Bucket::new(update.bandwidth, now);
            }
            if update.ops.is_some() {
                buckets.operations = Bucket::new(update.ops, now);
            }
        }
        self.changed.notify_one();
    }

    /// Waits until an operation is allowed; says whether it had to. One task waits at a time.
    pub async fn ready(&self) -> bool {
        let mut waited = false;
        while let Some(wait) = self.wait(Instant::now()) {
            waited = true;
            // A limit is a matter of time; and the limit may change.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.changed.notified() => {}
            }
        }
        waited
    }

    /// Takes the tokens of an operation on so many bytes. There may be fewer: the next one waits for them.
    pub fn take(&self, bytes: usize) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = &mut buckets.bytes {
            bucket.take(bytes as u64);
        }
        if let Some(bucket) = &mut buckets.operations {
            bucket.take(1);
        }
    }

    fn wait(&self, now: Instant) -> Option<Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets { bytes, operations } = &mut *buckets;
        [bytes, operations]
            .into_iter()
            .flatten()
            .filter_map(|bucket| bucket.wait(now))
            .max()
    }
}

/// Tokens are counted in parts of a token, so that no part of a short time is lost: a token has as many parts as the
/// bucket takes nanoseconds to fill, and so a full bucket's worth of parts comes in each nanosecond.
#[derive(Debug)]
struct Bucket {
    size: u64,
    refill_ns: i128,
    /// Below zero when an operation has taken more than there was.
    parts: i128,
    /// Tokens that come on top, once.
    burst: u64,
    filled: Instant,
}

impl Bucket {
    fn new(config: Option<TokenBucket>, now: Instant) -> Option<Self> {
        let config = config.filter(TokenBucket::limits)?;
        let refill_ns = i128::from(config.refill_time.min(MAX_REFILL_MS)) * 1_000_000;
        Some(Self {
            size: config.size,
            refill_ns,
            parts: i128::from(config.size) * refill_ns,
            burst: config.one_time_burst.unwrap_or(0),
            filled: now,
        })
    }

    fn take(&mut self, tokens: u64) {
        let from_burst = tokens.min(self.burst);
        self.burst -= from_burst;
        self.parts -= i128::from(tokens - from_burst) * self.refill_ns;
    }

    /// How long until there is a token; `None` if there is one.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        let size = i128::from(self.size);
        let passed = now.saturating_duration_since(self.filled).as_nanos();
        self.filled = now;
        // As long as it takes to fill is as good as longer.
        let missing = size * self.refill_ns - self.parts;
        let longest = missing / size + 1;
        let passed = i128::try_from(passed).unwrap_or(longest).min(longest);
        self.parts = (self.parts + passed * size).min(size * self.refill_ns);
        if self.burst > 0 || self.parts >= self.refill_ns {
            return None;
        }
        let wait = (self.refill_ns - self.parts) / size + 1;
        Some(Duration::from_nanos(
            u64::try_from(wait).unwrap_or(u64::MAX),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(size: u64, refill_time: u64, burst: u64, now: Instant) -> Bucket {
        let config = TokenBucket {
            size,
            one_time_burst: Some(burst),
            refill_time,
        };
        Bucket::new(Some(config), now).unwrap()
    }

    #[test]
    fn burst_then_bucket_then_rate() {
        let start = Instant::now();
        let mut bucket = bucket(1000, 100, 500, start);
        assert_eq!(bucket.wait(start), None);
        bucket.take(1500);
        let wait = bucket.wait(start).unwrap();
        // A token each 100 us.
        assert!((100_000..101_000).contains(&wait.as_nanos()), "{wait:?}");
        assert_eq!(bucket.wait(start + wait), None);
        // More than there is: the next waits for the rest.
        bucket.take(301);
        let wait = bucket.wait(start + wait).unwrap();
        assert!(
            (30_000_000..30_200_000).contains(&wait.as_nanos()),
            "{wait:?}"
        );
    }

    #[test]
    fn it_fills_up_and_no_further() {
        let start = Instant::now();
        let mut bucket = bucket(10, 1000, 0, start);
        bucket.take(10);
        let later = start + Duration::from_secs(3600);
        assert_eq!(bucket.wait(later), None);
        assert_eq!(bucket.parts, 10 * bucket.refill_ns);
    }

    #[test]
    fn extremes() {
        let start = Instant::now();
        let mut bucket = bucket(u64::MAX, u64::MAX, u64::MAX, start);
        bucket.take(u64::MAX);
        bucket.take(u64::MAX);
        assert!(bucket.wait(start).is_some());
        assert_eq!(Bucket::new(None, start).map(|_| ()), None);
    }

    #[tokio::test]
    async fn an_update_wakes_who_waits() {
        let hour = TokenBucket {
            size: 1,
            one_time_burst: None,
            refill_time: 3_600_000,
        };
        let limiter = RateLimiter {
            bandwidth: None,
            ops: Some(hour),
        };
        let limit = Limit::new(limiter);
        limit.ready().await;
        limit.take(100);
        let none = TokenBucket { size: 0, ..hour };
        let update = async {
            limit.update(RateLimiter {
                bandwidth: None,
                ops: Some(none),
            });
        };
        let both = async { tokio::join!(limit.ready(), update) };
        tokio::time::timeout(Duration::from_secs(60), both)
            .await
            .unwrap();
    }
}
