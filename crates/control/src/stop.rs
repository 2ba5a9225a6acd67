//! StopVM, and making sure that nothing is left of a VM.

use std::time::Duration;

use fc_proto::control::StopVMRequest;
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_vm::dir::VmDir;
use fc_vm::list;

use crate::error::ControlError;
use crate::host::{Host, Shim, blocking, detached, validate};

/// How long a shim's process may take to end when its VM is gone: it still tells containerd.
const EXIT_BOUND: Duration = Duration::from_secs(10);
/// How long a killed shim may take to end.
const KILL_BOUND: Duration = Duration::from_secs(5);

/// See [`Host::stop_vm`].
pub async fn stop_vm(
    host: &Host,
    namespace: &str,
    request: StopVMRequest,
) -> Result<Empty, ControlError> {
    validate(namespace, &request.VMID)?;
    detached(stop(host.clone(), namespace.to_owned(), request)).await
}

async fn stop(
    host: Host,
    namespace: String,
    request: StopVMRequest,
) -> Result<Empty, ControlError> {
    // Its process is known before it is asked to end.
    let shim = host.find(&namespace, &request.VMID).await?;
    let call = async |client: fc_proto::control::FirecrackerClient, context| {
        client.stop_vm(context, &request).await
    };
    let answer = host.call_shim(&namespace, &shim, call).await;
    let dir = directory(&host, &namespace, &shim)?;
    match answer {
        Ok(empty) => ended(&shim, dir).await.map(|()| empty),
        // It died meanwhile, and its VM with it, which is what was asked for.
        Err(error @ ControlError::Lost { .. }) => {
            tracing::warn!(namespace, vmID = shim.vm_id, "{error}");
            ended(&shim, dir).await.map(|()| Empty::default())
        }
        Err(error @ (ControlError::NotFound { .. } | ControlError::NoAnswer { .. })) => Err(error),
        Err(error) => Err(join(error, ended(&shim, dir).await)),
    }
}

fn directory(host: &Host, namespace: &str, shim: &Shim) -> Result<VmDir, ControlError> {
    VmDir::new(&host.settings.config.shim_base_dir, namespace, &shim.vm_id)
        .map_err(|source| ControlError::Identifier { what: "id", source })
}

/// Waits until the shim has ended, and clears what it left if it died on the way.
async fn ended(shim: &Shim, dir: VmDir) -> Result<(), ControlError> {
    if !exited(shim, EXIT_BOUND).await? {
        return Err(ControlError::StillThere {
            vm_id: shim.vm_id.clone(),
            pid: shim.process.pid,
            bound: EXIT_BOUND,
        });
    }
    clear(dir).await
}

/// Waits until the shim of a VM that is to be no more has ended, or ends it, and clears what it left.
pub async fn gone(shim: &Shim, dir: VmDir) -> Result<(), ControlError> {
    if !exited(shim, EXIT_BOUND).await? {
        tracing::warn!(
            vmID = shim.vm_id,
            pid = shim.process.pid,
            "The shim does not end, so it is killed"
        );
        let process = shim.process;
        let kill = blocking(move || Ok(process.kill(KILL_BOUND))).await?;
        kill.map_err(|source| ControlError::Process {
            action: "end",
            vm_id: shim.vm_id.clone(),
            pid: process.pid,
            source,
        })?;
    }
    clear(dir).await
}

async fn clear(dir: VmDir) -> Result<(), ControlError> {
    blocking(move || Ok(list::clean_up(&dir)?)).await.map(drop)
}

/// Whether the shim's process has ended, within `bound`.
async fn exited(shim: &Shim, bound: Duration) -> Result<bool, ControlError> {
    match tokio::time::timeout(bound, shim.process.ended()).await {
        Err(_) => Ok(false),
        Ok(Ok(())) => Ok(true),
        Ok(Err(source)) => Err(ControlError::Process {
            action: "watch",
            vm_id: shim.vm_id.clone(),
            pid: shim.process.pid,
            source,
        }),
    }
}

/// An error, and what went wrong after it.
pub fn join(first: ControlError, then: Result<(), ControlError>) -> ControlError {
    match then {
        Ok(()) => first,
        Err(second) => ControlError::Both {
            first: Box::new(first),
            second: Box::new(second),
        },
    }
}
