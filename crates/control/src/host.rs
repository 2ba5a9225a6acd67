//! The VMs of a host: finding a VM's shim and calling it.
//!
//! No lock is held and nothing is shared while a call waits, so that a VM that hangs is
//! nobody else's trouble.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fc_config::Config;
use fc_proto::control::{CreateVMRequest, CreateVMResponse, FirecrackerClient, StopVMRequest};
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::ttrpc::asynchronous::Client;
use fc_proto::ttrpc::context::Context;
use fc_proto::ttrpc::{self, Error as RpcError};
use fc_proto::vm::VmClient;
use fc_rpc::client::{connect, context};
use fc_rpc::events::Events;
use fc_vm::list::{self, Vm};
use fc_vm::{address, ident, process::ProcessId};

use crate::bury::bury;
use crate::error::ControlError;
use crate::{create, stop, watch};

/// After how long without an answer a shim is asked whether it lives.
const SILENCE: Duration = Duration::from_secs(3);
/// How long a shim may take to say that it lives. It has one thread, which never works for long; but it
/// may have been started just now, with many others.
const PULSE_BOUND: Duration = Duration::from_secs(10);
/// How long a shim that takes no connections any more may take to end.
const ENDING_BOUND: Duration = Duration::from_secs(30);
/// How often a VM whose shim just starts or ends is looked for again.
const CHANGES: u32 = 3;

/// What a [`Host`] has to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The runtime's configuration; of it, `shim_base_dir` and `log_levels`.
    pub config: Config,
    /// File that `config` is from; `None`: shims find theirs as this process would.
    pub config_path: Option<PathBuf>,
    /// gRPC address of the containerd whose VMs these are, a path. The shims' addresses depend on it.
    pub containerd_address: String,
    /// containerd's ttrpc address, a path; usually the gRPC address and `.ttrpc`. Events go there.
    pub ttrpc_address: String,
    /// The program `containerd-shim-aws-firecracker`.
    pub shim: PathBuf,
    /// Whether shims log at debug level whatever the configuration says.
    pub debug: bool,
}

impl Settings {
    /// Settings for the containerd at `containerd_address` (default: `/run/containerd/containerd.sock`) with
    /// the shim that lies beside this program or is on `PATH`.
    #[must_use]
    pub fn new(config: Config, containerd_address: &str) -> Self {
        Self {
            config,
            config_path: None,
            containerd_address: containerd_address.to_owned(),
            ttrpc_address: format!("{containerd_address}.ttrpc"),
            shim: shim_program(),
            debug: false,
        }
    }
}

fn shim_program() -> PathBuf {
    const NAME: &str = "containerd-shim-aws-firecracker";
    let own = std::env::current_exe().ok();
    let beside = own.and_then(|exe| Some(exe.parent()?.join(NAME)));
    beside
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from(NAME))
}

/// The VMs of a host, of one containerd. Clones are the same host.
#[derive(Clone)]
pub struct Host {
    pub(crate) settings: Arc<Settings>,
    pub(crate) events: Arc<Events>,
}

/// A VM's shim.
#[derive(Debug, Clone)]
pub(crate) struct Shim {
    pub(crate) vm_id: String,
    pub(crate) process: ProcessId,
    pub(crate) control: PathBuf,
}

impl Shim {
    fn no_answer(&self) -> ControlError {
        ControlError::NoAnswer {
            vm_id: self.vm_id.clone(),
            pid: self.process.pid,
        }
    }
}

impl Host {
    /// The VMs of the host. Needs a tokio runtime; nothing is started and nothing changed.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            // Every event says its namespace itself.
            events: Arc::new(Events::new(settings.ttrpc_address.clone().into(), "")),
            settings: Arc::new(settings),
        }
    }

    /// What the host was made from.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Undoes what dead shims left, and watches those that live. For a daemon at its start.
    ///
    /// # Errors
    /// When it cannot be found out which VMs there are. What cannot be undone is logged.
    pub async fn adopt(&self) -> Result<(), ControlError> {
        watch::adopt(self).await
    }

    /// Every VM of the base directory, dead ones too, of all namespaces.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn list(&self) -> Result<Vec<Vm>, ControlError> {
        let base = self.settings.config.shim_base_dir.clone();
        blocking(move || Ok(list::list(&base)?)).await
    }

    /// Starts a VM and waits until its agent answers (`ReturnWhenLaunched`: until its shim runs). A
    /// future that is dropped before it is ready ends the VM.
    ///
    /// # Errors
    /// `AlreadyExists` when the VM has a shim; otherwise why it did not start. Nothing of it is left then.
    pub async fn create_vm(
        &self,
        namespace: &str,
        request: CreateVMRequest,
    ) -> Result<CreateVMResponse, ControlError> {
        create::create_vm(self, namespace, request).await
    }

    /// The same for a caller who waits for the undoing too: when `given_up` ends before the VM is ready, the VM is
    /// ended, and this answers [`ControlError::GivenUp`] once nothing of it is left. Goes on when the future is dropped.
    ///
    /// # Errors
    /// As [`Host::create_vm`].
    pub async fn create_vm_until(
        &self,
        namespace: &str,
        request: CreateVMRequest,
        given_up: impl Future<Output = ()> + Send + 'static,
    ) -> Result<CreateVMResponse, ControlError> {
        create::create_vm_until(self, namespace, request, given_up).await
    }

    /// Stops a VM, and waits until its VMM and its shim are gone; its id is free then. Goes on when
    /// the future is dropped.
    ///
    /// # Errors
    /// When it does not exist, had to be killed (`Internal`), or is still there.
    pub async fn stop_vm(
        &self,
        namespace: &str,
        request: StopVMRequest,
    ) -> Result<Empty, ControlError> {
        stop::stop_vm(self, namespace, request).await
    }

    /// Makes one of the other calls to the VM's shim.
    ///
    /// # Errors
    /// The shim's own, `NotFound` without a shim, `Unavailable` when it does not answer.
    pub async fn call<T>(
        &self,
        namespace: &str,
        vm_id: &str,
        call: impl AsyncFnOnce(FirecrackerClient, Context) -> ttrpc::Result<T>,
    ) -> Result<T, ControlError> {
        let shim = self.find(namespace, vm_id).await?;
        self.call_shim(namespace, &shim, call).await
    }

    /// The same for a shim that was found.
    pub(crate) async fn call_shim<T>(
        &self,
        namespace: &str,
        shim: &Shim,
        call: impl AsyncFnOnce(FirecrackerClient, Context) -> ttrpc::Result<T>,
    ) -> Result<T, ControlError> {
        self.call_until(namespace, shim, silence, call).await
    }

    /// The same; `given_up` ends when the shim is to be taken for one that does not answer.
    pub(crate) async fn call_until<T>(
        &self,
        namespace: &str,
        shim: &Shim,
        given_up: impl AsyncFnOnce(Client),
        call: impl AsyncFnOnce(FirecrackerClient, Context) -> ttrpc::Result<T>,
    ) -> Result<T, ControlError> {
        let Ok(client) = connect(&shim.control).await else {
            return Err(self.unreachable(namespace, shim).await);
        };
        let answer = call(
            FirecrackerClient::new(client.clone()),
            context(namespace, Duration::ZERO),
        );
        let answer = tokio::select! {
            biased;
            answer = answer => answer,
            () = given_up(client) => return Err(shim.no_answer()),
        };
        answer.map_err(|error| match error {
            RpcError::RpcStatus(status) => ControlError::Shim(status),
            source => ControlError::Lost {
                vm_id: shim.vm_id.clone(),
                source,
            },
        })
    }

    /// Why a shim takes no connection: it is gone, or on its way out, or it hangs.
    async fn unreachable(&self, namespace: &str, shim: &Shim) -> ControlError {
        if let Err(error) = self.find(namespace, &shim.vm_id).await {
            return error;
        }
        // Its sockets go before its directory.
        match tokio::time::timeout(ENDING_BOUND, shim.process.ended()).await {
            Ok(Ok(())) => ControlError::NotFound {
                namespace: namespace.to_owned(),
                vm_id: shim.vm_id.clone(),
            },
            _ => shim.no_answer(),
        }
    }

    /// Finds a VM's shim.
    pub(crate) async fn find(&self, namespace: &str, vm_id: &str) -> Result<Shim, ControlError> {
        validate(namespace, vm_id)?;
        let host = self.clone();
        let (namespace, vm_id) = (namespace.to_owned(), vm_id.to_owned());
        blocking(move || find(&host, namespace, vm_id)).await
    }
}

/// Checks both names of a VM.
pub(crate) fn validate(namespace: &str, vm_id: &str) -> Result<(), ControlError> {
    let check = |what, name| {
        ident::validate(name).map_err(|source| ControlError::Identifier { what, source })
    };
    check("namespace", namespace)?;
    check("id", vm_id)
}

fn find(host: &Host, namespace: String, vm_id: String) -> Result<Shim, ControlError> {
    let settings = &host.settings;
    let base = &settings.config.shim_base_dir;
    for _ in 0..CHANGES {
        let Some(vm) = list::find(base, &namespace, &vm_id)? else {
            break;
        };
        if let Some(process) = vm.shim() {
            let control = vm.sockets().map_or_else(
                || {
                    let task =
                        address::task_socket(&settings.containerd_address, &namespace, &vm_id);
                    address::control_socket(&task)
                },
                |sockets| sockets.control.clone(),
            );
            return Ok(Shim {
                vm_id,
                process,
                control,
            });
        }
        if vm.is_dead() {
            break;
        }
        // Waits for whoever is at work there. Leftovers may go at this opportunity; what cannot be undone
        // is told to who starts the VM next.
        let _ = bury(host, &vm.dir);
    }
    Err(ControlError::NotFound { namespace, vm_id })
}

/// Ends when the shim does not give a sign of life any more.
async fn silence(client: Client) {
    let vm = VmClient::new(client);
    loop {
        tokio::time::sleep(SILENCE).await;
        let nothing = Empty::default();
        let pulse = vm.status(Context::default(), &nothing);
        match tokio::time::timeout(PULSE_BOUND, pulse).await {
            // An answer; a shim without this service answers too, that it has none.
            Ok(Ok(_) | Err(RpcError::RpcStatus(_))) => {}
            // The connection broke: the call itself says so.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// Runs what blocks on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ControlError> + Send + 'static,
) -> Result<T, ControlError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(ControlError::Panicked))
}

/// Runs work to its end, whatever becomes of the caller.
pub(crate) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, ControlError>> + Send + 'static,
) -> Result<T, ControlError> {
    tokio::spawn(work)
        .await
        .unwrap_or(Err(ControlError::Panicked))
}
