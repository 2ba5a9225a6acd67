//! See Cargo.toml description.
fn main() {}
