//! QEMU's control protocol over an inherited socket: JSON commands answered by id, and events.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::QemuError;

/// Bound on every answer. QEMU answers within milliseconds unless a disk hangs, or the host is starved: then a reset,
/// which every processor's thread takes part in, has been seen to take 12 s.
const BOUND: Duration = Duration::from_secs(60);

/// Longest message taken from QEMU, in bytes.
const MAX_MESSAGE: usize = 1 << 20;

/// Oldest release that runs guests without corrupting them.
const MIN_MAJOR: u64 = 10;

/// Something QEMU tells unasked.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// `SHUTDOWN`, `STOP`, ...
    pub event: String,
    /// What it says of it.
    #[serde(default)]
    pub data: Value,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Greeting {
        #[serde(rename = "QMP")]
        qmp: Value,
    },
    Event(Event),
    Answer {
        id: u64,
        #[serde(rename = "return")]
        value: Value,
    },
    Refused {
        id: u64,
        error: Refusal,
    },
}

type Answer = Result<Value, Refusal>;

/// A connection; clones share it.
#[derive(Clone, Debug)]
pub struct Qmp(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stream: UnixStream,
    /// One command is written at a time.
    writing: tokio::sync::Mutex<u64>,
    waiting: Mutex<Option<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    answers: HashMap<u64, oneshot::Sender<Answer>>,
}

impl std::fmt::Debug for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.desc)
    }
}

impl Qmp {
    /// Takes the greeting, checks QEMU's version and enters command mode. Events go to the receiver until
    /// QEMU closes the connection.
    ///
    /// # Errors
    /// QEMU is too old, speaks no QMP, or is gone.
    pub async fn connect(
        stream: std::os::unix::net::UnixStream,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Event>), QemuError> {
        let prepare = |error| QemuError::Prepare {
            what: "the control socket",
            error,
        };
        stream.set_nonblocking(true).map_err(prepare)?;
        let stream = UnixStream::from_std(stream).map_err(prepare)?;
        let shared = Arc::new(Shared {
            stream,
            writing: tokio::sync::Mutex::new(0),
            waiting: Mutex::new(Some(Waiting::default())),
        });
        let (greeting, greeted) = oneshot::channel();
        let (events, received) = mpsc::unbounded_channel();
        tokio::spawn(Arc::clone(&shared).read(greeting, events));

        let qmp = Self(shared);
        const COMMAND: &str = "qmp_capabilities";
        let greeting = within(COMMAND, greeted)
            .await?
            .map_err(|_| QemuError::Gone { command: COMMAND })?;
        check_version(&greeting)?;
        qmp.execute(COMMAND, json!({})).await?;
        Ok((qmp, received))
    }

    /// Runs a command.
    ///
    /// # Errors
    /// QEMU refuses it, is gone, or does not answer in time.
    pub async fn execute(
        &self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, QemuError> {
        self.execute_with(command, arguments, None).await
    }

    /// Runs a command that takes a descriptor along.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn execute_with(
        &self,
        command: &'static str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QemuError> {
        let gone = || QemuError::Gone { command };
        let answered = {
            let mut id = self.0.writing.lock().await;
            *id += 1;
            let (answer, answered) = oneshot::channel();
            {
                let mut waiting = self
                    .0
                    .waiting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                waiting
                    .as_mut()
                    .ok_or_else(gone)?
                    .answers
                    .insert(*id, answer);
            }
            let message =
                json!({ "execute": command, "arguments": arguments, "id": *id }).to_string();
            within(command, self.0.write(message.as_bytes(), fd))
                .await?
                .map_err(|_| gone())?;
            answered
        };
        within(command, answered)
            .await?
            .map_err(|_| gone())?
            .map_err(|refusal| QemuError::Refused {
                command,
                reason: refusal.desc,
            })
    }
}

/// Bounds the wait for QEMU.
async fn within<T>(command: &'static str, future: impl Future<Output = T>) -> Result<T, QemuError> {
    tokio::time::timeout(BOUND, future)
        .await
        .map_err(|_| QemuError::Timeout {
            command,
            seconds: BOUND.as_secs(),
        })
}

fn check_version(greeting: &Value) -> Result<(), QemuError> {
    let version = &greeting["version"]["qemu"];
    let part = |name: &str| version[name].as_u64();
    let (Some(major), Some(minor), Some(micro)) = (part("major"), part("minor"), part("micro"))
    else {
        return Err(QemuError::Protocol(
            "a greeting without a version".to_owned(),
        ));
    };
    if major < MIN_MAJOR {
        return Err(QemuError::TooOld {
            found: format!("{major}.{minor}.{micro}"),
        });
    }
    log::info!("QEMU {major}.{minor}.{micro} under TCG");
    Ok(())
}

impl Shared {
    async fn write(&self, mut bytes: &[u8], mut fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self
                .stream
                .async_io(Interest::WRITABLE, || {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    let fds = fd.map(|fd| [fd]);
                    if let Some(fds) = &fds {
                        control.push(SendAncillaryMessage::ScmRights(fds));
                    }
                    let flags = SendFlags::NOSIGNAL;
                    Ok(sendmsg(
                        &self.stream,
                        &[IoSlice::new(bytes)],
                        &mut control,
                        flags,
                    )?)
                })
                .await?;
            bytes = bytes.get(sent..).unwrap_or_default();
            fd = None;
        }
        Ok(())
    }

    /// Sorts what QEMU says, until it stops.
    async fn read(
        self: Arc<Self>,
        greeting: oneshot::Sender<Value>,
        events: mpsc::UnboundedSender<Event>,
    ) {
        let mut greeting = Some(greeting);
        let mut buffer = Vec::new();
        while let Ok(true) = self.fill(&mut buffer).await {
            while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(Message::Greeting { qmp }) => {
                        if let Some(greeting) = greeting.take() {
                            drop(greeting.send(qmp));
                        }
                    }
                    // Nobody may be interested any more, in an event or in an answer.
                    Ok(Message::Event(event)) => drop(events.send(event)),
                    Ok(Message::Answer { id, value }) => self.answer(id, Ok(value)),
                    Ok(Message::Refused { id, error }) => self.answer(id, Err(error)),
                    Err(error) => log::warn!("QEMU sent what is not QMP: {error}"),
                }
            }
            if buffer.len() > MAX_MESSAGE {
                log::error!("QEMU sent a message of more than {MAX_MESSAGE} bytes");
                break;
            }
        }
        // Whoever still waits learns that QEMU is gone, and so does whoever asks later.
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// Appends what has arrived; false at the end.
    async fn fill(&self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            self.stream.readable().await?;
            match self.stream.try_read_buf(buffer) {
                Ok(count) => return Ok(count != 0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = waiting
            .as_mut()
            .and_then(|waiting| waiting.answers.remove(&id))
        {
            drop(sender.send(answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream as StdStream;

    use super::*;

    /// Plays QEMU: greets with a version, answers commands from a script, then hangs up.
    fn fake(major: u64, answers: &'static [&'static str]) -> StdStream {
        let (ours, mut theirs) = StdStream::pair().unwrap();
        std::thread::spawn(move || {
            let greeting =
                json!({"QMP": {"version": {"qemu": {"major": major, "minor": 2, "micro": 3}}}});
            writeln!(theirs, "{greeting}").unwrap();
            let mut lines = BufReader::new(theirs.try_clone().unwrap());
            for answer in answers {
                // Commands have no line ends: each is one complete JSON value.
                let mut stream =
                    serde_json::Deserializer::from_reader(&mut lines).into_iter::<Value>();
                let Some(Ok(command)) = stream.next() else {
                    return;
                };
                let id = command["id"].as_u64().unwrap();
                writeln!(theirs, "{}", answer.replace("ID", &id.to_string())).unwrap();
            }
            drop(lines.fill_buf());
        });
        ours
    }

    #[tokio::test]
    async fn too_old() {
        let error = Qmp::connect(fake(7, &[])).await.unwrap_err();
        assert!(
            error.to_string().starts_with("QEMU 7.2.3 is too old"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn answers_refusals_and_events() {
        let qemu = fake(
            10,
            &[
                r#"{"return": {}, "id": ID}"#,
                "{\"event\": \"STOP\"}\n{\"return\": {\"a\": 1}, \"id\": ID}",
                r#"{"error": {"class": "GenericError", "desc": "no"}, "id": ID}"#,
            ],
        );
        let (qmp, mut events) = Qmp::connect(qemu).await.unwrap();
        assert_eq!(qmp.execute("one", json!({})).await.unwrap()["a"], 1);
        assert_eq!(events.recv().await.unwrap().event, "STOP");
        let error = qmp.execute("two", json!({})).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused two: no");
    }

    #[tokio::test]
    async fn gone() {
        let (ours, theirs) = StdStream::pair().unwrap();
        drop(theirs);
        assert!(matches!(
            Qmp::connect(ours).await,
            Err(QemuError::Gone { .. })
        ));
    }
}
