//! A tiny VMM's API.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

/// A request as `PUT /path body`, and which connection it came on.
pub type Seen = (usize, String);

/// Answers every request with what `answer` makes of it: a status and a body.
pub struct Server {
    pub seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub fn start(
        socket: &Path,
        answer: impl Fn(&str) -> (u16, &'static str) + Send + Sync + 'static,
    ) -> Self {
        let listener = fc_vsock::unix::bind(socket).expect("a listener");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&seen);
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            for number in 0.. {
                let (stream, _) = listener.accept().await.expect("a connection");
                let (record, answer) = (Arc::clone(&record), Arc::clone(&answer));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (record, answer) = (Arc::clone(&record), Arc::clone(&answer));
                    async move {
                        let line = format!("{} {}", request.method(), request.uri());
                        let body = request
                            .into_body()
                            .collect()
                            .await
                            .expect("a body")
                            .to_bytes();
                        let body = String::from_utf8(body.to_vec()).expect("text");
                        let line = format!("{line} {body}").trim_end().to_owned();
                        let (status, body) = answer(&line);
                        record.lock().expect("the record").push((number, line));
                        if status == 0 {
                            std::future::pending::<()>().await;
                        }
                        let mut response = Response::new(Full::new(Bytes::from(body)));
                        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
                        Ok::<_, Infallible>(response)
                    }
                });
                connections.spawn(async move {
                    // A client may go away at any time.
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { seen, task }
    }

    pub fn requests(&self) -> Vec<Seen> {
        self.seen.lock().expect("the record").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}
