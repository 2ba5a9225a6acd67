//! `vm pause`, `resume`, `stop` and `wait`.

use std::time::Duration;

use clap::Args;
use fc_proto::control::{PauseVMRequest, ResumeVMRequest, StopVMRequest};
use serde::Serialize;

use super::{Id, call_error};
use crate::error::CtlError;
use crate::host::Host;

/// Which VM to stop, and how patiently.
#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    vm: Id,
    /// How long the guest may take, in seconds; then the VM is killed [default: 5].
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
}

/// What was done to a VM.
#[derive(Serialize)]
struct Done<'a> {
    id: &'a str,
    namespace: &'a str,
    state: &'static str,
}

fn done(host: &Host, id: &str, state: &'static str) {
    let done = Done {
        id,
        namespace: &host.namespace,
        state,
    };
    host.output
        .print(&done, |done| format!("VM {} {}", done.id, done.state));
}

/// Pauses a VM.
///
/// # Errors
/// PauseVM's.
pub async fn pause(host: &Host, id: &str) -> Result<(), CtlError> {
    let request = PauseVMRequest {
        VMID: id.to_owned(),
        ..PauseVMRequest::default()
    };
    let control = host.control().await?;
    let answer = control.client.pause_vm(host.context(), &request).await;
    answer.map_err(call_error)?;
    done(host, id, "paused");
    Ok(())
}

/// Lets a VM go on.
///
/// # Errors
/// ResumeVM's.
pub async fn resume(host: &Host, id: &str) -> Result<(), CtlError> {
    let request = ResumeVMRequest {
        VMID: id.to_owned(),
        ..ResumeVMRequest::default()
    };
    let control = host.control().await?;
    let answer = control.client.resume_vm(host.context(), &request).await;
    answer.map_err(call_error)?;
    done(host, id, "running");
    Ok(())
}

/// Stops a VM.
///
/// # Errors
/// StopVM's: also when the VM had to be killed. It is gone all the same.
pub async fn stop(host: &Host, args: &StopArgs) -> Result<(), CtlError> {
    let request = StopVMRequest {
        VMID: args.vm.id.clone(),
        TimeoutSeconds: args.timeout.unwrap_or_default(),
        ..StopVMRequest::default()
    };
    let control = host.control().await?;
    let answer = control.client.stop_vm(host.context(), &request).await;
    answer.map_err(call_error)?;
    done(host, &args.vm.id, "stopped");
    Ok(())
}

/// How long a shim may be on its way into or out of the world.
const CHANGE: Duration = Duration::from_millis(100);

/// Waits for a VM's end.
///
/// # Errors
/// When there is no such VM now.
pub async fn wait(host: &Host, id: &str) -> Result<(), CtlError> {
    let mut vm = host.find(id)?;
    loop {
        match vm.shim() {
            Some(shim) => {
                let ended = shim.ended().await;
                ended.map_err(|source| CtlError::Wait {
                    pid: shim.pid,
                    source,
                })?;
                break;
            }
            // Whoever starts or cleans up holds a lock for some milliseconds, about which nothing tells us.
            None => tokio::time::sleep(CHANGE).await,
        }
        match host.find(id) {
            Ok(found) => vm = found,
            Err(CtlError::NoVm { .. }) => break,
            Err(error) => return Err(error),
        }
    }
    done(host, id, "ended");
    Ok(())
}
