//! Bytes that a guest sends to the metadata service: a first byte that says how the service is configured, then HTTP.

#![no_main]

use fc_tcg::mmds::{Mmds, http};
use fc_tcg::model::MmdsVersion;
use libfuzzer_sys::fuzz_target;

/// Most metadata, in bytes.
const LIMIT: usize = 4096;

fuzz_target!(|input: &[u8]| {
    let Some((options, bytes)) = input.split_first() else {
        return;
    };
    let mmds = Mmds::new(LIMIT);
    let mut state = mmds.lock();
    let value = serde_json::json!({ "latest": { "meta-data": { "id": "i-1", "n": 1 } }, "a": "b" });
    state.store.put(value).expect("less than the limit");
    if options & 1 != 0 {
        state.version = MmdsVersion::V2;
    }
    state.imds_compat = options & 2 != 0;
    // No more than the service keeps of a connection.
    let mut bytes = &bytes[..bytes.len().min(http::MAX_REQUEST)];
    let full = bytes.len() == http::MAX_REQUEST;
    while let Some(answered) = http::answer(bytes, &mut state) {
        assert!(answered.answer.starts_with(b"HTTP/1.1 "));
        assert!(!answered.answer.starts_with(b"HTTP/1.1 500"));
        if answered.last {
            return;
        }
        assert!(
            answered.request > 0,
            "the same request would be answered for ever"
        );
        bytes = &bytes[answered.request..];
    }
    assert!(
        !full || bytes.len() < http::MAX_REQUEST,
        "there is no room for the rest"
    );
});
