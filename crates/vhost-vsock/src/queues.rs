//! Moves packets between the guest's virtqueues and the muxer.
//!
//! The guest lays packets out in memory as it likes (virtio 1.2, section 2.6.4):
//! Linux has used one, two and many descriptors per packet. Chains are
//! therefore read and written as byte streams. Each byte is copied out of
//! shared memory once, before anything looks at it.

use std::io::{Read, Write};
use std::ops::Deref;

use vhost_user_backend::{VringMutex, VringState, VringT};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT, Reader, Writer};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use crate::header::{HEADER_LEN, Header};
use crate::muxer::{LARGE_BUFFER, Muxer};

/// The guest's memory; the frontend may replace the map at any time.
pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Room for the data of the largest packet that can be within its
/// connection's credit.
const SCRATCH_LEN: usize = LARGE_BUFFER as usize;

/// So many packets are moved before other events get their turn.
const BUDGET: usize = 4096;

/// Carries packets in both directions.
pub(crate) struct Queues {
    memory: Memory,
    scratch: Vec<u8>,
}

/// Why a queue's packets could not be moved: the guest broke its rings.
type QueueError = virtio_queue::Error;

impl Queues {
    /// Uses the memory that the frontend will share.
    pub(crate) fn new(memory: Memory) -> Queues {
        Queues {
            memory,
            scratch: vec![0; SCRATCH_LEN],
        }
    }

    /// Moves packets until neither side has any that the other can take.
    /// Returns whether it stopped before that for the sake of other events.
    pub(crate) fn run(
        &mut self,
        muxer: &mut Muxer,
        rx: &VringMutex,
        tx: &VringMutex,
    ) -> Result<bool, QueueError> {
        let mut budget = BUDGET;
        loop {
            let was_accepting = muxer.accepts_packets();
            self.take_from_guest(muxer, &mut tx.get_mut(), &mut budget)?;
            self.give_to_guest(muxer, &mut rx.get_mut(), &mut budget)?;
            if budget == 0 {
                return Ok(true);
            }
            // The guest is listened to again once it has taken enough resets.
            if was_accepting || !muxer.accepts_packets() {
                return Ok(false);
            }
        }
    }

    /// The guest's TX queue: its packets to the muxer.
    fn take_from_guest(
        &mut self,
        muxer: &mut Muxer,
        vring: &mut VringState,
        budget: &mut usize,
    ) -> Result<(), QueueError> {
        if !is_running(vring) {
            return Ok(());
        }
        let mut used = false;
        loop {
            vring.disable_notification()?;
            while *budget > 0 && muxer.accepts_packets() {
                let memory = self.memory.memory();
                let Some(chain) = next_chain(vring, memory.clone())? else {
                    break;
                };
                *budget -= 1;
                let head = chain.head_index();
                match read_packet(memory.deref(), chain, &mut self.scratch) {
                    Some((header, data)) => muxer.on_packet(&header, data),
                    None => tracing::debug!("Guest packet without a whole header dropped"),
                }
                vring.add_used(head, 0)?;
                used = true;
            }
            if *budget == 0 || !muxer.accepts_packets() || !vring.enable_notification()? {
                break;
            }
        }
        notify(vring, used)
    }

    /// The guest's RX queue: the muxer's packets to the guest.
    fn give_to_guest(
        &mut self,
        muxer: &mut Muxer,
        vring: &mut VringState,
        budget: &mut usize,
    ) -> Result<(), QueueError> {
        if !is_running(vring) {
            return Ok(());
        }
        let mut used = false;
        // Kicks for new buffers matter only while packets wait for them.
        vring.disable_notification()?;
        while *budget > 0 && muxer.has_packets() {
            let memory = self.memory.memory();
            let Some(chain) = next_chain(vring, memory.clone())? else {
                if vring.enable_notification()? {
                    continue;
                }
                break;
            };
            *budget -= 1;
            let head = chain.head_index();
            let Some(len) = write_packet(memory.deref(), chain, muxer, &mut self.scratch) else {
                vring.get_queue_mut().go_to_previous_position();
                break;
            };
            vring.add_used(head, len)?;
            used = true;
        }
        notify(vring, used)
    }
}

/// Whether the frontend has started and enabled the queue.
fn is_running(vring: &VringState) -> bool {
    vring.is_enabled() && vring.get_queue().ready()
}

fn next_chain<M>(
    vring: &mut VringState,
    memory: M,
) -> Result<Option<DescriptorChain<M>>, QueueError>
where
    M: Clone + Deref<Target = GuestMemoryMmap>,
{
    Ok(vring.get_queue_mut().iter(memory)?.next())
}

/// Interrupts the guest for used buffers unless it asked not to be.
fn notify(vring: &mut VringState, used: bool) -> Result<(), QueueError> {
    if used
        && vring.needs_notification()?
        && let Err(error) = vring.signal_used_queue()
    {
        tracing::warn!(%error, "Cannot interrupt the guest");
    }
    Ok(())
}

/// Reads a packet; the data is `None` where its announced length is not there
/// or beyond any connection's credit. `None` without a whole header.
fn read_packet<'s, M>(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<M>,
    scratch: &'s mut [u8],
) -> Option<(Header, Option<&'s [u8]>)>
where
    M: Deref<Target = GuestMemoryMmap>,
{
    let mut reader = Reader::new(memory, chain).ok()?;
    let mut raw = [0; HEADER_LEN];
    reader.read_exact(&mut raw).ok()?;
    let header = Header::decode(&raw);
    let data = usize::try_from(header.len)
        .ok()
        .and_then(|len| scratch.get_mut(..len))
        .and_then(|data| reader.read_exact(data).ok().map(|()| &*data));
    Some((header, data))
}

/// Lets the muxer write a packet into a buffer and returns its length. 0 if the
/// buffer cannot hold even a header; `None` if the muxer had no packet.
fn write_packet<M>(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<M>,
    muxer: &mut Muxer,
    scratch: &mut [u8],
) -> Option<u32>
where
    M: Deref<Target = GuestMemoryMmap>,
{
    let Ok(mut writer) = Writer::new(memory, chain) else {
        return Some(0);
    };
    let Some(room) = writer.available_bytes().checked_sub(HEADER_LEN) else {
        return Some(0);
    };
    let room = room.min(scratch.len());
    let header = muxer.next_packet(&mut scratch[..room])?;
    let data = &scratch[..header.len as usize];
    let written = writer
        .write_all(&header.encode())
        .and_then(|()| writer.write_all(data));
    // The room was measured before; it can only fail if the map is broken.
    if let Err(error) = written {
        tracing::warn!(%error, "Cannot write a packet to the guest's memory");
    }
    u32::try_from(writer.bytes_written()).ok()
}
