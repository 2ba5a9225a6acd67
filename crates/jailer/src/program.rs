//! The VMM's program: where it is, and which one the kernel executes in its place when it is linked dynamically (elf(5)).

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::settings_file;

/// Class, byte order and version after the magic: 64 bits, little endian, as all that a VMM runs on.
const IDENTITY: &[u8] = b"\x7fELF\x02\x01\x01";
/// Length of the header, and in it the offsets of: where the program headers are, how long each is, how many.
const HEADER: usize = 64;
const HEADERS_AT: usize = 32;
const HEADER_LENGTH_AT: usize = 54;
const HEADER_COUNT_AT: usize = 56;
/// Length of a program header, and in it the offsets of: type, place in the file, length there.
const PROGRAM_HEADER: usize = 56;
const TYPE_AT: usize = 0;
const PLACE_AT: usize = 8;
const LENGTH_AT: usize = 32;
/// The type of the one that names the interpreter.
const PT_INTERP: u32 = 3;
/// Longest name that the kernel takes (`PATH_MAX`).
const LONGEST_NAME: u64 = 4096;

/// A bare name as a file on `PATH`.
pub(crate) fn find(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&path).map(|directory| directory.join(program));
    candidates
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| program.to_owned())
}

/// The program that the kernel executes in `program`'s place, by its path; `None` for one that is linked statically,
/// and for what is no program at all.
pub(crate) fn interpreter(program: &Path) -> Option<PathBuf> {
    let file = settings_file::open(program).ok()?;
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).ok()?;
    if !header.starts_with(IDENTITY)
        || usize::from(u16_at(&header, HEADER_LENGTH_AT)?) != PROGRAM_HEADER
    {
        return None;
    }
    let at = u64_at(&header, HEADERS_AT)?;
    for number in 0..u64::from(u16_at(&header, HEADER_COUNT_AT)?) {
        let mut header = [0; PROGRAM_HEADER];
        let place = at.checked_add(number * PROGRAM_HEADER as u64)?;
        file.read_exact_at(&mut header, place).ok()?;
        if u32_at(&header, TYPE_AT)? == PT_INTERP {
            return name(
                &file,
                u64_at(&header, PLACE_AT)?,
                u64_at(&header, LENGTH_AT)?,
            );
        }
    }
    None
}

/// The path of `length` bytes with its NUL.
fn name(file: &File, at: u64, length: u64) -> Option<PathBuf> {
    if length > LONGEST_NAME {
        return None;
    }
    let mut name = vec![0; usize::try_from(length).ok()?];
    file.read_exact_at(&mut name, at).ok()?;
    let end = name.iter().position(|byte| *byte == 0)?;
    Some(OsStr::from_bytes(&name[..end]).into())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A program that is linked dynamically, as far as this module looks at it.
#[cfg(test)]
pub(crate) fn linked(interpreter: &str) -> Vec<u8> {
    let mut file = vec![0; HEADER + 2 * PROGRAM_HEADER];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, IDENTITY);
    put(HEADERS_AT, &(HEADER as u64).to_le_bytes());
    put(HEADER_LENGTH_AT, &56_u16.to_le_bytes());
    put(HEADER_COUNT_AT, &2_u16.to_le_bytes());
    let second = HEADER + PROGRAM_HEADER;
    put(second + TYPE_AT, &PT_INTERP.to_le_bytes());
    put(
        second + PLACE_AT,
        &((second + PROGRAM_HEADER) as u64).to_le_bytes(),
    );
    put(
        second + LENGTH_AT,
        &(interpreter.len() as u64 + 1).to_le_bytes(),
    );
    file.extend(interpreter.bytes().chain([0]));
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interpreter_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        let of = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            interpreter(&path)
        };
        let whole = linked("/lib64/ld.so");
        assert_eq!(of(&whole), Some("/lib64/ld.so".into()));
        // Cut off anywhere, it has none, and is no reason to panic.
        for length in 0..whole.len() {
            assert_eq!(of(&whole[..length]), None, "{length}");
        }
        let mut other = whole.clone();
        other[HEADER + PROGRAM_HEADER] = 1;
        assert_eq!(of(&other), None, "linked statically");
        let mut far = whole.clone();
        far[HEADERS_AT..HEADERS_AT + 8].fill(0xff);
        assert_eq!(of(&far), None);
        let mut long = whole;
        let at = HEADER + PROGRAM_HEADER + LENGTH_AT;
        long[at..at + 8].fill(0xff);
        assert_eq!(of(&long), None);
        assert_eq!(of(b"#!/bin/sh\n"), None);
        assert_eq!(interpreter(&dir.path().join("none")), None);
    }

    #[test]
    fn a_real_program() {
        if !Path::new("/etc/debian_version").exists() {
            println!("SKIPPED: only on Debian it is known that the shell is linked dynamically");
            return;
        }
        let shell = Path::new("/bin/sh").canonicalize().unwrap();
        assert!(interpreter(&shell).is_some_and(|path| path.exists()));
    }
}
