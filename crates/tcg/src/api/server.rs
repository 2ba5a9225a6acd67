//! HTTP/1.1 over the API's Unix socket.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, SERVER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;

use super::request::{Action, parse};
use crate::controller::{Controller, Reply};
use crate::fault::Fault;
use crate::metrics;

/// How much, in bytes, and for how long the rest of a body is taken that is refused.
const DISCARD_LIMIT: usize = 16 << 20;
const DISCARD_BOUND: Duration = Duration::from_secs(10);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// The API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Something of that name exists.
    #[error("Failed to open the API socket at: {0}. Check that it is not already used.")]
    InUse(String),
    /// It cannot be made.
    #[error("Failed to bind and run the HTTP server: cannot listen on {path}")]
    Bind {
        /// As given.
        path: String,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// The API's listening socket. Like Firecracker's it must not exist before, and it stays behind.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    payload_limit: usize,
}

impl Server {
    /// Listens at `path`, for bodies of up to `payload_limit` bytes.
    ///
    /// # Errors
    /// The socket exists or cannot be made.
    pub fn bind(path: &Path, payload_limit: usize) -> Result<Self, ServerError> {
        let shown = || path.display().to_string();
        let listener = UnixListener::bind(path).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => ServerError::InUse(shown()),
            _ => ServerError::Bind {
                path: shown(),
                error,
            },
        })?;
        log::info!("Listening on API socket ({path:?}).");
        Ok(Self {
            listener,
            payload_limit,
        })
    }

    /// Serves for ever: any number of connections, requests on `controller` one at a time.
    pub async fn run(self, controller: Arc<Mutex<Controller>>) -> Infallible {
        log::info!("API server started.");
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(serve(stream, Arc::clone(&controller), self.payload_limit));
                }
                Err(error) => {
                    log::error!("API Server error on retrieving incoming request: {error}");
                    // Out of descriptors, most likely. Nothing tells when there are some again.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve(stream: UnixStream, controller: Arc<Mutex<Controller>>, limit: usize) {
    let service = service_fn(move |request| {
        let controller = Arc::clone(&controller);
        async move { Ok::<_, Infallible>(respond(request, controller, limit).await) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        log::debug!("An API connection broke: {error}");
    }
}

async fn respond(
    request: Request<Incoming>,
    controller: Arc<Mutex<Controller>>,
    limit: usize,
) -> Response<Full<Bytes>> {
    // In a task of its own: a client that hangs up must not stop a request half way.
    let answered = tokio::spawn(handle(request, controller, limit)).await;
    let mut response = answered.unwrap_or_else(|panic| {
        log::error!("A request panicked: {panic}");
        let text = "Internal error: the request could not be completed.";
        json(StatusCode::INTERNAL_SERVER_ERROR, fault_message(text))
    });
    response
        .headers_mut()
        .insert(SERVER, HeaderValue::from_static("Firecracker API"));
    response
}

async fn handle(
    request: Request<Incoming>,
    controller: Arc<Mutex<Controller>>,
    limit: usize,
) -> Response<Full<Bytes>> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let action = match read_action(request, limit).await {
        Ok(action) => action,
        Err(fault) => return refusal(&fault),
    };
    let deprecated = action.deprecated();
    let outcome = controller.lock().await.handle(action).await;
    let mut response = match outcome {
        Ok(Reply::Empty) => {
            log::info!("The request was executed successfully. Status code: 204 No Content.");
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Ok(Reply::Json(value)) => {
            log::info!("The request was executed successfully. Status code: 200 OK.");
            json(StatusCode::OK, value.to_string())
        }
        Err(fault) => refusal(&fault),
    };
    if let Some(what) = deprecated {
        log::warn!("{method} {path}: {what}");
        metrics::add("deprecated_api", "deprecated_http_api_calls");
        response
            .headers_mut()
            .insert("deprecation", HeaderValue::from_static("true"));
    }
    response
}

fn json(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refusal(fault: &Fault) -> Response<Full<Bytes>> {
    let status = match fault {
        Fault::MmdsLimitExceeded(_) => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::BAD_REQUEST,
    };
    log::error!("Received Error. Status code: {status}. Message: {fault}");
    json(status, refusal_body(fault))
}

fn refusal_body(fault: &Fault) -> String {
    match fault {
        // Firecracker's HTTP server itself refuses these. What it says is not quite JSON: the line break is a bare one.
        Fault::PayloadTooLarge { .. } => {
            format!(
                "{{ \"error\": \"{fault}\nAll previous unanswered requests will be dropped.\" }}"
            )
        }
        _ => fault_message(&fault.to_string()),
    }
}

fn fault_message(text: &str) -> String {
    serde_json::json!({ "fault_message": text }).to_string()
}

async fn read_action(request: Request<Incoming>, limit: usize) -> Result<Action, Fault> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let body = read_body(request, limit).await?;
    log::info!(
        "The API server received a {}.",
        describe(&method, &path, &body)
    );
    parse(method.as_str(), &path, &body)
}

async fn read_body(request: Request<Incoming>, limit: usize) -> Result<Bytes, Fault> {
    let announced = request
        .headers()
        .get(hyper::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .unwrap_or(0);
    let too_large = |size| Fault::PayloadTooLarge { size, limit };
    let mut body = request.into_body();
    if announced > limit as u64 {
        discard(body).await;
        return Err(too_large(announced));
    }
    match Limited::new(&mut body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            discard(body).await;
            Err(too_large(limit as u64 + 1))
        }
        Err(error) => Err(Fault::Body(error.to_string())),
    }
}

/// Takes what a client still sends of a refused body, within bounds: a Unix socket that is closed
/// with bytes unread takes the answer from the client.
async fn discard(body: Incoming) {
    let mut rest = Limited::new(body, DISCARD_LIMIT);
    let all = async { while let Some(Ok(_)) = rest.frame().await {} };
    // A client that sends for longer may lose its answer.
    let _ = tokio::time::timeout(DISCARD_BOUND, all).await;
}

/// A request for the log, in Firecracker's words.
fn describe(method: &Method, path: &str, body: &[u8]) -> String {
    let method = match *method {
        Method::GET => "Get",
        Method::PUT => "Put",
        Method::PATCH => "Patch",
        _ => method.as_str(),
    };
    if body.is_empty() || path == "/mmds" {
        return format!("{method} request on {path:?}");
    }
    let body = std::str::from_utf8(body).unwrap_or("inconvertible to UTF-8");
    format!("{method} request on {path:?} with body {body:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_as_firecracker_words_them() {
        let fault = Fault::PayloadTooLarge {
            size: 11,
            limit: 10,
        };
        assert_eq!(
            refusal_body(&fault),
            "{ \"error\": \"Request payload with size 11 is larger than the limit of 10 allowed by server.\n\
             All previous unanswered requests will be dropped.\" }"
        );
        assert_eq!(refusal(&fault).status(), StatusCode::BAD_REQUEST);
        assert_eq!(
            refusal_body(&Fault::EmptyId),
            r#"{"fault_message":"The ID cannot be empty."}"#
        );
    }
}
