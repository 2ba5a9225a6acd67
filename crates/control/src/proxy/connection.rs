//! One client of the shared address, and the two who answer it.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use fc_proto::ttrpc::asynchronous::Server;
use fc_rpc::incoming::Connection;
use tokio::io::{ReadHalf, WriteHalf, split};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::frame::Frame;
use crate::client::in_process_stream;
use crate::host::Host;

/// The service that is ours.
const OURS: &str = "Firecracker";
/// Messages on their way to the client.
const QUEUE: usize = 16;
/// Requests that a client may have open.
const MAX_OPEN: usize = 4096;
/// How long containerd may take over the last requests of a client that has gone. A shim ends right
/// after its last event, and containerd forgets a request whose connection has closed.
const LAST_BOUND: Duration = Duration::from_secs(10);

/// Streams whose requests are not answered yet.
#[derive(Default)]
struct Open {
    ours: HashSet<u32>,
    containerds: HashSet<u32>,
}

/// Passes messages between a client, us and containerd until one of them closes its connection:
/// a client notices containerd's end as if it were connected to containerd.
///
/// # Errors
/// When containerd cannot be reached, or somebody does not speak ttrpc.
pub async fn run(client: Connection, host: Host, containerd: &Path) -> io::Result<()> {
    let (from_client, to_client) = split(client);
    let (answers, queue) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    tasks.spawn(deliver(queue, to_client));
    let mut sides = Sides {
        host,
        us: None,
        containerd: None,
        open: watch::Sender::default(),
        answers,
    };
    sides.route(from_client, containerd, &mut tasks).await?;
    // The client has gone: who waits for a VM gives it up, who told containerd something is heard.
    sides.us = None;
    let mut open = sides.open.subscribe();
    let answered = open.wait_for(|open| open.containerds.is_empty());
    // Answered or not, nobody is there any more to be told.
    let _ = tokio::time::timeout(LAST_BOUND, answered).await;
    Ok(())
}

/// Who answers; each is connected to when the first request for it comes.
struct Sides {
    host: Host,
    us: Option<(WriteHalf<UnixStream>, Server)>,
    containerd: Option<WriteHalf<UnixStream>>,
    open: watch::Sender<Open>,
    answers: mpsc::Sender<Frame>,
}

impl Sides {
    /// Passes the client's messages on.
    async fn route(
        &mut self,
        mut client: ReadHalf<Connection>,
        containerd: &Path,
        tasks: &mut JoinSet<io::Result<()>>,
    ) -> io::Result<()> {
        loop {
            let frame = tokio::select! {
                frame = Frame::read(&mut client) => match frame? {
                    Some(frame) => frame,
                    None => return Ok(()),
                },
                // Somebody is gone.
                Some(ended) = tasks.join_next() => return ended.map_err(io::Error::other)?,
            };
            if self.is_ours(&frame)? {
                let (us, _) = match &mut self.us {
                    Some(us) => us,
                    None => {
                        let (stream, server) = in_process_stream(self.host.clone())
                            .await
                            .map_err(io::Error::other)?;
                        let (read, write) = split(stream);
                        tasks.spawn(collect(read, self.answers.clone(), self.open.clone()));
                        self.us.insert((write, server))
                    }
                };
                frame.write(us).await?;
            } else {
                let containerd = match &mut self.containerd {
                    Some(containerd) => containerd,
                    None => {
                        let (read, write) = split(fc_vsock::unix::connect(containerd).await?);
                        tasks.spawn(collect(read, self.answers.clone(), self.open.clone()));
                        self.containerd.insert(write)
                    }
                };
                frame.write(containerd).await?;
            }
        }
    }

    /// Whether a message is for us; notes a new request.
    fn is_ours(&self, frame: &Frame) -> io::Result<bool> {
        let Some(service) = frame.service() else {
            return Ok(self.open.borrow().ours.contains(&frame.stream()));
        };
        let ours = service == OURS;
        let noted = self.open.send_if_modified(|open| {
            if open.ours.len() + open.containerds.len() == MAX_OPEN {
                return false;
            }
            if ours {
                open.ours.insert(frame.stream())
            } else {
                open.containerds.insert(frame.stream())
            }
        });
        // A stream that is open already is as wrong as one too many.
        if noted {
            Ok(ours)
        } else {
            Err(io::Error::other(
                "too many requests, or a stream id used twice",
            ))
        }
    }
}

/// Takes what one side answers.
async fn collect(
    mut from: ReadHalf<UnixStream>,
    answers: mpsc::Sender<Frame>,
    open: watch::Sender<Open>,
) -> io::Result<()> {
    while let Some(frame) = Frame::read(&mut from).await? {
        if frame.ends_stream() {
            let stream = frame.stream();
            open.send_modify(|open| {
                open.ours.remove(&stream);
                open.containerds.remove(&stream);
            });
        }
        // Fails when the client has gone; that the answer came is noted all the same.
        let _ = answers.send(frame).await;
    }
    // Nobody is left to answer.
    open.send_replace(Open::default());
    Ok(())
}

/// Gives the client what both sides answer.
async fn deliver(
    mut queue: mpsc::Receiver<Frame>,
    mut client: WriteHalf<Connection>,
) -> io::Result<()> {
    while let Some(frame) = queue.recv().await {
        if frame.write(&mut client).await.is_err() {
            // The client has gone.
            break;
        }
    }
    Ok(())
}
