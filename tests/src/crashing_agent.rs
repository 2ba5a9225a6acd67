//! Stands in for `/sbin/init` in a guest and ends at once, as a crashing agent does.

fn main() {
    eprintln!("crashing-agent: giving up");
    std::process::exit(3);
}
