//! The first line of a host program on the vsock socket.

#![no_main]

use fc_vhost_vsock::fuzzing::connect_line;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((port, length)) = connect_line(input) else {
        return;
    };
    assert_eq!(input[length - 1], b'\n');
    // The line alone says the same, and what is not all of it says nothing yet.
    assert_eq!(connect_line(&input[..length]), Some((port, length)));
    for end in 0..length {
        assert_eq!(connect_line(&input[..end]), None);
    }
    let line = format!("CONNECT {port}\n");
    assert_eq!(connect_line(line.as_bytes()), Some((port, line.len())));
});
