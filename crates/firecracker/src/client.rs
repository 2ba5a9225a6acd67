//! HTTP to the VMM's Unix socket.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::api::{InstanceInfo, InstanceState};
use crate::vmm::Exit;
use crate::{ApiError, Call, text};

/// How long a call may take if nothing else is said: an idle VMM answers within milliseconds, one on a busy host has
/// been seen to take more than 2 s.
pub const DEFAULT_BOUND: Duration = Duration::from_secs(10);

/// How long booting may take until the VMM answers.
pub const BOOT_BOUND: Duration = Duration::from_secs(30);

/// How long a call may take for which the VMM writes back, closes and opens files of the host: a busy disk takes
/// seconds.
pub const DISK_BOUND: Duration = Duration::from_secs(30);

/// How long a VMM whose connection broke is given to be seen ending.
const END_BOUND: Duration = Duration::from_secs(10);

/// Longest answer in bytes; the metadata and the whole configuration are the long ones.
const MAX_ANSWER: usize = 1 << 20;

/// Speaks with one VMM. Clones share the connection, which is made when it is needed and kept.
///
/// Calls are made one after the other, as the VMM serves them. Each has a bound, once for waiting until it is its turn
/// and once for the call. A call whose future is dropped may still take effect.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    bound: Duration,
    exit: Option<Exit>,
    connection: Arc<Mutex<Option<Connection>>>,
    /// What the VM was doing when last heard of.
    state: Arc<std::sync::Mutex<Option<InstanceState>>>,
}

type Connection = SendRequest<Full<Bytes>>;

impl Client {
    /// A client of the VMM whose API is at the Unix socket `socket`; the path may be of any length.
    /// Does not connect yet. Calls are bounded by [`DEFAULT_BOUND`].
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            bound: DEFAULT_BOUND,
            exit: None,
            connection: Arc::default(),
            state: Arc::default(),
        }
    }

    /// The same client with calls bounded by `bound`; for booting it is at least [`BOOT_BOUND`], for a drive's change
    /// and for a pause [`DISK_BOUND`].
    #[must_use]
    pub fn with_bound(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// The same client, which tells a process that ended from a connection that failed.
    pub(crate) fn with_exit(mut self, exit: Exit) -> Self {
        self.exit = Some(exit);
        self
    }

    /// What the VM was doing when a call last told; errors show it.
    pub(crate) fn last_state(&self) -> Option<InstanceState> {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a call told of the VM's state.
    pub(crate) fn note(&self, state: InstanceState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }

    pub(crate) fn bound(&self) -> Duration {
        self.bound
    }

    /// Asks for the value at `path`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.request(Method::GET, path.to_owned(), Bytes::new(), self.bound)
            .await
    }

    /// Sends `body`, to be answered with nothing.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: String,
        body: &impl Serialize,
        bound: Duration,
    ) -> Result<(), ApiError> {
        match serde_json::to_vec(body) {
            Ok(body) => self.request(method, path, body.into(), bound).await,
            Err(source) => Err(ApiError::Encode {
                call: call(&method, &path),
                source,
            }),
        }
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: String,
        body: Bytes,
        bound: Duration,
    ) -> Result<T, ApiError> {
        let call = call(&method, &path);
        let (status, answer) = self.exchange(&call, method, body, bound).await?;
        if !status.is_success() {
            return Err(ApiError::Refused {
                status: status.as_u16(),
                fault_message: fault_message(&answer),
                state: if path == "/" {
                    None
                } else {
                    self.ask_state().await
                },
                call,
            });
        }
        // An answer without content has nothing to say: JSON's null.
        let json = if answer.is_empty() {
            b"null"
        } else {
            &answer[..]
        };
        serde_json::from_slice(json).map_err(|source| ApiError::BadAnswer {
            call,
            state: self.last_state(),
            answer: text::excerpt(&answer),
            source,
        })
    }

    /// What the VM is doing, if the VMM says so.
    async fn ask_state(&self) -> Option<InstanceState> {
        let get = call(&Method::GET, "/");
        let (status, answer) = self
            .exchange(&get, Method::GET, Bytes::new(), self.bound)
            .await
            .ok()?;
        if !status.is_success() {
            return None;
        }
        let info = serde_json::from_slice::<InstanceInfo>(&answer).ok()?;
        self.note(info.state);
        Some(info.state)
    }

    /// Sends a request and takes the answer, whatever it says.
    async fn exchange(
        &self,
        call: &Call,
        method: Method,
        body: Bytes,
        bound: Duration,
    ) -> Result<(StatusCode, Bytes), ApiError> {
        let Ok(mut kept) = timeout(bound, self.connection.lock()).await else {
            let error = ApiError::Busy {
                call: call.clone(),
                bound,
                state: self.last_state(),
            };
            return Err(self.explain(call, error, Duration::ZERO).await);
        };
        let exchange = async {
            // Taken out, so that a connection in an unknown state is not used again.
            let mut connection = match kept.take() {
                Some(mut connection) => match connection.ready().await {
                    Ok(()) => connection,
                    // Closed meanwhile, with nothing under way.
                    Err(_) => self.connect(call).await?,
                },
                None => self.connect(call).await?,
            };
            let answer = self.talk(&mut connection, call, method, body).await?;
            *kept = Some(connection);
            Ok(answer)
        };
        let result = timeout(bound, exchange).await;
        drop(kept);
        match result {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.explain(call, error, END_BOUND).await),
            Err(_) => {
                let error = ApiError::TimedOut {
                    call: call.clone(),
                    bound,
                    state: self.last_state(),
                };
                Err(self.explain(call, error, Duration::ZERO).await)
            }
        }
    }

    async fn connect(&self, call: &Call) -> Result<Connection, ApiError> {
        let refused = |source: io::Error| ApiError::Connect {
            call: call.clone(),
            socket: self.socket.clone(),
            source,
        };
        let stream = fc_vsock::unix::connect(&self.socket)
            .await
            .map_err(refused)?;
        let (connection, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|source| self.transport(call, source))?;
        // It ends with the connection, and its error is also the call's.
        tokio::spawn(async { driver.await.unwrap_or_default() });
        Ok(connection)
    }

    /// Sends a request on `connection` and takes the answer.
    async fn talk(
        &self,
        connection: &mut Connection,
        call: &Call,
        method: Method,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ApiError> {
        let request = Request::builder()
            .method(method)
            .uri(&call.path)
            .header(header::HOST, "localhost")
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body));
        let request = request.expect("method, escaped path and headers are valid");
        let response = connection.send_request(request).await;
        let response = response.map_err(|source| self.transport(call, source))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        let body = body.map_err(|source| ApiError::BadBody {
            call: call.clone(),
            state: self.last_state(),
            source,
        })?;
        Ok((status, body.to_bytes()))
    }

    fn transport(&self, call: &Call, source: hyper::Error) -> ApiError {
        ApiError::Transport {
            call: call.clone(),
            state: self.last_state(),
            source,
        }
    }

    /// `error`, or the end of the process if that is what was behind it.
    async fn explain(&self, call: &Call, error: ApiError, wait: Duration) -> ApiError {
        let Some(exit) = &self.exit else { return error };
        let end = match exit.now() {
            Some(end) => Some(end),
            None => timeout(wait, exit.wait()).await.ok(),
        };
        match end {
            Some(end) => ApiError::VmmGone {
                call: call.clone(),
                state: self.last_state(),
                end,
            },
            None => error,
        }
    }
}

fn call(method: &Method, path: &str) -> Call {
    Call {
        method: method.to_string(),
        path: path.to_owned(),
    }
}

/// The reason in the VMM's answer, or the answer itself if it has no reason.
fn fault_message(answer: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Fault {
        fault_message: String,
    }
    match serde_json::from_slice::<Fault>(answer) {
        Ok(fault) => text::excerpt(fault.fault_message),
        Err(_) if answer.is_empty() => "no reason given".to_owned(),
        Err(_) => text::excerpt(answer),
    }
}
