//! What runs VMs here: KVM, the VMM, its jail.

use std::process::Command;

use fc_client::host::kvm::{self, Kvm};
use fc_client::host::vmm::{VmmChoice, choose};
use fc_client::{MINIMUM_VERSION, Version};
use fc_config::Config;
use fc_errors::chain;
use fc_jailer::Runc;

use super::Finding;

/// File name of the VMM that needs no KVM.
const EMULATOR: &str = "firecracker-tcg";

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let kvm = kvm::probe();
    let chosen = choose(config.firecracker_binary_path.as_deref());
    let mut findings = vec![kvm_finding(&kvm)];
    match &chosen {
        Err(error) => findings.push(Finding::problem(
            "VMM",
            chain(error),
            "install firecracker, or firecracker-tcg and QEMU (`make install`), or set firecracker_binary_path",
        )),
        Ok(choice) => {
            findings.push(version(choice));
            findings.extend(suits(choice, &kvm));
        }
    }
    findings.extend(jail(config, chosen.ok().as_ref()));
    findings
}

fn kvm_finding(kvm: &Kvm) -> Finding {
    const CHECK: &str = "KVM";
    match kvm {
        Kvm::Hardware => Finding::ok(CHECK, kvm.to_string()),
        Kvm::Denied { .. } => Finding::problem(
            CHECK,
            kvm.to_string(),
            "run as root, or give this user access to /dev/kvm",
        ),
        Kvm::Paravirtual { .. } | Kvm::Unusable { .. } | Kvm::Absent => Finding::note(
            CHECK,
            kvm.to_string(),
            "VMs are emulated by firecracker-tcg: slow, and no security boundary; use a host with hardware virtualization",
        ),
    }
}

fn version(choice: &VmmChoice) -> Finding {
    const CHECK: &str = "VMM";
    let path = choice.path.display();
    let output = match Command::new(&choice.path).arg("--version").output() {
        Ok(output) => output,
        Err(error) => {
            return Finding::problem(
                CHECK,
                format!("{path} does not run: {error}"),
                "install it again, for this machine's architecture",
            );
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    // `Firecracker v1.15.0`, then other lines.
    let version = text
        .split_whitespace()
        .find_map(|word| word.starts_with('v').then(|| Version::parse(word))?);
    match version {
        Some(version) if version >= MINIMUM_VERSION => Finding::ok(
            CHECK,
            format!("{path}, version {version}: {}", choice.reason),
        ),
        Some(version) => Finding::problem(
            CHECK,
            format!("{path} is version {version}"),
            format!("install version {MINIMUM_VERSION} or newer"),
        ),
        None => Finding::problem(
            CHECK,
            format!(
                "{path} --version does not say which version it is: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
            "correct firecracker_binary_path; for firecracker-tcg see whether QEMU is installed",
        ),
    }
}

/// Whether the VMM can use the KVM that there is.
fn suits(choice: &VmmChoice, kvm: &Kvm) -> Option<Finding> {
    let emulates = choice.path.file_name().is_some_and(|name| name == EMULATOR);
    match (emulates, kvm) {
        (true, Kvm::Hardware) => Some(Finding::note(
            "VMM",
            "VMs are emulated although KVM works",
            choice
                .hint
                .clone()
                .unwrap_or_else(|| "install firecracker".to_owned()),
        )),
        (false, Kvm::Paravirtual { .. }) => Some(Finding::note(
            "VMM",
            "a paravirtual KVM runs only guest kernels that are made for it",
            "use firecracker-tcg unless your kernel is one",
        )),
        (false, Kvm::Denied { .. } | Kvm::Unusable { .. } | Kvm::Absent) => Some(Finding::problem(
            "VMM",
            format!("{} needs KVM", choice.path.display()),
            "use firecracker-tcg (configuration key firecracker_binary_path)",
        )),
        _ => None,
    }
}

/// A jail is a choice: where there is no template, and the configuration names no OCI runtime, there is nothing to
/// check.
fn jail(config: &Config, vmm: Option<&VmmChoice>) -> Option<Finding> {
    const CHECK: &str = "jail";
    let runc = config.jailer.runtime();
    let template = &config.jailer.runc_config_path;
    if config.jailer.runc_binary_path.is_none() && !template.exists() {
        return None;
    }
    if let Err(error) = Command::new(runc).arg("--version").output() {
        return Some(Finding::problem(
            CHECK,
            format!("{} does not run: {error}", runc.display()),
            "install runc or crun, or correct jailer.runc_binary_path",
        ));
    }
    // Without a VMM there is a finding already.
    let checked = Runc::check(&vmm?.path, template);
    Some(match checked {
        Ok(()) => Finding::ok(
            CHECK,
            format!("{} with {}", runc.display(), template.display()),
        ),
        Err(error) => Finding::problem(
            CHECK,
            chain(&error),
            "install the template, and the VMM's list, that come with the runtime (`make install`), or correct them",
        ),
    })
}
