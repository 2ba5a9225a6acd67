//! Everything a directory tree tells about itself, for comparing two of them.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One line per file, sorted by path: type, mode, owner, links, size, times, device, attributes, content.
pub fn listing(root: &Path) -> Vec<String> {
    let mut lines = BTreeMap::new();
    let mut groups = BTreeMap::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        let name = path.strip_prefix(root).unwrap().to_path_buf();
        let inode = fs::symlink_metadata(&path).unwrap();
        if inode.is_file() {
            groups
                .entry((inode.dev(), inode.ino()))
                .or_insert_with(Vec::new)
                .push(name.clone());
        }
        lines.insert(name, describe(&path));
    }
    for mut group in groups.into_values() {
        group.sort();
        for name in &group {
            lines
                .get_mut(name)
                .unwrap()
                .push_str(&format!(" same as {group:?}"));
        }
    }
    let line = |(name, text): (PathBuf, String)| format!("{} {text}", name.display());
    lines.into_iter().map(line).collect()
}

fn describe(path: &Path) -> String {
    let inode = fs::symlink_metadata(path).unwrap();
    let kind = inode.file_type();
    let mut text = format!("{:o} {}:{}", inode.mode(), inode.uid(), inode.gid());
    text += &format!(" at {}.{}", inode.mtime(), inode.mtime_nsec());
    if kind.is_file() {
        let mut hash = DefaultHasher::new();
        fs::read(path).unwrap().hash(&mut hash);
        text += &format!(
            " {} bytes {:x}, {} links",
            inode.len(),
            hash.finish(),
            inode.nlink()
        );
    } else if kind.is_symlink() {
        text += &format!(" -> {:?}", fs::read_link(path).unwrap());
    } else if kind.is_char_device() || kind.is_block_device() {
        text += &format!(" device {:x}", inode.rdev());
    }
    for (name, value) in attributes(path) {
        text += &format!(" {name}={value:x?}");
    }
    text
}

fn attributes(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0_u8; 4096];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    names.truncate(length);
    let mut found: Vec<_> = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0_u8; 4096];
            let length = rustix::fs::lgetxattr(path, &name, value.as_mut_slice()).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect();
    found.sort();
    found
}
