//! One client of the shared address, and the two who answer it.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use fc_proto::ttrpc::asynchronous::Server;
use fc_rpc::incoming::Connection;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::frame::Frame;
use crate::client::in_process_stream;
use crate::host::Host;

/// The service that is ours.
const OURS: &str = "Firecracker";
/// Messages on their way to the client.
const QUEUE: usize = 16;
/// Requests to us that a client may have open.
const MAX_OPEN: usize = 4096;

/// Streams of requests to us; all others are containerd's.
type Ours = Arc<Mutex<HashSet<u32>>>;

/// Passes messages between a client, us and containerd until one of them closes its connection:
/// a client notices containerd's end as if it were connected to containerd.
///
/// # Errors
/// When containerd cannot be reached, or somebody does not speak ttrpc.
pub async fn run(client: Connection, host: Host, containerd: &Path) -> io::Result<()> {
    let (from_client, to_client) = split(client);
    let (answers, queue) = mpsc::channel(QUEUE);
    let ours = Ours::default();
    let mut tasks = JoinSet::new();
    tasks.spawn(deliver(queue, to_client));
    let mut sides = Sides {
        host,
        us: None,
        containerd: None,
        ours: Arc::clone(&ours),
        answers,
    };
    sides.route(from_client, containerd, &mut tasks).await
}

/// Who answers; each is connected to when the first request for it comes.
struct Sides {
    host: Host,
    us: Option<(WriteHalf<UnixStream>, Server)>,
    containerd: Option<WriteHalf<UnixStream>>,
    ours: Ours,
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
                        let ours = Some(Arc::clone(&self.ours));
                        tasks.spawn(collect(read, self.answers.clone(), ours));
                        self.us.insert((write, server))
                    }
                };
                frame.write(us).await?;
            } else {
                let containerd = match &mut self.containerd {
                    Some(containerd) => containerd,
                    None => {
                        let (read, write) = split(fc_vsock::unix::connect(containerd).await?);
                        tasks.spawn(collect(read, self.answers.clone(), None));
                        self.containerd.insert(write)
                    }
                };
                frame.write(containerd).await?;
            }
        }
    }

    fn is_ours(&self, frame: &Frame) -> io::Result<bool> {
        let mut ours = self.ours.lock().unwrap_or_else(PoisonError::into_inner);
        match frame.service() {
            Some(service) if service == OURS => {
                if ours.len() == MAX_OPEN {
                    return Err(io::Error::other("too many open requests"));
                }
                ours.insert(frame.stream());
                Ok(true)
            }
            Some(_) => Ok(false),
            None => Ok(ours.contains(&frame.stream())),
        }
    }
}

/// Takes what one side answers. `ours`: forgets streams that ended.
async fn collect(
    mut from: ReadHalf<UnixStream>,
    answers: mpsc::Sender<Frame>,
    ours: Option<Ours>,
) -> io::Result<()> {
    while let Some(frame) = Frame::read(&mut from).await? {
        if let Some(ours) = &ours
            && frame.ends_stream()
        {
            let mut ours = ours.lock().unwrap_or_else(PoisonError::into_inner);
            ours.remove(&frame.stream());
        }
        if answers.send(frame).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Gives the client what both sides answer.
async fn deliver(
    mut queue: mpsc::Receiver<Frame>,
    mut client: WriteHalf<Connection>,
) -> io::Result<()> {
    while let Some(frame) = queue.recv().await {
        frame.write(&mut client).await?;
    }
    client.shutdown().await
}
