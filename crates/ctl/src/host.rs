//! The host as the command line describes it: configuration, connections, VMs.

use std::time::Duration;

use fc_config::{Config, Loaded};
use fc_control::client::{self, Connection};
use fc_control::host::Settings;
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::ttrpc::context::Context;
use fc_proto::vm::{StatusResponse, VmClient};
use fc_vm::list::{self, Vm};

use crate::args::Args;
use crate::error::CtlError;
use crate::output::Output;

/// How long a shim may take to say how its VM does: it knows without asking anybody.
const STATUS_BOUND: Duration = Duration::from_secs(10);

/// What every command needs.
pub struct Host {
    /// The runtime's configuration.
    pub config: Config,
    /// The namespace of the VMs that commands name.
    pub namespace: String,
    /// How results are printed.
    pub output: Output,
    settings: Settings,
}

impl Host {
    /// Reads the configuration.
    ///
    /// # Errors
    /// When it does not load.
    pub fn load(args: &Args) -> Result<Self, CtlError> {
        let loaded = load_config(args)?;
        let mut settings = Settings::new(loaded.config.clone(), &args.containerd_address);
        settings.config_path = Some(loaded.path);
        Ok(Self {
            config: loaded.config,
            namespace: args.namespace.clone(),
            output: Output::new(args.json),
            settings,
        })
    }

    /// A connection to the control API.
    ///
    /// # Errors
    /// When the daemon is there but cannot be reached.
    pub async fn control(&self) -> Result<Connection, CtlError> {
        Ok(client::connect(self.settings.clone()).await?)
    }

    /// Context of a control call without a bound.
    pub fn context(&self) -> Context {
        fc_rpc::client::context(&self.namespace, Duration::ZERO)
    }

    /// Every VM of the host.
    ///
    /// # Errors
    /// When they cannot be looked for.
    pub fn list(&self) -> Result<Vec<Vm>, CtlError> {
        Ok(list::list(&self.config.shim_base_dir)?)
    }

    /// The VM `vm_id` of the chosen namespace, whose shim lives.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, vm_id: &str) -> Result<Vm, CtlError> {
        list::find(&self.config.shim_base_dir, &self.namespace, vm_id)?
            .filter(|vm| !vm.is_dead())
            .ok_or_else(|| CtlError::NoVm {
                namespace: self.namespace.clone(),
                vm_id: vm_id.to_owned(),
            })
    }
}

/// The runtime's configuration, from where the command line says.
///
/// # Errors
/// When it does not load.
pub fn load_config(args: &Args) -> Result<Loaded, CtlError> {
    Ok(match &args.config {
        // Shims read it too, from directories of their own.
        Some(path) => {
            Config::load_from(&std::path::absolute(path).map_err(|source| CtlError::Read {
                path: path.display().to_string(),
                source,
            })?)?
        }
        None => Config::load()?,
    })
}

/// A client of the VM service of a VM's shim.
///
/// # Errors
/// When it has none, or it cannot be reached.
pub async fn vm_client(vm: &Vm) -> Result<VmClient, CtlError> {
    let no_vm = || CtlError::NoVm {
        namespace: vm.dir.namespace().to_owned(),
        vm_id: vm.dir.vm_id().to_owned(),
    };
    let shim = vm.shim().ok_or_else(no_vm)?;
    let sockets = vm.sockets().ok_or_else(no_vm)?;
    let client = fc_rpc::client::connect(&sockets.control).await;
    client.map(VmClient::new).map_err(|source| CtlError::Shim {
        vm_id: vm.dir.vm_id().to_owned(),
        pid: shim.pid,
        source,
    })
}

/// How a VM does, as its shim says.
///
/// # Errors
/// When the shim cannot be asked.
pub async fn status(vm: &Vm) -> Result<StatusResponse, CtlError> {
    let client = vm_client(vm).await?;
    let context = fc_rpc::client::context(vm.dir.namespace(), STATUS_BOUND);
    client
        .status(context, &Empty::default())
        .await
        .map_err(|error| CtlError::call("The VM's shim", error))
}
