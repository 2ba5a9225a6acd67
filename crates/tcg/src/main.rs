//! The `firecracker-tcg` program; see the library `fc_tcg`.

fn main() -> std::process::ExitCode {
    fc_tcg::run::main().into()
}
