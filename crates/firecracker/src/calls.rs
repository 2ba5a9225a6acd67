//! The calls of the API, one line each.

use serde_json::Value;

use crate::api::{
    Action, ActionType, Balloon, BalloonStatistics, BalloonStatisticsUpdate, BalloonUpdate,
    BootSource, Drive, DriveUpdate, Entropy, FirecrackerVersion, InstanceInfo, InstanceState,
    Logger, MachineConfig, Metrics, MmdsConfig, NetworkInterface, NetworkInterfaceUpdate, VmState,
    VmUpdate, Vsock,
};
use crate::client::{BOOT_BOUND, DISK_BOUND};
use crate::{ApiError, Client};

/// Makes a method of [`Client`] of each line: a call without a body that is answered with a value, or one with a
/// body that is not. `{field}` in a path is the body's field of that name.
macro_rules! calls {
    ($(
        $(#[$doc:meta])*
        $name:ident: $method:ident $path:literal
        $(-> $answer:ty)? $(, $body:ty $(, $field:ident)?)?;
    )*) => {
        impl Client {
            $(calls! { @one $(#[$doc])* $name $method $path $(-> $answer)? $(, $body $(, $field)?)? })*
        }
    };
    (@one $(#[$doc:meta])* $name:ident $method:ident $path:literal -> $answer:ty) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// [`ApiError`].
        pub async fn $name(&self) -> Result<$answer, ApiError> {
            self.get($path).await
        }
    };
    (@one $(#[$doc:meta])* $name:ident $method:ident $path:literal, $body:ty) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// [`ApiError`].
        pub async fn $name(&self, body: &$body) -> Result<(), ApiError> {
            self.send(hyper::Method::$method, $path.to_owned(), body, self.bound()).await
        }
    };
    (@one $(#[$doc:meta])* $name:ident $method:ident $path:literal, $body:ty, $id:ident) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// [`ApiError`].
        pub async fn $name(&self, body: &$body) -> Result<(), ApiError> {
            let path = $path.replace(concat!("{", stringify!($id), "}"), &path_segment(&body.$id));
            self.send(hyper::Method::$method, path, body, self.bound()).await
        }
    };
}

calls! {
    /// The VMM's version.
    version: GET "/version" -> FirecrackerVersion;
    /// The VM's whole configuration, as `--config-file` takes it.
    vm_config: GET "/vm/config" -> Value;
    /// Processors and memory.
    get_machine_config: GET "/machine-config" -> MachineConfig;
    /// Sets processors and memory, before boot.
    put_machine_config: PUT "/machine-config", MachineConfig;
    /// Sets what to boot, before boot.
    put_boot_source: PUT "/boot-source", BootSource;
    /// Adds a drive, before boot.
    put_drive: PUT "/drives/{drive_id}", Drive, drive_id;
    /// Adds a network interface, before boot.
    put_network_interface: PUT "/network-interfaces/{iface_id}", NetworkInterface, iface_id;
    /// Changes a network interface of a booted VM.
    patch_network_interface: PATCH "/network-interfaces/{iface_id}", NetworkInterfaceUpdate, iface_id;
    /// Adds the vsock device, before boot.
    put_vsock: PUT "/vsock", Vsock;
    /// Adds a source of random numbers, before boot.
    put_entropy: PUT "/entropy", Entropy;
    /// The balloon's configuration.
    get_balloon: GET "/balloon" -> Balloon;
    /// Adds the balloon, before boot.
    put_balloon: PUT "/balloon", Balloon;
    /// Changes the balloon's target size.
    patch_balloon: PATCH "/balloon", BalloonUpdate;
    /// The balloon's last statistics.
    balloon_statistics: GET "/balloon/statistics" -> BalloonStatistics;
    /// Changes how often the balloon's statistics are made.
    patch_balloon_statistics: PATCH "/balloon/statistics", BalloonStatisticsUpdate;
    /// The metadata that the guest can read.
    get_mmds: GET "/mmds" -> Value;
    /// Replaces the metadata; an object.
    put_mmds: PUT "/mmds", Value;
    /// Merges into the metadata (RFC 7396); an object.
    patch_mmds: PATCH "/mmds", Value;
    /// Sets up the metadata service, before boot.
    put_mmds_config: PUT "/mmds/config", MmdsConfig;
    /// Sets where the VMM's log goes, and how much of it.
    put_logger: PUT "/logger", Logger;
    /// Sets where the VMM's metrics go.
    put_metrics: PUT "/metrics", Metrics;
}

impl Client {
    /// Changes a drive of a booted VM: the VMM closes its file, with all that was written to it, and opens another one.
    /// Bounded by [`DISK_BOUND`], or by the client's bound if that is longer.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn patch_drive(&self, body: &DriveUpdate) -> Result<(), ApiError> {
        let path = format!("/drives/{}", path_segment(&body.drive_id));
        let bound = self.bound().max(DISK_BOUND);
        self.send(hyper::Method::PATCH, path, body, bound).await
    }
}

/// Calls after which the VM's state is known, for later errors.
impl Client {
    /// Which VMM this is, and what its VM does.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn describe_instance(&self) -> Result<InstanceInfo, ApiError> {
        let info: InstanceInfo = self.get("/").await?;
        self.note(info.state);
        Ok(info)
    }

    /// Has something done once.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn put_action(&self, action_type: ActionType) -> Result<(), ApiError> {
        let bound = match action_type {
            ActionType::InstanceStart => self.bound().max(BOOT_BOUND),
            ActionType::FlushMetrics | ActionType::SendCtrlAltDel => self.bound(),
        };
        let body = Action { action_type };
        self.send(hyper::Method::PUT, "/actions".to_owned(), &body, bound)
            .await?;
        if action_type == ActionType::InstanceStart {
            self.note(InstanceState::Running);
        }
        Ok(())
    }

    /// Pauses or resumes a booted VM.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn patch_vm(&self, update: &VmUpdate) -> Result<(), ApiError> {
        let bound = match update.state {
            VmState::Paused => self.bound().max(DISK_BOUND),
            VmState::Resumed => self.bound(),
        };
        self.send(hyper::Method::PATCH, "/vm".to_owned(), update, bound)
            .await?;
        self.note(match update.state {
            VmState::Paused => InstanceState::Paused,
            VmState::Resumed => InstanceState::Running,
        });
        Ok(())
    }

    /// Boots the guest. Bounded by [`BOOT_BOUND`], or by the client's bound if that is longer.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn start_instance(&self) -> Result<(), ApiError> {
        self.put_action(ActionType::InstanceStart).await
    }

    /// Pauses a running VM, whose drives the VMM writes back first. Bounded by [`DISK_BOUND`], or by the client's bound
    /// if that is longer.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn pause(&self) -> Result<(), ApiError> {
        self.patch_vm(&VmUpdate {
            state: VmState::Paused,
        })
        .await
    }

    /// Resumes a paused VM.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn resume(&self) -> Result<(), ApiError> {
        self.patch_vm(&VmUpdate {
            state: VmState::Resumed,
        })
        .await
    }
}

/// `id` as one segment of a path: whatever Firecracker's ids cannot contain is escaped, for it to refuse.
fn path_segment(id: &str) -> String {
    let mut segment = String::with_capacity(id.len());
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}
