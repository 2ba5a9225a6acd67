//! What all services have in common.

use std::error::Error;

use fc_errors::chain;
use ttrpc::Code;

/// Runs `work` to its end also when the caller goes away: the server cancels a handler then, which
/// must not leave half of a change behind.
///
/// # Errors
/// Those of `work`.
pub(crate) async fn detached<T, E>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> ttrpc::Result<T>
where
    T: Send + 'static,
    E: Into<ttrpc::Error> + Send + 'static,
{
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// `error` with all its causes as an answer.
pub(crate) fn status(code: Code, error: &dyn Error) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, chain(error)))
}
