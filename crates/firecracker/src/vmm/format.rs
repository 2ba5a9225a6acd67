//! Whether a file is a program.
//!
//! The system's own answer is not enough: the C library gives what the kernel does not know to the shell, which
//! would try to run a broken VMM line by line.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Where an ELF file says which machine it is for, and how many bytes that takes.
const ELF_MACHINE: std::ops::Range<usize> = 18..20;

#[cfg(target_arch = "x86_64")]
const THIS_MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const THIS_MACHINE: u16 = 183;

/// Checks that `binary` starts as a program for this machine or a script does.
///
/// # Errors
/// `ENOEXEC` if it does not, or the error of reading it.
pub(super) fn check(binary: &Path) -> io::Result<()> {
    let mut start = Vec::with_capacity(ELF_MACHINE.end);
    File::open(binary)?
        .take(ELF_MACHINE.end as u64)
        .read_to_end(&mut start)?;
    if start.starts_with(b"#!") || is_elf_for_this_machine(&start) {
        Ok(())
    } else {
        Err(rustix::io::Errno::NOEXEC.into())
    }
}

fn is_elf_for_this_machine(start: &[u8]) -> bool {
    start.starts_with(b"\x7fELF") && start.get(ELF_MACHINE) == Some(&THIS_MACHINE.to_le_bytes()[..])
}
