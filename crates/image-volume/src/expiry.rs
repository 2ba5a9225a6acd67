//! The time at which a lease expires, as containerd's labels have it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 24 * 60 * 60;
/// The last second, counted from 1970, that RFC 3339 can tell: its years have four digits.
const LAST: u64 = 253_402_300_799;

/// The time when `lifetime` has passed after `now`, which is after 1970, as RFC 3339 in UTC, to the second. The end of
/// the year 9999 for what lives longer.
pub(crate) fn expires(now: SystemTime, lifetime: Duration) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(since.saturating_add(lifetime).as_secs().min(LAST))
}

/// Seconds after 1970, at most [`LAST`], in words.
fn rfc3339(seconds: u64) -> String {
    let (mut days, seconds) = (seconds / DAY, seconds % DAY);
    let mut year = 1970;
    while days >= days_of(year) {
        days -= days_of(year);
        year += 1;
    }
    let mut month = 1;
    while days >= days_in(year, month) {
        days -= days_in(year, month);
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let day = days + 1;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn days_of(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lives_longer_than_dates_can_tell_has_the_last_one() {
        let now = UNIX_EPOCH + Duration::from_secs(951_782_399);
        assert_eq!(expires(now, Duration::from_secs(1)), "2000-02-29T00:00:00Z");
        for lifetime in [Duration::from_secs(LAST), Duration::MAX] {
            assert_eq!(expires(now, lifetime), "9999-12-31T23:59:59Z");
        }
    }

    #[test]
    fn times_are_those_of_date() {
        // As `date --utc --date=@...` prints them.
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), expected);
        }
    }
}
