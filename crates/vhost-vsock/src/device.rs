//! The device's life: its threads, and how they end.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{ShutdownHandle, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::backend::{AGAIN_EVENT, Backend, HOST_EVENT};
use crate::counters::{Counters, VsockCounters};
use crate::error::{VsockError, WorkerError};
use crate::muxer::Muxer;

type Daemon = VhostUserDaemon<Arc<Mutex<Backend>>>;

/// What a device is made of.
#[derive(Debug)]
pub struct VsockConfig {
    /// A listening socket for QEMU's `-chardev socket`. One connection is taken.
    pub vhost_socket: UnixListener,
    /// Firecracker's `uds_path`: host programs connect here, and to
    /// `<uds_path>_<port>` the guest's connections go. Must not exist. A
    /// relative path is relative to the process's working directory, always.
    pub uds_path: PathBuf,
    /// The guest's context id, 3 to 4294967294 (Firecracker's API: `guest_cid`).
    pub guest_cid: u64,
}

/// Why a device is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceEnd {
    /// QEMU has closed its side, as it does when it exits.
    Disconnected,
    /// Something went wrong; the text says what.
    Failed(String),
}

/// A running vsock device. Dropping it closes all connections and ends its
/// threads. The socket file at `uds_path` stays, as Firecracker's does.
///
/// [`AsFd`] gives an event that becomes readable when the device has ended by
/// itself, for poll or epoll; it must not be read.
#[derive(Debug)]
pub struct VsockDevice {
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

/// What the device's owner and its thread share.
struct Shared {
    stop: OwnedFd,
    ended: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stopping: bool,
    /// Why the worker thread has ended early.
    failure: Option<String>,
    /// Ends the frontend's connection, once there is one.
    shutdown: Option<ShutdownHandle>,
    end: Option<DeviceEnd>,
}

impl VsockDevice {
    /// Listens on `uds_path` and for QEMU, and returns at once.
    ///
    /// # Errors
    ///
    /// See [`VsockError`]; nothing is left behind then.
    pub fn start(config: VsockConfig) -> Result<VsockDevice, VsockError> {
        if config.guest_cid < 3 || config.guest_cid >= u64::from(u32::MAX) {
            return Err(VsockError::GuestCid(config.guest_cid));
        }
        let setup = |error: Errno| VsockError::Setup(error.into());
        let shared = Arc::new(Shared {
            stop: eventfd(0, EventfdFlags::CLOEXEC).map_err(setup)?,
            ended: eventfd(0, EventfdFlags::CLOEXEC).map_err(setup)?,
            state: Mutex::default(),
        });
        config
            .vhost_socket
            .set_nonblocking(false)
            .map_err(VsockError::Setup)?;
        let host = UnixListener::bind(&config.uds_path).map_err(|source| VsockError::Bind {
            path: config.uds_path.clone(),
            source,
        })?;
        let path = config.uds_path.clone();
        let started = start_worker(&shared, config.guest_cid, config.uds_path, host).and_then(
            |(daemon, counters)| {
                let thread_shared = Arc::clone(&shared);
                let thread = std::thread::Builder::new()
                    .name("vsock".into())
                    .spawn(move || thread_shared.serve(daemon, config.vhost_socket))
                    .map_err(VsockError::Setup)?;
                Ok((thread, counters))
            },
        );
        match started {
            Ok((thread, counters)) => Ok(VsockDevice {
                shared,
                counters,
                thread: Some(thread),
            }),
            Err(error) => {
                // The socket was made a moment ago; if it cannot be removed, that is the lesser error.
                drop(std::fs::remove_file(path));
                Err(error)
            }
        }
    }

    /// What has gone over the device so far.
    pub fn counters(&self) -> VsockCounters {
        self.counters.read()
    }

    /// `None` while the device works or waits for QEMU.
    pub fn end(&self) -> Option<DeviceEnd> {
        self.shared.state().end.clone()
    }

    /// Waits until the device has ended by itself.
    pub fn wait(&self) -> DeviceEnd {
        loop {
            if let Some(end) = self.end() {
                return end;
            }
            wait_readable(&[self.as_fd()]);
        }
    }
}

impl AsFd for VsockDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.ended.as_fd()
    }
}

impl Drop for VsockDevice {
    fn drop(&mut self) {
        let shutdown = {
            let mut state = self.shared.state();
            state.stopping = true;
            state.shutdown.take()
        };
        raise(&self.shared.stop);
        if let Some(shutdown) = shutdown {
            shutdown.shutdown();
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("The vsock device's thread panicked");
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("end", &self.state().end)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What ended the device before there was a frontend.
    fn early_end(&self) -> Option<DeviceEnd> {
        let mut state = self.state();
        let failure = state.failure.take().map(DeviceEnd::Failed);
        failure.or(state.stopping.then_some(DeviceEnd::Disconnected))
    }

    /// Ends the device because its worker thread cannot go on.
    fn fail(&self, reason: String) {
        let mut state = self.state();
        state.failure.get_or_insert(reason);
        raise(&self.stop);
        if let Some(shutdown) = &state.shutdown {
            shutdown.shutdown();
        }
    }

    /// The device's thread: takes the frontend's connection and sees it end.
    fn serve(&self, mut daemon: Daemon, vhost_socket: UnixListener) {
        let end = self.serve_frontend(&mut daemon, vhost_socket);
        for handler in daemon.get_epoll_handlers() {
            handler.send_exit_event();
        }
        self.state().end = Some(end);
        raise(&self.ended);
    }

    fn serve_frontend(&self, daemon: &mut Daemon, vhost_socket: UnixListener) -> DeviceEnd {
        wait_readable(&[vhost_socket.as_fd(), self.stop.as_fd()]);
        if let Some(end) = self.early_end() {
            return end;
        }
        if let Err(error) = daemon.start(&mut Listener::from(vhost_socket)) {
            return DeviceEnd::Failed(error.to_string());
        }
        {
            let mut state = self.state();
            state.shutdown = daemon.shutdown_handle();
            if state.stopping || state.failure.is_some() {
                daemon.request_shutdown();
            }
        }
        let end = daemon.wait();
        if let Some(reason) = self.state().failure.take() {
            return DeviceEnd::Failed(reason);
        }
        match end {
            Ok(())
            | Err(vhost_user_backend::Error::HandleRequest(
                ProtocolError::Disconnected | ProtocolError::PartialMessage,
            )) => DeviceEnd::Disconnected,
            Err(error) => DeviceEnd::Failed(error.to_string()),
        }
    }
}

/// Makes the device and the thread that moves its packets.
fn start_worker(
    shared: &Arc<Shared>,
    guest_cid: u64,
    uds_path: PathBuf,
    host: UnixListener,
) -> Result<(Daemon, Arc<Counters>), VsockError> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let muxer = Muxer::new(guest_cid, uds_path, host).map_err(VsockError::Setup)?;
    let counters = muxer.counters();
    let failing = Arc::clone(shared);
    let on_failure = Box::new(move |reason| failing.fail(reason));
    let backend =
        Backend::new(guest_cid, muxer, memory.clone(), on_failure).map_err(VsockError::Setup)?;
    let host_events = backend.muxer().as_fd().as_raw_fd();
    let again = backend.again().as_raw_fd();
    let backend = Arc::new(Mutex::new(backend));
    let daemon = Daemon::new("vsock-vhost".into(), backend, memory)
        .map_err(|error| VsockError::Worker(WorkerError(error)))?;
    for handler in daemon.get_epoll_handlers() {
        handler
            .register_listener(host_events, EventSet::IN, u64::from(HOST_EVENT))
            .and_then(|()| handler.register_listener(again, EventSet::IN, u64::from(AGAIN_EVENT)))
            .map_err(VsockError::Setup)?;
    }
    Ok((daemon, counters))
}

fn wait_readable(fds: &[BorrowedFd<'_>]) {
    let mut fds: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    while poll(&mut fds, None) == Err(Errno::INTR) {}
}

fn raise(event: &OwnedFd) {
    // The counter overflows after 2^64 - 2 of these, and nothing else can fail.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_failure_of_the_worker_ends_the_device() {
        let directory = tempfile::tempdir().expect("directory");
        let vhost = directory.path().join("vhost");
        let device = VsockDevice::start(VsockConfig {
            vhost_socket: UnixListener::bind(&vhost).expect("vhost socket"),
            uds_path: directory.path().join("v.sock"),
            guest_cid: 3,
        })
        .expect("device");
        let mut frontend = UnixStream::connect(&vhost).expect("frontend");
        assert_eq!(device.end(), None);
        device.shared.fail("worker broke".into());
        device.shared.fail("and again".into());
        assert_eq!(device.wait(), DeviceEnd::Failed("worker broke".into()));
        // QEMU sees its side closed.
        let read = std::io::Read::read(&mut frontend, &mut [0]);
        assert!(!matches!(read, Ok(1..)), "{read:?}");
    }
}
