//! StopVM, and making sure that nothing is left of a VM.

use std::time::Duration;

use fc_proto::control::StopVMRequest;
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_vm::dir::VmDir;
use fc_vm::list::CleanUp;
use tokio::time::Instant;

use crate::bury::bury;
use crate::error::ControlError;
use crate::host::{Host, Shim, blocking, detached, validate};

/// A stop's bound when its caller names none; the shim's is the same.
const DEFAULT_BOUND: Duration = Duration::from_secs(5);
/// How much longer than the bound of a stop its shim may take: after the bound it kills the VMM, undoes what
/// the VM uses and tells containerd.
const SLACK: Duration = Duration::from_secs(30);
/// How long the shim of a VM that is given up may take to end.
const EXIT_BOUND: Duration = Duration::from_secs(30);
/// How long a killed shim may take to end.
const KILL_BOUND: Duration = Duration::from_secs(15);
/// How long containerd may take over the event of a VM's end.
const FLUSH_BOUND: Duration = Duration::from_secs(10);

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
    let dir = directory(&host, &namespace, &shim)?;
    let bound = match request.TimeoutSeconds {
        0 => DEFAULT_BOUND,
        seconds => Duration::from_secs(seconds.into()),
    };
    let deadline = Instant::now() + bound + SLACK;
    let call = async |client: fc_proto::control::FirecrackerClient, context| {
        client.stop_vm(context, &request).await
    };
    let given_up = async |_| tokio::time::sleep_until(deadline).await;
    match host.call_until(&namespace, &shim, given_up, call).await {
        Ok(empty) => ended(&host, &shim, dir, deadline).await.map(|()| empty),
        // It died meanwhile, and its VM with it, which is what was asked for.
        Err(error @ ControlError::Lost { .. }) => {
            tracing::warn!(namespace, vmID = shim.vm_id, "{error}");
            ended(&host, &shim, dir, deadline)
                .await
                .map(|()| Empty::default())
        }
        Err(error @ ControlError::NotFound { .. }) => Err(error),
        Err(ControlError::NoAnswer { .. }) => Err(force(&host, &shim, dir).await),
        Err(error) => Err(join(error, ended(&host, &shim, dir, deadline).await)),
    }
}

fn directory(host: &Host, namespace: &str, shim: &Shim) -> Result<VmDir, ControlError> {
    VmDir::new(&host.settings.config.shim_base_dir, namespace, &shim.vm_id)
        .map_err(|source| ControlError::Identifier { what: "id", source })
}

/// Waits until the shim has ended, and clears what it left if it died on the way. One that hangs on its last
/// steps is killed.
async fn ended(
    host: &Host,
    shim: &Shim,
    dir: VmDir,
    deadline: Instant,
) -> Result<(), ControlError> {
    if exited(shim, deadline).await? {
        clear(host, dir).await
    } else {
        Err(force(host, shim, dir).await)
    }
}

/// Ends a VM whose shim does not end it: the error that says so.
async fn force(host: &Host, shim: &Shim, dir: VmDir) -> ControlError {
    let forced = ControlError::Forced {
        vm_id: shim.vm_id.clone(),
        pid: shim.process.pid,
    };
    join(forced, kill(host, shim, dir).await)
}

/// Waits until the shim of a VM that is to be no more has ended, or ends it, and clears what it left.
pub async fn gone(host: &Host, shim: &Shim, dir: VmDir) -> Result<(), ControlError> {
    if exited(shim, Instant::now() + EXIT_BOUND).await? {
        clear(host, dir).await
    } else {
        kill(host, shim, dir).await
    }
}

/// Kills the shim and undoes all that it has, its VMM first.
async fn kill(host: &Host, shim: &Shim, dir: VmDir) -> Result<(), ControlError> {
    let process = shim.process;
    tracing::warn!(
        vmID = shim.vm_id,
        pid = process.pid,
        "The shim does not end, so it is killed"
    );
    let killed = blocking(move || Ok(process.kill(KILL_BOUND))).await?;
    killed.map_err(|source| ControlError::Process {
        action: "end",
        vm_id: shim.vm_id.clone(),
        pid: process.pid,
        source,
    })?;
    clear(host, dir).await
}

async fn clear(host: &Host, dir: VmDir) -> Result<(), ControlError> {
    let burying = host.clone();
    if blocking(move || Ok(bury(&burying, &dir)?)).await? == CleanUp::Done {
        // This process may be about to end.
        host.events.flush(FLUSH_BOUND).await;
    }
    Ok(())
}

/// Whether the shim's process has ended, by `deadline`.
async fn exited(shim: &Shim, deadline: Instant) -> Result<bool, ControlError> {
    match tokio::time::timeout_at(deadline, shim.process.ended()).await {
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
