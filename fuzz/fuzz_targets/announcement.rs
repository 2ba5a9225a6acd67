//! The line with which a guest announces itself to its host.

#![no_main]

use fc_proto::guest::Announcement;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let input = &input[..input.len().min(Announcement::MAX_BYTES)];
    let Ok(announcement) = serde_json::from_slice::<Announcement>(input) else {
        return;
    };
    let line = serde_json::to_vec(&announcement).expect("what is read can be written");
    assert!(!line.contains(&b'\n'));
    let again: Announcement = serde_json::from_slice(&line).expect("what is written can be read");
    assert_eq!(again, announcement);
});
