//! The tar stream in which a guest sends what a container wrote.

#![no_main]

use fc_rootfs::read_for_fuzzing;
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 512;
/// Where a header's checksum is (POSIX.1-2017, pax).
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// Gives every block but empty ones the checksum of a header, without which hardly a changed header would be read
/// any further.
fn mend(stream: &mut [u8]) {
    for block in stream.chunks_exact_mut(BLOCK) {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        block[CHECKSUM].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// What is counted against the limit is what was sent.
fn check(stream: &[u8]) {
    if let Ok((headers, data)) = read_for_fuzzing(stream) {
        assert!(headers + data <= stream.len() as u64);
    }
}

fuzz_target!(|input: &[u8]| {
    check(input);
    let mut mended = input.to_vec();
    mend(&mut mended);
    check(&mended);
});
