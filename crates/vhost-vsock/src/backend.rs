//! What the vhost-user frontend (QEMU) sees: features, the configuration
//! space, and a handler for its queues' and our sockets' events.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VringMutex};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::muxer::Muxer;
use crate::queues::{Memory, Queues};

/// Receive, transmit, event. QEMU serves the last itself but counts it.
const NUM_QUEUES: usize = 3;
const RX_QUEUE: usize = 0;
const TX_QUEUE: usize = 1;
/// QEMU uses 128.
const MAX_QUEUE_SIZE: usize = 1024;

/// Event ids behind those of the queues and of the exit event.
pub(crate) const HOST_EVENT: u16 = 4;
/// There were more packets to move than one turn allows.
pub(crate) const AGAIN_EVENT: u16 = 5;

/// Hears why the worker thread ends if something went wrong.
pub(crate) type OnFailure = Box<dyn Fn(String) + Send + Sync>;

/// The device, as vhost-user-backend's worker thread drives it.
pub(crate) struct Backend {
    guest_cid: u64,
    muxer: Muxer,
    queues: Queues,
    again: (EventConsumer, EventNotifier),
    on_failure: OnFailure,
    /// Handed out once, to the worker.
    exit: Mutex<Option<(EventConsumer, EventNotifier)>>,
}

impl Backend {
    /// A device with one worker thread.
    pub(crate) fn new(
        guest_cid: u64,
        muxer: Muxer,
        memory: Memory,
        on_failure: OnFailure,
    ) -> io::Result<Backend> {
        let event = || new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC);
        Ok(Backend {
            guest_cid,
            muxer,
            queues: Queues::new(memory),
            again: event()?,
            on_failure,
            exit: Mutex::new(Some(event()?)),
        })
    }

    /// The sockets' epoll, to be watched as [`HOST_EVENT`].
    pub(crate) fn muxer(&self) -> &Muxer {
        &self.muxer
    }

    /// To be watched as [`AGAIN_EVENT`].
    pub(crate) fn again(&self) -> &EventConsumer {
        &self.again.0
    }

    /// Takes in what has happened on the host's sockets, if that is the event, and moves packets.
    fn on_event(&mut self, event: u16, vrings: &[VringMutex]) -> io::Result<()> {
        match event {
            HOST_EVENT => self.muxer.on_host_events()?,
            // Another turn may have taken it away already.
            AGAIN_EVENT => drop(self.again.0.consume()),
            _ => {}
        }
        match self
            .queues
            .run(&mut self.muxer, &vrings[RX_QUEUE], &vrings[TX_QUEUE])
        {
            Ok(true) => self.again.1.notify()?,
            Ok(false) => {}
            // A guest that breaks its rings has no vsock until it resets the device.
            Err(error) => tracing::warn!(%error, "The guest's vsock queues are broken"),
        }
        Ok(())
    }
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        NUM_QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    /// Without indirect descriptors, as Firecracker's: a Linux guest would allocate a table for each of its buffers.
    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    /// The queues know by themselves.
    fn set_event_idx(&mut self, _enabled: bool) {}

    /// The configuration space is the guest's context id (little-endian u64).
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.guest_cid.to_le_bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
        config.get(start..end).unwrap_or_default().to_vec()
    }

    /// The memory is shared with the queues, which look at it anew each time.
    fn update_memory(&mut self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit.lock().ok()?.take()
    }

    fn handle_event(
        &mut self,
        event: u16,
        _events: EventSet,
        vrings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        // The library's thread ends with an error or a panic, and tells nobody. (Where panics abort, the process does.)
        let outcome = catch_unwind(AssertUnwindSafe(|| self.on_event(event, vrings)));
        outcome
            .unwrap_or_else(|panic| Err(io::Error::other(format!("panic: {}", said(&*panic)))))
            .inspect_err(|error| (self.on_failure)(error.to_string()))
    }
}

/// A panic's message.
fn said(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::channel;

    use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

    use super::*;

    #[test]
    fn a_panic_of_the_worker_is_told() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("v.sock");
        let listener = UnixListener::bind(&path).expect("listener");
        let muxer = Muxer::new(3, path, listener).expect("muxer");
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let (failures, told) = channel();
        let on_failure = Box::new(move |reason| failures.send(reason).expect("a listener"));
        let mut backend = Backend::new(3, muxer, memory, on_failure).expect("backend");
        // A device without its queues: what the library never does.
        let error = backend.handle_event(AGAIN_EVENT, EventSet::IN, &[], 0);
        assert!(error.is_err());
        let reason = told.try_recv().expect("a failure");
        assert!(reason.starts_with("panic: index out of bounds"), "{reason}");
    }
}
