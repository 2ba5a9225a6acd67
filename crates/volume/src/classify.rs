//! What each of a container's mounts is: something of the guest's, or a volume of the host.

use std::path::{Component, Path, PathBuf};

use crate::spec::{AcceptedCopies, Mount, Spec};
use crate::{Refusal, VolumeError};

/// Where the guest keeps what comes from the host: bind mounts from there are the guest's own matter.
const GUEST_PATHS: [&str; 3] = ["/container", "/volumes", "/vmv"];

/// The mount with which clients of the original run the guest's `volume-init` in a container, without a marker:
/// source and destination.
const GUEST_PROGRAMS: (&str, &str) = ("/usr/local/bin", "/hostbin");

/// Type prefix with which a client says that a mount is for the guest as it is (the original's marker).
const GUEST_MARKER: &str = "vm:";

/// Filesystems without a device: the guest's kernel has its own.
const VIRTUAL_FSTYPES: [&str; 16] = [
    "proc",
    "sysfs",
    "tmpfs",
    "ramfs",
    "devpts",
    "devtmpfs",
    "mqueue",
    "cgroup",
    "cgroup2",
    "hugetlbfs",
    "bpf",
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "fusectl",
];

/// Filesystems in an image file or on a block device that the guest's kernel has.
const IMAGE_FSTYPES: [&str; 5] = ["ext4", "xfs", "btrfs", "erofs", "squashfs"];
/// Those of them that cannot be written to.
const READ_ONLY_FSTYPES: [&str; 2] = ["erofs", "squashfs"];

/// A mount whose content is on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its place in the spec's list of mounts.
    pub number: usize,
    /// Where it is in the container.
    pub destination: String,
    /// What it is on the host, an absolute path.
    pub source: PathBuf,
    /// What kind of thing `source` must be.
    pub kind: VolumeKind,
    /// The mount's options as in the spec.
    pub options: Vec<String>,
    /// Whether the container cannot write to it.
    pub read_only: bool,
    /// Whether a copy will do although the container may write to it.
    pub copy_accepted: bool,
}

/// Kinds of [`Volume`]s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeKind {
    /// A file or directory of the host, with what is mounted below it if `recursive`.
    Bind {
        /// `rbind` rather than `bind`.
        recursive: bool,
    },
    /// A filesystem of type `fstype` in an image file or on a block device.
    Image {
        /// `ext4`, `xfs`, `btrfs`, `erofs` or `squashfs`.
        fstype: String,
    },
}

/// A mount of the spec, classified.
#[derive(Debug)]
pub(crate) enum Class {
    /// Nothing to do.
    Guest,
    /// The guest's, once the marker of its type is gone.
    Marked(Mount),
    /// The host's.
    Host(Volume),
    /// Neither.
    Refused(VolumeError),
}

/// Classifies the mounts of `spec`. `guest_paths` are paths in the guest besides [`GUEST_PATHS`].
pub(crate) fn classify(spec: &Spec, guest_paths: &[PathBuf]) -> Result<Vec<Class>, VolumeError> {
    let mounts = spec.mounts()?;
    let accepted = spec.accepted_copies();
    if let Some(unknown) = accepted.unknown(&mounts) {
        return Err(VolumeError::UnknownCopy(unknown.to_owned()));
    }
    let classes = mounts.into_iter().enumerate();
    Ok(classes
        .map(|(number, mount)| classify_one(number, mount, guest_paths, &accepted))
        .collect())
}

fn classify_one(
    number: usize,
    mount: Mount,
    guest_paths: &[PathBuf],
    accepted: &AcceptedCopies,
) -> Class {
    if let Some(fstype) = mount.fstype.strip_prefix(GUEST_MARKER) {
        let fstype = fstype.to_owned();
        return Class::Marked(Mount { fstype, ..mount });
    }
    let bind = mount.is_bind();
    if !bind && VIRTUAL_FSTYPES.contains(&mount.fstype.as_str()) {
        return Class::Guest;
    }
    let refused = |mount: &Mount, why| {
        Class::Refused(VolumeError::Refused {
            destination: mount.destination.clone(),
            why,
        })
    };
    let source = PathBuf::from(&mount.source);
    if !source.is_absolute() || source.components().any(|part| part == Component::ParentDir) {
        return if bind || IMAGE_FSTYPES.contains(&mount.fstype.as_str()) {
            refused(&mount, Refusal::RelativeSource(source))
        } else {
            refused(&mount, Refusal::UnknownType(mount.fstype.clone()))
        };
    }
    let kind = if bind {
        let programs = (mount.source.as_str(), mount.destination.as_str()) == GUEST_PROGRAMS;
        if is_guest_path(&source, guest_paths) || (programs && mount.is_read_only()) {
            return Class::Guest;
        }
        if let Some(option) = mount
            .options
            .iter()
            .find(|o| matches!(o.as_str(), "shared" | "rshared"))
        {
            return refused(&mount, Refusal::Option(option.clone()));
        }
        VolumeKind::Bind {
            recursive: mount.has("rbind"),
        }
    } else if IMAGE_FSTYPES.contains(&mount.fstype.as_str()) {
        VolumeKind::Image {
            fstype: mount.fstype.clone(),
        }
    } else {
        return refused(&mount, Refusal::UnknownType(mount.fstype.clone()));
    };
    let read_only = mount.is_read_only()
        || matches!(&kind, VolumeKind::Image { fstype } if READ_ONLY_FSTYPES.contains(&fstype.as_str()));
    Class::Host(Volume {
        number,
        copy_accepted: accepted.accepts(&mount.destination),
        destination: mount.destination,
        source,
        kind,
        options: mount.options,
        read_only,
    })
}

fn is_guest_path(path: &Path, more: &[PathBuf]) -> bool {
    let fixed = GUEST_PATHS.iter().map(Path::new);
    fixed
        .chain(more.iter().map(PathBuf::as_path))
        .any(|guest| path.starts_with(guest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(mount: &serde_json::Value) -> Class {
        let json = serde_json::json!({"mounts": [mount]}).to_string();
        let spec = Spec::parse(json.as_bytes()).unwrap();
        classify(&spec, &["/data".into()]).unwrap().remove(0)
    }

    fn mount(fstype: &str, source: &str, options: &[&str]) -> Class {
        class(
            &serde_json::json!({"destination": "/d", "type": fstype, "source": source, "options": options}),
        )
    }

    #[test]
    fn what_is_the_guests_is_left_alone() {
        for (fstype, source) in [("proc", "proc"), ("tmpfs", "tmpfs"), ("cgroup", "cgroup")] {
            assert!(matches!(mount(fstype, source, &[]), Class::Guest));
        }
        for source in [
            "/container/c/volumes/0",
            "/vmv/a",
            "/volumes/x",
            "/data",
            "/data/x",
        ] {
            assert!(
                matches!(mount("bind", source, &["rbind"]), Class::Guest),
                "{source}"
            );
        }
        match mount("vm:bind", "/etc/resolv.conf", &["rbind", "ro"]) {
            Class::Marked(mount) => assert_eq!(mount.fstype, "bind"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_guests_programs_are_known_by_both_of_their_places() {
        let class = |destination: &str, access: &str| {
            class(&serde_json::json!({
                "type": "bind",
                "source": "/usr/local/bin",
                "destination": destination,
                "options": ["bind", access],
            }))
        };
        assert!(matches!(class("/hostbin", "ro"), Class::Guest));
        assert!(matches!(class("/hostbin", "rw"), Class::Host(_)));
        assert!(matches!(class("/usr/local/bin", "ro"), Class::Host(_)));
    }

    #[test]
    fn a_path_that_only_begins_alike_is_the_hosts() {
        for source in ["/database", "/containers/c", "/etc/hosts"] {
            let Class::Host(volume) = mount("bind", source, &["rbind", "ro"]) else {
                panic!("{source}");
            };
            assert_eq!(volume.source, Path::new(source));
            assert_eq!(volume.kind, VolumeKind::Bind { recursive: true });
            assert!(volume.read_only);
        }
        assert!(matches!(
            mount("bind", "/vmv/../etc", &[]),
            Class::Refused(_)
        ));
        assert!(matches!(mount("bind", "etc", &[]), Class::Refused(_)));
    }

    #[test]
    fn images_are_read_only_by_option_or_by_nature() {
        let read_only = |fstype, options| match mount(fstype, "/i", options) {
            Class::Host(volume) => {
                assert_eq!(
                    volume.kind,
                    VolumeKind::Image {
                        fstype: fstype.into()
                    }
                );
                volume.read_only
            }
            other => panic!("{other:?}"),
        };
        assert!(!read_only("ext4", &[]) && read_only("ext4", &["ro"]));
        assert!(!read_only("xfs", &["rw"]) && !read_only("btrfs", &[]));
        assert!(read_only("erofs", &["rw"]) && read_only("squashfs", &[]));
    }

    #[test]
    fn the_rest_is_refused_by_name() {
        for (fstype, options, name) in [
            ("nfs", &[][..], "nfs"),
            ("", &[], "no type"),
            ("bind", &["rshared"], "rshared"),
        ] {
            match mount(fstype, "/x", options) {
                Class::Refused(error) => {
                    let text = std::error::Error::source(&error).unwrap().to_string();
                    assert!(text.contains(name), "{text}");
                    assert!(error.to_string().contains("/d"), "{error}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
