//! `start`'s way to the control daemon, where there is one.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fc_proto::control::{CONTAINERD_ADDRESS_KEY, CreateVMRequest, FirecrackerClient};
use fc_proto::ttrpc::{Code, Error as RpcError};
use fc_rpc::client;

use crate::args::Args;

/// How long the daemon may take to start a shim: longer than a former shim of the same id may take to end.
const BOUND: Duration = Duration::from_secs(30);

/// Why the daemon started no shim.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Its socket is there and cannot be used.
    #[error("Cannot reach the control daemon at {}", socket.display())]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its reason, in its own words.
    #[error("{0}")]
    Refused(String),
}

/// What became of a request to the daemon.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The VM has a shim now, or had one already.
    Launched,
    /// There is no daemon here that serves this containerd.
    None,
}

/// Asks the daemon at `socket` for the shim of a VM.
///
/// # Errors
/// When a daemon is there and cannot start one.
pub fn launch(
    socket: &Path,
    args: &Args,
    request: &CreateVMRequest,
) -> Result<Answer, DaemonError> {
    // The usual case where there is no daemon costs one system call.
    if !socket.exists() {
        return Ok(Answer::None);
    }
    let connect = |source| DaemonError::Connect {
        socket: socket.to_owned(),
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(connect)?;
    runtime.block_on(async {
        let client = match client::connect(socket).await {
            Ok(client) => client,
            Err(error) if is_absent(&error) => return Ok(Answer::None),
            Err(error) => return Err(connect(error)),
        };
        let mut context = client::context(&args.namespace, BOUND);
        context.set(
            CONTAINERD_ADDRESS_KEY.to_owned(),
            vec![args.address.clone()],
        );
        let request = CreateVMRequest {
            ReturnWhenLaunched: true,
            ..request.clone()
        };
        let answer = FirecrackerClient::new(client)
            .create_vm(context, &request)
            .await;
        match answer {
            Ok(_) => Ok(Answer::Launched),
            Err(RpcError::RpcStatus(status)) => match status.code() {
                Code::ALREADY_EXISTS => Ok(Answer::Launched),
                // It serves another containerd.
                Code::FAILED_PRECONDITION => Ok(Answer::None),
                _ => Err(DaemonError::Refused(status.message)),
            },
            // It ended meanwhile. What it began is found under the VM's lock.
            Err(_) => Ok(Answer::None),
        }
    })
}

/// Whether nobody listens: no socket, or one that a daemon left when it was killed.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}
