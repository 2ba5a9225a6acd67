//! Names of stub files and of the drives they stand for.

use data_encoding::BASE32_NOPAD;

/// What a reserved drive is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A container's own writable disk (`ctrstub<i>`, the original's).
    Container,
    /// A drive mount asked for with CreateVM (`drivemntstub<i>`, the original's).
    DriveMount,
    /// An image that VMs share, read-only (`imgstub<i>`, ours).
    Image,
    /// A volume of a container, writable (`volstub<i>`, ours).
    Volume,
}

impl Kind {
    /// File name of this kind's stub number `index`, counted from 0.
    #[must_use]
    pub fn stub_name(self, index: usize) -> String {
        let prefix = match self {
            Self::Container => "ctrstub",
            Self::DriveMount => "drivemntstub",
            Self::Image => "imgstub",
            Self::Volume => "volstub",
        };
        format!("{prefix}{index}")
    }
}

/// The drive id for a stub's file name: base32 (RFC 4648) without padding, because Firecracker accepts only
/// letters, digits and underscores.
#[must_use]
pub fn drive_id(stub_name: &str) -> String {
    BASE32_NOPAD.encode(stub_name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_are_the_original_runtimes() {
        assert_eq!(Kind::Container.stub_name(0), "ctrstub0");
        assert_eq!(Kind::DriveMount.stub_name(12), "drivemntstub12");
        assert_eq!(Kind::Image.stub_name(3), "imgstub3");
        assert_eq!(Kind::Volume.stub_name(1), "volstub1");
        assert_eq!(drive_id("ctrstub0"), "MN2HE43UOVRDA");
    }
}
