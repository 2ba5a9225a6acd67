//! A request to firecracker-tcg: method and path, a line end, the body. What is no request has a reason.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let end = input
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(input.len());
    let Ok(head) = std::str::from_utf8(&input[..end]) else {
        return;
    };
    let (method, path) = head.split_once(' ').unwrap_or((head, "/"));
    let body = input.get(end + 1..).unwrap_or_default();
    match fc_tcg::api::parse(method, path, body) {
        Ok(action) => assert!(!format!("{action:?}").is_empty()),
        Err(fault) => assert!(!fault.to_string().is_empty()),
    }
});
