//! A VM's name for its VMM.

use sha2::{Digest, Sha256};

/// The VM's id as Firecracker takes one: at most 64 letters, digits and `-`. An id that is
/// none is shortened to one that is, told apart by a hash.
pub(super) fn vmm_id(vm_id: &str) -> String {
    const MAX: usize = 64;
    const HASH: usize = 16;
    if vm_id.len() <= MAX
        && vm_id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    {
        return vm_id.to_owned();
    }
    let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(vm_id));
    let readable: String = vm_id
        .chars()
        .take(MAX - HASH - 1)
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    format!("{readable}-{}", &hash[..HASH])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmm_ids() {
        assert_eq!(vmm_id("vm-1"), "vm-1");
        let long = vmm_id(&"v".repeat(76));
        assert_eq!(long.len(), 64);
        assert!(long.starts_with("vvv"));
        let dotted = vmm_id("a.b_c");
        assert!(dotted.starts_with("a-b-c-") && dotted != vmm_id("a_b.c"));
    }
}
