//! Generates messages and async ttrpc services from `proto/` at the workspace root.

use std::fs;
use std::path::{Path, PathBuf};

use ttrpc_codegen::{Codegen, Customize};

const MESSAGES: [&str; 8] = [
    "types",
    "firecracker",
    "fccontrol",
    "drivemount",
    "ioproxy",
    "vmevents",
    "agent",
    "vm",
];
/// Files that declare a service, the name that the generator gives it, and its name on the wire.
const SERVICES: [(&str, &str, &str); 5] = [
    ("fccontrol", ".Firecracker", "Firecracker"),
    ("drivemount", ".DriveMounter", "DriveMounter"),
    ("ioproxy", ".IoProxy", "IOProxy"),
    ("agent", AGENT, AGENT),
    ("vm", VM, VM),
];
const AGENT: &str = "aws.firecracker.containerd.agent.v1.Agent";
const VM: &str = "aws.firecracker.containerd.vm.v1.Vm";

fn main() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("../../proto");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
    println!("cargo:rerun-if-changed={}", root.display());
    Codegen::new()
        .inputs(MESSAGES.map(|f| root.join(format!("{f}.proto"))))
        .include(&root)
        .out_dir(&out)
        .rust_protobuf()
        .customize(Customize {
            async_all: true,
            ..Customize::default()
        })
        .run()
        .expect("protobuf code generation");
    for (file, generated, wire) in SERVICES {
        name_service(&out.join(format!("{file}_ttrpc.rs")), generated, wire);
    }
    let modules = MESSAGES
        .iter()
        .map(|f| format!("pub mod {f};\n"))
        .chain(
            SERVICES
                .iter()
                .map(|(f, _, _)| format!("pub mod {f}_ttrpc;\n")),
        )
        .collect::<String>();
    fs::write(out.join("modules.rs"), modules).expect("write modules.rs");
}

/// The generator puts a dot before a service without a package and changes its capitals.
fn name_service(file: &Path, generated: &str, wire: &str) {
    let code = fs::read_to_string(file).expect("read generated code");
    assert!(
        code.contains(&format!("\"{generated}\"")),
        "{} does not name the service {generated}",
        file.display()
    );
    let code = code.replace(&format!("\"{generated}\""), &format!("\"{wire}\""));
    fs::write(file, code).expect("write generated code");
}
