//! What the conformance suite drives a VMM with: its command line, its API socket, its guest's console.
//!
//! - [`subject`]: which VMMs there are on this machine and what they boot.
//! - [`bound`]: how long anything is waited for.
//! - [`vmm`]: a running VMM; [`http`]: its API, byte by byte.
//! - [`initrd`], [`archive`]: a guest made on the spot; [`pattern`]: data whose every byte is known.
//!
//! Nothing here links a part of any VMM, so the same cases run against all of them. The cases, with the behaviour
//! that is expected of all, are in `tests/conformance`. `conformance-guest` is the suite's program in the guest.
//!
//! This is test code: what cannot work ends the case by a panic that says why.

pub mod archive;
pub mod bound;
pub mod http;
pub mod initrd;
pub mod pattern;
pub mod subject;
pub mod vmm;
