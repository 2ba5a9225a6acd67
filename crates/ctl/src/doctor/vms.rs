//! The VMs that are there, those that should not be, and the control service.

use std::io::ErrorKind;

use fc_config::Config;
use fc_errors::chain;
use fc_vm::list;

use super::Finding;
use crate::host::status;

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "VMs";
    let mut findings = vec![daemon(config).await];
    let vms = match list::list(&config.shim_base_dir) {
        Ok(vms) => vms,
        Err(error) => {
            findings.push(Finding::problem(
                CHECK,
                chain(&error),
                "see who made the directory, and whether this user may read it",
            ));
            return findings;
        }
    };
    let dead = vms.iter().filter(|vm| vm.is_dead()).count();
    findings.push(Finding::ok(CHECK, format!("{} alive", vms.len() - dead)));
    for vm in &vms {
        let name = format!("{}/{}", vm.dir.namespace(), vm.dir.vm_id());
        if vm.is_dead() {
            findings.push(Finding::problem(
                "leftovers",
                format!("{name}: its shim is dead"),
                "firecracker-ctl gc",
            ));
        } else if let Some(shim) = vm.shim() {
            findings.extend(alive(vm, &name, shim.pid).await);
        }
    }
    findings
}

/// What is wrong with a VM whose shim runs.
async fn alive(vm: &list::Vm, name: &str, shim: u32) -> Vec<Finding> {
    match status(vm).await {
        Err(error) => vec![Finding::problem(
            "VMs",
            format!("{name}: {}", chain(&error)),
            format!("if it stays so, `kill -9 {shim}`, then `firecracker-ctl gc`"),
        )],
        Ok(status) => {
            let stuck = status
                .slots
                .iter()
                .filter(|slot| slot.state == "quarantined");
            stuck
                .map(|slot| {
                    Finding::note(
                        "VMs",
                        format!(
                            "{name}: drive {} is quarantined: {}",
                            slot.name, slot.problem
                        ),
                        "it is tried again when a container of the VM ends; otherwise stop the VM",
                    )
                })
                .collect()
        }
    }
}

async fn daemon(config: &Config) -> Finding {
    const CHECK: &str = "control service";
    let address = &config.control_address;
    match fc_rpc::client::connect(address).await {
        Ok(_) => Finding::ok(CHECK, address.display().to_string()),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            Finding::ok(
                CHECK,
                "not running; nothing needs it but clients of its socket",
            )
        }
        Err(error) => Finding::problem(
            CHECK,
            format!("{} does not let us in: {error}", address.display()),
            "run this program as the user that runs firecracker-control",
        ),
    }
}
