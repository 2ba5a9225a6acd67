//! The first sector of a drive that may be a stub.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(id) = fc_stub_drive::parse(input) else {
        return;
    };
    let sector = fc_stub_drive::encode(id).expect("an id that is read can be written");
    assert_eq!(fc_stub_drive::parse(&sector), Some(id));
    let length = input.len().min(9 + id.len());
    assert_eq!(input[..length], sector[..length]);
});
