//! Calls to a ttrpc server on this host.

use std::io;
use std::path::Path;
use std::time::Duration;

use fc_proto::NAMESPACE_KEY;
use fc_proto::ttrpc::asynchronous::Client;
use fc_proto::ttrpc::asynchronous::transport::Socket;
use fc_proto::ttrpc::context::{Context, with_duration};

/// Connects to the ttrpc server whose Unix socket is at `path`, which may be of any length.
/// All calls of the client and its clones share the connection.
///
/// # Errors
/// As `connect(2)`.
pub async fn connect(path: &Path) -> io::Result<Client> {
    let stream = fc_vsock::unix::connect(path).await?;
    Ok(Client::new(Socket::new(stream)))
}

/// A call in `namespace` that may take `bound`; zero: as long as it wants.
#[must_use]
pub fn context(namespace: &str, bound: Duration) -> Context {
    let mut context = with_duration(bound);
    context.set(NAMESPACE_KEY.to_owned(), vec![namespace.to_owned()]);
    context
}
