//! CreateVM: the shim is started with the request, so that the VM boots whatever becomes of
//! this process, and then asked how it went.

use std::time::Duration;

use fc_proto::control::{CreateVMRequest, CreateVMResponse, GetVMInfoRequest, GetVMInfoResponse};
use fc_vm::answer;
use fc_vm::dir::{self, VmDir};
use fc_vm::launch::{Launch, Launched, ShimLog, launch};
use fc_vm::machine::DEFAULT_TIMEOUT;
use fc_vm::process::ProcessId;
use tokio::sync::oneshot;

use crate::bury::bury;
use crate::error::ControlError;
use crate::host::{Host, Settings, Shim, blocking, detached, validate};
use crate::log::LastWords;
use crate::stop;
use crate::watch::{self, Watched};

/// How much longer than its own bound a shim may take to say that a start took too long.
const SLACK: Duration = Duration::from_secs(15);

/// The API socket of a jailed VMM, in the VM's directory: in the jail's root, by the jailer's name.
const JAILED_API_SOCKET: &str = "rootfs/api.socket";

/// See [`Host::create_vm`].
pub async fn create_vm(
    host: &Host,
    namespace: &str,
    request: CreateVMRequest,
) -> Result<CreateVMResponse, ControlError> {
    // Lives as long as the caller waits.
    let (_waiting, given_up) = oneshot::channel::<()>();
    let given_up = async { drop(given_up.await) };
    create_vm_until(host, namespace, request, given_up).await
}

/// See [`Host::create_vm_until`].
pub async fn create_vm_until(
    host: &Host,
    namespace: &str,
    request: CreateVMRequest,
    given_up: impl Future<Output = ()> + Send + 'static,
) -> Result<CreateVMResponse, ControlError> {
    validate(namespace, &request.VMID)?;
    let namespace = namespace.to_owned();
    detached(create(host.clone(), namespace, request, given_up)).await
}

async fn create(
    host: Host,
    namespace: String,
    request: CreateVMRequest,
    given_up: impl Future<Output = ()>,
) -> Result<CreateVMResponse, ControlError> {
    let vm_id = request.VMID.clone();
    let bound = match request.TimeoutSeconds {
        0 => DEFAULT_TIMEOUT,
        seconds => Duration::from_secs(seconds.into()),
    };
    let original_paths = host.settings.config.original_vm_info_paths;
    let jailed = request.JailerConfig.is_some() && !original_paths;
    let return_when_launched = request.ReturnWhenLaunched;
    let (dir, launched) = start(&host, &namespace, request).await?;
    let shim = Shim {
        vm_id: vm_id.clone(),
        process: launched.shim,
        control: launched.control_socket,
    };
    let watched = Watched {
        dir: dir.clone(),
        shim: launched.shim,
        child: launched.child,
        log: launched.log,
    };
    let words = watch::spawn(&host, watched);
    if return_when_launched {
        return Ok(known_by_now(&dir, jailed));
    }
    let answer = tokio::select! {
        answer = ready(&host, &namespace, &shim) => answer,
        () = given_up => {
            tracing::info!(namespace, vmID = vm_id, "CreateVM was given up");
            Err(stop::join(ControlError::GivenUp { vm_id }, terminate(&shim)))
        }
        () = tokio::time::sleep(bound + SLACK) => {
            Err(stop::join(ControlError::TimedOut { vm_id, bound }, terminate(&shim)))
        }
    };
    match answer {
        Ok(info) => Ok(answer::created(info, original_paths)),
        Err(error) => {
            let gone = stop::gone(&host, &shim, dir).await;
            Err(stop::join(cause(error, &words).await, gone))
        }
    }
}

/// A shim that died before it could say why said it in its log.
async fn cause(error: ControlError, words: &LastWords) -> ControlError {
    match error {
        ControlError::NotFound { vm_id, .. } | ControlError::Lost { vm_id, .. } => {
            ControlError::Died {
                vm_id,
                words: words.after_end().await,
            }
        }
        error => error,
    }
}

/// Starts the VM's shim.
async fn start(
    host: &Host,
    namespace: &str,
    request: CreateVMRequest,
) -> Result<(VmDir, Launched), ControlError> {
    let host = host.clone();
    let vm_id = request.VMID.clone();
    let order = order(&host.settings, namespace, request);
    blocking(move || {
        let base = &host.settings.config.shim_base_dir;
        let dir = VmDir::new(base, &order.namespace, &vm_id)
            .map_err(|source| ControlError::Identifier { what: "id", source })?;
        // `launch` would undo what a former VM left, but tell nobody.
        bury(&host, &dir)?;
        let launched = launch(&order)?;
        if launched.new {
            Ok((dir, launched))
        } else {
            Err(ControlError::Exists {
                vm_id,
                socket: launched.task_socket,
            })
        }
    })
    .await
}

fn order(settings: &Settings, namespace: &str, request: CreateVMRequest) -> Launch {
    Launch {
        base: settings.config.shim_base_dir.clone(),
        namespace: namespace.to_owned(),
        vm_id: request.VMID.clone(),
        containerd_address: settings.containerd_address.clone(),
        ttrpc_address: settings.ttrpc_address.clone(),
        program: settings.shim.clone(),
        config: settings.config_path.clone(),
        log: ShimLog::Fifo,
        debug: settings.debug,
        request: Some(request),
    }
}

/// Waits for the VM's boot: GetVMInfo does, and it fails as the boot does.
async fn ready(
    host: &Host,
    namespace: &str,
    shim: &Shim,
) -> Result<GetVMInfoResponse, ControlError> {
    let request = GetVMInfoRequest {
        VMID: shim.vm_id.clone(),
        ..GetVMInfoRequest::default()
    };
    let get = async |client: fc_proto::control::FirecrackerClient, context| {
        client.get_vm_info(context, &request).await
    };
    host.call_shim(namespace, shim, get).await
}

/// What is certain about a VM whose shim just runs. `jailed`: the path is to be the one in the jail.
fn known_by_now(dir: &VmDir, jailed: bool) -> CreateVMResponse {
    let socket = dir.join(if jailed {
        JAILED_API_SOCKET
    } else {
        dir::API_SOCKET
    });
    CreateVMResponse {
        VMID: dir.vm_id().to_owned(),
        SocketPath: socket.display().to_string(),
        ..CreateVMResponse::default()
    }
}

/// Tells the shim to end its VM, booting or not.
fn terminate(shim: &Shim) -> Result<(), ControlError> {
    signal(shim.process).map_err(|source| ControlError::Process {
        action: "end",
        vm_id: shim.vm_id.clone(),
        pid: shim.process.pid,
        source,
    })
}

fn signal(process: ProcessId) -> std::io::Result<()> {
    use rustix::process::{Signal, pidfd_send_signal};
    let Some(fd) = process.pidfd()? else {
        return Ok(());
    };
    match pidfd_send_signal(&fd, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
