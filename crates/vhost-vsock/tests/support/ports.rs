//! Ports of the VM test. In the guest unless said otherwise.

/// Sends back what it gets.
pub const ECHO: u32 = 7;
/// Takes a line `seed`, then that pattern to its end, and answers with the number of bytes.
pub const SINK: u32 = 9;
/// A [`SINK`] that reads nothing before somebody connects to [`RELEASE`].
pub const HELD_SINK: u32 = 10;
/// See [`HELD_SINK`].
pub const RELEASE: u32 = 11;
/// Takes a line `length seed` and answers with that pattern.
pub const SOURCE: u32 = 19;
/// Accepts and closes.
pub const CLOSE_AT_ONCE: u32 = 15;
/// Sends `bye`, ends its half and reports what it gets after that to [`HALF_CLOSE_REPORT`].
pub const HALF_CLOSE: u32 = 16;
/// On the host.
pub const HALF_CLOSE_REPORT: u32 = 1600;
/// Takes a line `port length seed`, connects to that host port, sends the pattern, expects the
/// pattern of `seed + 1`, and answers with its length or the kind of the error.
pub const CONNECT_OUT: u32 = 13;
/// On the host: the guest connects when it is ready.
pub const READY: u32 = 1;
/// Reads the whole disk, past the guest's cache, and answers with its length.
pub const READ_DISK: u32 = 20;
/// Takes anything to its end, looks at none of it, and answers with its length.
pub const DISCARD: u32 = 21;
/// Takes a line `length` and answers with as many zeroes.
pub const ZEROES: u32 = 22;
