//! Tokens for sessions of a limited time.

use std::collections::VecDeque;
use std::io;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};

/// Seconds that a session can last.
pub const LIFETIMES: RangeInclusive<u32> = 1..=21600;

/// Most sessions at a time: a guest that opens more loses its oldest ones.
const MAX: usize = 256;

/// The sessions that guests have opened.
#[derive(Debug, Default)]
pub struct Sessions(VecDeque<(String, Instant)>);

impl Sessions {
    /// Opens a session of so many seconds, and returns its token.
    ///
    /// # Errors
    /// The host has no random numbers.
    pub fn open(&mut self, seconds: u32) -> io::Result<String> {
        let mut bytes = [0; 32];
        getrandom(&mut bytes[..], GetRandomFlags::empty())?;
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if self.0.len() == MAX {
            self.0.pop_front();
        }
        let end = Instant::now() + Duration::from_secs(seconds.into());
        self.0.push_back((token.clone(), end));
        Ok(token)
    }

    /// Whether `token` is that of an open session.
    #[must_use]
    pub fn is_open(&self, token: &str) -> bool {
        let now = Instant::now();
        self.0.iter().any(|(open, end)| open == token && now < *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_end() {
        let mut sessions = Sessions::default();
        let first = sessions.open(60).unwrap();
        let over = sessions.open(0).unwrap();
        assert!(sessions.is_open(&first) && !sessions.is_open(&over));
        assert!(!sessions.is_open(""));
        for _ in 1..MAX {
            sessions.open(60).unwrap();
        }
        assert!(!sessions.is_open(&first));
        assert_eq!(sessions.0.len(), MAX);
    }
}
