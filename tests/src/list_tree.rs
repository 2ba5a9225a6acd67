//! Prints everything that the tree at its argument tells about itself, one line per file: the end-to-end tests run
//! it on the host and in a container and compare.

// The tests of the crate that makes the images compare in the same way.
#[path = "../../crates/rootfs/tests/layers/listing.rs"]
mod listing;

use std::path::Path;

fn main() {
    let root = std::env::args_os().nth(1).expect("a directory's path");
    for line in listing::listing(Path::new(&root)) {
        println!("{line}");
    }
}
