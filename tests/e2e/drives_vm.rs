//! A VM made by the control API, with a `firecracker-control` of the test's own.

use fc_proto::control::{CreateVMRequest, FirecrackerClient, FirecrackerDriveMount};
use fc_proto::ttrpc;
use fc_proto::ttrpc::context::Context;

use serde_json::{Map, Value};

use crate::daemon::{Daemon, address, calls, client, create, ctx, stop};
use crate::fixture::{Flavor, Instance, Setup};

/// An instance and its control daemon.
pub struct Controlled {
    /// Ends before its containerd.
    _daemon: Daemon,
    pub on: Instance,
}

impl Controlled {
    /// Starts both; returns when the daemon serves.
    pub fn start(setup: &Setup, flavor: &Flavor) -> Self {
        Self::with_config(setup, flavor, |_| {})
    }

    /// The same with keys of the configuration changed by `edit`.
    pub fn with_config(
        setup: &Setup,
        flavor: &Flavor,
        edit: impl FnOnce(&mut Map<String, Value>),
    ) -> Self {
        let on = Instance::with_config(setup, flavor, edit);
        let daemon = Daemon::start(setup, &on);
        Self {
            _daemon: daemon,
            on,
        }
    }

    /// CreateVM.
    pub fn create(&self, request: &CreateVMRequest) -> ttrpc::Result<()> {
        self.call(async |client| {
            let created = client.create_vm(context(), request).await;
            created.map(drop)
        })
    }

    /// StopVM.
    pub fn stop(&self, id: &str) {
        let stopped = self.call(async |client| client.stop_vm(context(), &stop(id)).await);
        stopped.expect("StopVM");
    }

    /// Any call.
    pub fn call<T>(&self, call: impl AsyncFnOnce(FirecrackerClient) -> T) -> T {
        calls(async { call(client(&address(&self.on)).await).await })
    }
}

/// A call's context: the namespace and the bound.
pub fn context() -> Context {
    ctx("default")
}

/// A request for a VM with these drive mounts.
pub fn vm(id: &str, drive_mounts: Vec<FirecrackerDriveMount>) -> CreateVMRequest {
    CreateVMRequest {
        ContainerCount: 2,
        DriveMounts: drive_mounts,
        ..create(id)
    }
}
