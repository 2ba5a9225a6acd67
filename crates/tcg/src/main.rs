//! The `firecracker-tcg` program; see the library `fc_tcg`.

fn main() {
    fc_tcg::run::main().now();
}
