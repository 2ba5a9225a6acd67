//! From what distributions ship to what Firecracker boots.
//!
//! x86-64: `bzImage` (Documentation/arch/x86/boot.rst in the kernel) holds a
//! compressed ELF vmlinux. arm64: `Image`, gzip'd or in an EFI zboot wrapper.

use crate::decompress::{self, decompress};

/// A file is not a kernel that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a bzImage nor a vmlinux nor an arm64 Image.
    #[error("Not a kernel: neither an ELF vmlinux, a bzImage nor an arm64 Image")]
    NotAKernel,
    /// A bzImage before boot protocol 2.08, which does not say where its payload is.
    #[error("The bzImage speaks boot protocol {0:#06x}; 0x0208 (Linux 2.6.26) or newer is needed")]
    TooOld(u16),
    /// The header points outside of the file.
    #[error("The kernel image is cut off or damaged")]
    Truncated,
    /// The payload cannot be unpacked.
    #[error("The kernel's payload cannot be decompressed")]
    Payload(#[from] decompress::Error),
    /// No `Linux version` banner in the unpacked kernel.
    #[error("The kernel does not say its release (no `Linux version` in it)")]
    NoRelease,
}

/// A kernel as Firecracker loads it.
#[derive(Debug)]
pub struct Kernel {
    /// ELF vmlinux or arm64 Image.
    pub image: Vec<u8>,
    /// As `uname -r`.
    pub release: String,
}

impl Kernel {
    /// Unpacks `data`, of any supported kind.
    pub fn from_bytes(data: Vec<u8>) -> Result<Self, Error> {
        let image = unpack(data)?;
        let release = release(&image).ok_or(Error::NoRelease)?;
        Ok(Self { image, release })
    }
}

const ELF_MAGIC: &[u8] = b"\x7fELF";

fn unpack(data: Vec<u8>) -> Result<Vec<u8>, Error> {
    if is_bootable(&data) {
        return Ok(data);
    }
    let packed = if at(&data, 0x202, 4) == Some(b"HdrS") {
        bzimage_payload(&data)?
    } else if data.starts_with(b"MZ") && at(&data, 4, 4) == Some(b"zimg") {
        // struct linux_efi_zboot_header: payload offset and size.
        let (offset, size) = (u32_at(&data, 8)?, u32_at(&data, 12)?);
        at(&data, offset, size).ok_or(Error::Truncated)?
    } else if decompress::Format::detect(&data).is_some() {
        &data
    } else {
        return Err(Error::NotAKernel);
    };
    let image = decompress(packed)?;
    if is_bootable(&image) {
        Ok(image)
    } else {
        Err(Error::NotAKernel)
    }
}

fn is_bootable(data: &[u8]) -> bool {
    data.starts_with(ELF_MAGIC) || at(data, 0x38, 4) == Some(b"ARM\x64")
}

fn bzimage_payload(data: &[u8]) -> Result<&[u8], Error> {
    let version = at(data, 0x206, 2).ok_or(Error::Truncated)?;
    let version = u16::from_le_bytes([version[0], version[1]]);
    if version < 0x0208 {
        return Err(Error::TooOld(version));
    }
    // A count of 0 stands for 4, for the sake of very old boot loaders.
    let sectors = match data[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let offset = (sectors + 1) * 512 + u32_at(data, 0x248)?;
    at(data, offset, u32_at(data, 0x24c)?).ok_or(Error::Truncated)
}

fn at(data: &[u8], offset: usize, length: usize) -> Option<&[u8]> {
    data.get(offset..offset.checked_add(length)?)
}

fn u32_at(data: &[u8], offset: usize) -> Result<usize, Error> {
    let bytes = data
        .get(offset..)
        .and_then(|d| d.first_chunk::<4>())
        .ok_or(Error::Truncated)?;
    Ok(u32::from_le_bytes(*bytes) as usize)
}

/// Finds the banner `Linux version <release> (...`. The kernel also holds a
/// format string for it, hence the look at what follows.
fn release(image: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = image;
    while let Some(found) = find(rest, BANNER) {
        rest = &rest[found + BANNER.len()..];
        if rest.first()?.is_ascii_digit() {
            let end = rest.iter().take(128).position(|&b| b == b' ' || b == 0)?;
            return String::from_utf8(rest[..end].to_vec()).ok();
        }
    }
    None
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(i) = haystack[from..].iter().position(|&b| b == first) {
        if haystack[from + i..].starts_with(needle) {
            return Some(from + i);
        }
        from += i + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decompress::tests::lz4_legacy_kernel;

    fn vmlinux() -> Vec<u8> {
        let mut image = ELF_MAGIC.to_vec();
        image.resize(5000, 7);
        image.extend(b"Linux version %s (%s)\0Linux version 6.1.0-9-test (builder) #1\0");
        image
    }

    fn bzimage(payload: &[u8], sectors: u8) -> Vec<u8> {
        let setup = (usize::from(if sectors == 0 { 4 } else { sectors }) + 1) * 512;
        let mut image = vec![0; setup + 100];
        image[0x1f1] = sectors;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&100u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend(payload);
        image.extend([0xee; 64]);
        image
    }

    #[test]
    fn unpacks_a_bzimage() {
        for sectors in [0, 1, 27] {
            let kernel =
                Kernel::from_bytes(bzimage(&lz4_legacy_kernel(&vmlinux()), sectors)).unwrap();
            assert_eq!(kernel.image, vmlinux());
            assert_eq!(kernel.release, "6.1.0-9-test");
        }
    }

    #[test]
    fn takes_a_vmlinux_as_it_is() {
        assert_eq!(Kernel::from_bytes(vmlinux()).unwrap().image, vmlinux());
    }

    #[test]
    fn unpacks_arm64_images() {
        let mut image = vec![0; 4096];
        image[0x38..0x3c].copy_from_slice(b"ARM\x64");
        image.extend(b"Linux version 6.12.1-arm64 (x)");
        let packed = lz4_legacy_kernel(&image);
        let kernel = Kernel::from_bytes(packed.clone()).unwrap();
        assert_eq!(
            (kernel.image, kernel.release.as_str()),
            (image.clone(), "6.12.1-arm64")
        );

        let mut zboot = vec![0; 64];
        zboot[..2].copy_from_slice(b"MZ");
        zboot[4..8].copy_from_slice(b"zimg");
        zboot[8..12].copy_from_slice(&64u32.to_le_bytes());
        zboot[12..16].copy_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
        zboot.extend(packed);
        assert_eq!(Kernel::from_bytes(zboot).unwrap().image, image);
    }

    #[test]
    fn refuses_what_is_no_kernel() {
        assert!(matches!(
            Kernel::from_bytes(b"#!/bin/sh\n".to_vec()),
            Err(Error::NotAKernel)
        ));
        assert!(matches!(
            Kernel::from_bytes(Vec::new()),
            Err(Error::NotAKernel)
        ));
        let packed = lz4_legacy_kernel(b"no kernel either");
        assert!(matches!(
            Kernel::from_bytes(bzimage(&packed, 2)),
            Err(Error::NotAKernel)
        ));
        let mut cut = bzimage(&lz4_legacy_kernel(&vmlinux()), 2);
        cut.truncate(1700);
        assert!(matches!(Kernel::from_bytes(cut), Err(Error::Truncated)));
        let mut old = bzimage(&[], 2);
        old[0x206] = 2;
        assert!(matches!(
            Kernel::from_bytes(old),
            Err(Error::TooOld(0x0202))
        ));
        let nameless = [ELF_MAGIC, &[0; 100]].concat();
        assert!(matches!(
            Kernel::from_bytes(nameless),
            Err(Error::NoRelease)
        ));
    }
}
