//! Resolves a user by the rootfs's own `/etc/passwd` and `/etc/group`.
//!
//! For rootfs that only the guest can see: the host could not look into it, so the spec carries
//! the user as text. Forms: `user`, `uid`, `user:group`, `uid:gid`, `uid:group`, `user:gid`.

use std::io;
use std::path::{Path, PathBuf};

use super::spec::{Spec, SpecError};

/// Why a user could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Neither of the forms.
    #[error("Invalid USER value {0:?}: at most one colon is allowed")]
    Form(String),
    /// No such line in the rootfs's file.
    #[error("The container's image has no {kind} {name:?}")]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// What was looked for.
        name: String,
    },
    /// The file cannot be read.
    #[error("Cannot read {path}")]
    Read {
        /// Below the rootfs.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The spec cannot take it.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

/// Rewrites the spec's user by what `rootfs` says about its name. Without a name only the
/// supplementary groups of root are added.
///
/// # Errors
/// See [`UserError`].
pub(crate) fn resolve(spec: &mut Spec, rootfs: &Path) -> Result<(), UserError> {
    let passwd = read(rootfs, "etc/passwd")?;
    let group = read(rootfs, "etc/group")?;
    let name = spec.user_name().to_owned();
    if name.is_empty() {
        spec.add_groups(&memberships(&group, "root"))?;
        return Ok(());
    }
    let resolved = look_up(&name, &passwd, &group)?;
    spec.set_user(resolved.uid, resolved.gid, &resolved.groups)?;
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

fn look_up(text: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let parts: Vec<&str> = text.split(':').collect();
    let (user, wanted_group) = match parts[..] {
        [user] => (user, None),
        [user, group] => (user, Some(group)),
        _ => return Err(UserError::Form(text.to_owned())),
    };
    let number: Option<u32> = user.parse().ok();
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let uid: u32 = fields.get(2)?.parse().ok()?;
        let gid: u32 = fields.get(3)?.parse().ok()?;
        let matches = number.map_or(fields[0] == user, |number| number == uid);
        matches.then(|| (fields[0].to_owned(), uid, gid))
    });
    let (name, uid, mut gid) = match (entry, number) {
        (Some(entry), _) => entry,
        // An id needs no line; its group is then root's.
        (None, Some(uid)) => (String::new(), uid, 0),
        (None, None) => {
            return Err(UserError::Unknown {
                kind: "user",
                name: user.to_owned(),
            });
        }
    };
    if let Some(wanted) = wanted_group {
        gid = group_id(wanted, group).ok_or_else(|| UserError::Unknown {
            kind: "group",
            name: wanted.to_owned(),
        })?;
    }
    let groups = if name.is_empty() {
        Vec::new()
    } else {
        memberships(group, &name)
    };
    Ok(User { uid, gid, groups })
}

fn group_id(wanted: &str, group: &str) -> Option<u32> {
    if let Ok(gid) = wanted.parse() {
        return Some(gid);
    }
    groups(group).find_map(|(name, gid, _)| (name == wanted).then_some(gid))
}

/// Ids of the groups that list `user` as a member.
fn memberships(group: &str, user: &str) -> Vec<u32> {
    groups(group)
        .filter(|(_, _, members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
        .collect()
}

/// Name, id and members of each group.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let gid = fields.get(2)?.parse().ok()?;
        Some((fields[0], gid, fields.get(3).copied().unwrap_or("")))
    })
}

/// A file of the rootfs; empty when there is none. A link out of the rootfs is not followed: the
/// container's image must not decide what the guest reads.
fn read(rootfs: &Path, name: &str) -> Result<String, UserError> {
    let path = rootfs.join(name);
    let root = rootfs.canonicalize();
    match (path.canonicalize(), root) {
        (Ok(real), Ok(root)) if real.starts_with(&root) => {
            std::fs::read_to_string(&real).map_err(|source| UserError::Read { path, source })
        }
        _ => Ok(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nwheel:x:10:root,web\nvideo:x:44:web\n";

    fn user(uid: u32, gid: u32, groups: &[u32]) -> User {
        User {
            uid,
            gid,
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn every_form_is_resolved() {
        let cases = [
            ("web", user(33, 34, &[10, 44])),
            ("33", user(33, 34, &[10, 44])),
            ("web:video", user(33, 44, &[10, 44])),
            ("33:7", user(33, 7, &[10, 44])),
            ("web:7", user(33, 7, &[10, 44])),
            ("99:video", user(99, 44, &[])),
            ("99", user(99, 0, &[])),
        ];
        for (text, expected) in cases {
            assert_eq!(look_up(text, PASSWD, GROUP).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn unknown_names_and_forms_are_refused() {
        for text in ["nobody", "web:none", "a:b:c", ""] {
            assert!(look_up(text, PASSWD, GROUP).is_err(), "{text:?}");
        }
    }

    #[test]
    fn links_out_of_the_rootfs_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("etc/passwd")).unwrap();
        assert_eq!(read(dir.path(), "etc/passwd").unwrap(), "");
    }

    #[test]
    fn roots_groups_are_added_without_a_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/group"), GROUP).unwrap();
        let json = br#"{"root":{},"process":{"user":{"uid":0}},"linux":{}}"#;
        let mut spec = Spec::adapt(json, "c", dir.path()).unwrap();
        resolve(&mut spec, dir.path()).unwrap();
        let text = String::from_utf8(spec.to_json()).unwrap();
        assert!(text.contains("\"additionalGids\":[10]"), "{text}");
    }
}
