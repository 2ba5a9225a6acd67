//! Signatures at the end of kernel modules.
//!
//! Layout, from the end (`include/linux/module_signature.h`): the text [`MAGIC`], 12 bytes `struct
//! module_signature`, the signature. Of the struct's bytes, the lengths of the signer's name (3) and key id (4),
//! both in front of the signature and 0 for PKCS#7, and the big-endian length of the signature (8..12) matter here.

/// What a signed module ends with.
const MAGIC: &[u8] = b"~Module signature appended~\n";

/// Size of `struct module_signature`.
const HEADER: usize = 12;

/// Cuts the signature off `module`; leaves it alone if it has none, or one that is damaged.
///
/// Images come with a digest in their manifest, so in the guest the signature would protect from nothing.
/// Checking it costs most of the time that loading a module takes, and a kernel whose check goes wrong does
/// not load the module at all, while one without is loaded and taints the kernel. Only `module.sig_enforce=1`
/// on the kernel's command line, or a kernel built to insist, refuses it.
pub fn strip(module: &mut Vec<u8>) {
    if let Some(length) = unsigned_length(module) {
        module.truncate(length);
    }
}

fn unsigned_length(module: &[u8]) -> Option<usize> {
    let (rest, header) = module.strip_suffix(MAGIC)?.split_last_chunk::<HEADER>()?;
    let [_, _, _, signer, key_id, _, _, _, length @ ..] = *header;
    let signature = usize::try_from(u32::from_be_bytes(length)).ok()?;
    rest.len()
        .checked_sub(signature)?
        .checked_sub(usize::from(signer) + usize::from(key_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(module: &[u8], signer: &[u8], signature: &[u8]) -> Vec<u8> {
        let lengths = [0, 0, 2, u8::try_from(signer.len()).unwrap(), 0, 0, 0, 0];
        let length = u32::try_from(signature.len()).unwrap().to_be_bytes();
        [module, signer, signature, &lengths, &length, MAGIC].concat()
    }

    fn stripped(mut module: Vec<u8>) -> Vec<u8> {
        strip(&mut module);
        module
    }

    #[test]
    fn signed_modules_lose_their_signature() {
        assert_eq!(stripped(signed(b"\x7fELF", b"", &[7; 300])), b"\x7fELF");
        assert_eq!(stripped(signed(b"\x7fELF", b"me", &[7; 9])), b"\x7fELF");
    }

    #[test]
    fn others_stay_as_they_are() {
        let unsigned = b"\x7fELF and no more".to_vec();
        assert_eq!(stripped(unsigned.clone()), unsigned);
        assert_eq!(stripped(MAGIC.to_vec()), MAGIC);
        // Longer than the file.
        let mut damaged = signed(b"\x7fELF", b"", b"s");
        let at = damaged.len() - MAGIC.len() - 4;
        damaged[at] = 1;
        assert_eq!(stripped(damaged.clone()), damaged);
    }
}
