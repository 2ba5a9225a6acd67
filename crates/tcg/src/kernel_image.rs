//! Tells a kernel from a file that is none, before QEMU is asked to boot it.

use std::io::Read;

/// What the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelKind {
    /// An uncompressed x86_64 `vmlinux`.
    Elf,
    /// A `bzImage`.
    BzImage,
}

/// Why a file is not a kernel that boots here.
#[derive(Debug, thiserror::Error)]
pub enum KernelImageError {
    /// Reading failed.
    #[error("Cannot read the kernel image")]
    Read(#[source] std::io::Error),
    /// Neither format.
    #[error("Not a kernel: neither an ELF vmlinux nor a bzImage")]
    Unknown,
    /// ELF, but for another machine.
    #[error("Not an x86_64 kernel: the ELF file is of class {class}, machine {machine}")]
    OtherMachine {
        /// `EI_CLASS`: 1 is 32 bit, 2 is 64 bit.
        class: u8,
        /// `e_machine`; 62 is x86_64.
        machine: u16,
    },
}

/// Reads the head of `file` (its position moves) and says what it holds.
///
/// # Errors
/// Unreadable, or not a kernel for x86_64.
pub fn identify(file: &mut impl Read) -> Result<KernelKind, KernelImageError> {
    let mut head = Vec::new();
    file.take(0x206)
        .read_to_end(&mut head)
        .map_err(KernelImageError::Read)?;
    identify_head(&head)
}

fn identify_head(head: &[u8]) -> Result<KernelKind, KernelImageError> {
    // The ELF header as in elf(5): EI_CLASS is byte 4, e_machine bytes 18 and 19.
    if let [0x7f, b'E', b'L', b'F', class, ..] = *head
        && let Some(machine) = head.get(18..20)
    {
        let machine = u16::from_le_bytes([machine[0], machine[1]]);
        if class == 2 && machine == 62 {
            return Ok(KernelKind::Elf);
        }
        return Err(KernelImageError::OtherMachine { class, machine });
    }
    // The boot protocol's signature (Documentation/arch/x86/boot.rst).
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(KernelKind::BzImage);
    }
    Err(KernelImageError::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let mut elf = vec![0; 64];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[18] = 62;
        assert_eq!(identify_head(&elf).unwrap(), KernelKind::Elf);
        elf[18] = 183;
        assert!(matches!(
            identify_head(&elf),
            Err(KernelImageError::OtherMachine {
                class: 2,
                machine: 183
            })
        ));
        let mut bz = vec![0; 0x206];
        bz[0x202..].copy_from_slice(b"HdrS");
        assert_eq!(identify_head(&bz).unwrap(), KernelKind::BzImage);
        for bad in [&b""[..], b"\x7fELF", b"#!/bin/sh\n"] {
            assert!(matches!(identify_head(bad), Err(KernelImageError::Unknown)));
        }
    }
}
