//! What a stub drive is: the 512-byte file that holds a drive's place until a real one is attached.
//!
//! Firecracker cannot add a drive to a running VM, so drives are reserved at boot with small files that
//! later give way to the real ones (`PATCH /drives`). The guest tells its reserved drives apart by reading
//! their first sector: it carries the drive's id, behind a magic that no file system starts with.
//!
//! The content is the original runtime's, so that old guests understand our drives and new guests theirs:
//!
//! | offset | bytes | what                          |
//! |-------:|------:|-------------------------------|
//! |      0 |     8 | magic `D6 F4 D8 F5 D7 B1 B1 B1` |
//! |      8 |     1 | length of the id in bytes     |
//! |      9 |     n | the id, ASCII                 |
//! |    9+n |       | zeros up to 512               |
//!
//! Used by both sides of the VM. What attaches drives lives elsewhere: `fc-drives` on the host, the agent in
//! the guest.

#![forbid(unsafe_code)]

mod content;
mod file;
mod name;

pub use content::{InvalidId, MAX_ID, SECTOR, SECTORS, encode, parse};
pub use file::{CreateError, create};
pub use name::{Kind, drive_id};
