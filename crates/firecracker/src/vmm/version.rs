//! Versions of the VMM.

use std::fmt;

/// A version of Firecracker's API, `major.minor.patch`; what follows is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Changes when calls change their meaning.
    pub major: u32,
    /// Changes when calls are added.
    pub minor: u32,
    /// Changes when mistakes are corrected.
    pub patch: u32,
}

/// The oldest VMM that can be used.
///
/// The API calls that the runtime makes are those of 1.0 (`PUT /vsock` without `vsock_id`, `smt`, `PATCH /drives`). 1.8 is
/// the first that tells the guest about its devices through ACPI: kernels of distributions, such as the
/// default guest's, find none otherwise.
pub const MINIMUM_VERSION: Version = Version {
    major: 1,
    minor: 8,
    patch: 0,
};

impl Version {
    /// Reads `1.15.0`, `v1.15.0` or `1.15.0-dev`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix('v').unwrap_or(text);
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let mut numbers = text[..end].split('.').map(|number| number.parse().ok());
        let version = Self {
            major: numbers.next()??,
            minor: numbers.next()??,
            patch: numbers.next()??,
        };
        numbers.next().is_none().then_some(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        let version = |text| Version::parse(text).expect("a version");
        assert!(version("1.15.0-dev") > version("v1.8.0"));
        assert!(version("1.7.99") < MINIMUM_VERSION);
        assert_eq!(version("1.8.0\n"), MINIMUM_VERSION);
        for text in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "a.b.c",
            "1..2",
            "99999999999.1.1",
        ] {
            assert_eq!(Version::parse(text), None, "{text:?}");
        }
    }
}
