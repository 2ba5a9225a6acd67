//! Bounds on what is waited for. They catch what never comes; no case passes or fails by how long it took.
//!
//! `FIRECRACKER_SLOWNESS` multiplies them, for a VMM whose guests are slower than an emulated one's: a number, 1
//! unless set.

use std::env;
use std::time::Duration;

/// Environment variable with the factor.
const SLOWNESS: &str = "FIRECRACKER_SLOWNESS";

/// A bound of `seconds` on a VMM of ordinary speed.
///
/// # Panics
/// The variable is no number of at least 1.
#[must_use]
pub fn bound(seconds: u32) -> Duration {
    let text = env::var(SLOWNESS).unwrap_or_else(|_| "1".into());
    Duration::from_secs(seconds.into()) * factor(&text)
}

fn factor(text: &str) -> u32 {
    match text.parse() {
        Ok(factor) if factor >= 1 => factor,
        _ => panic!("{SLOWNESS} is {text:?}, not a number of at least 1"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_factor_is_a_number() {
        assert_eq!(super::factor("8"), 8);
        for bad in ["", "0", "-1", "x"] {
            assert!(std::panic::catch_unwind(|| super::factor(bad)).is_err());
        }
    }
}
