//! `firecracker-image`: builds what a VM boots, and says what is in it.
//!
//! - [`build`] leads through a build; [`output`] keeps the directory whole, [`inputs`] tells whether
//!   anything changed.
//! - Kernel: [`package`] downloads one, [`kernel`] unpacks it ([`decompress`]), [`modules`] selects its modules.
//! - Images: [`initrd`] ([`cpio`]) and [`rootfs`] with the OCI [`runtime`].
//! - [`elf`], [`file`](mod@file) and [`tool`]: ELF files, file operations and programs, with errors that name them.
//!
//! The manifest's type is [`fc_proto::image::Manifest`]; nothing here runs on a VM's host at run time.

mod build;
mod cli;
mod cpio;
mod decompress;
mod elf;
mod file;
mod initrd;
mod inputs;
mod kernel;
mod modules;
mod output;
mod package;
mod rootfs;
mod runtime;
mod signature;
mod tool;

use std::process::ExitCode;

use fc_errors::chain;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}
