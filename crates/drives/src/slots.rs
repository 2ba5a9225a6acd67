//! Which slot is free and who has the others. Plain data: no IO, no waiting.

use std::collections::VecDeque;
use std::path::PathBuf;

use fc_host_file::HostFile;

/// What a container's drive is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A container's own disk.
    Writable,
    /// An image that others may use too. Such slots were created read-only: the VMM itself refuses writes.
    ReadOnly,
    /// A volume that the container may write to.
    Volume,
}

impl Kind {
    /// Whether the VMM refuses to write to drives of this kind.
    pub(crate) fn is_read_only(self) -> bool {
        self == Kind::ReadOnly
    }
}

/// What a slot was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// For whoever needs a drive of that kind.
    Any(Kind),
    /// For the VM's drive mount of that number alone.
    DriveMount(usize),
}

/// Names one use of a slot: the next use of the same slot has another id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotId {
    index: usize,
    /// Which use of any of the VM's slots it is; 0 before the first.
    generation: u64,
}

/// Who uses a slot and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotUse {
    /// Who asked for it: a container's id, for instance.
    pub owner: String,
    /// Where the file or block device behind it was found.
    pub host_path: PathBuf,
    /// Where the guest has it mounted.
    pub destination: String,
}

/// How far a slot in use is from its stub; undone from the last to the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Progress {
    /// Only taken.
    Reserved,
    /// The VMM can see the file, or something stands half-way.
    Exposed,
    /// The VMM has the file open, or may have.
    Patched,
    /// The guest has it mounted, or may have.
    Mounted,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Free,
    /// Somebody is attaching or detaching it.
    Busy(SlotUse),
    Attached(SlotUse),
    /// Detaching failed, with what is left to undo.
    Quarantined(SlotUse, Progress, String),
}

/// One drive of the VM.
#[derive(Debug)]
pub(crate) struct Slot {
    drive_id: String,
    file_name: String,
    read_only: bool,
    role: Role,
    generation: u64,
    state: State,
    /// The file behind it, open and locked, whatever the state; `None` when free, and when the VM has ended.
    file: Option<HostFile>,
}

impl Slot {
    pub(crate) fn new(drive_id: &str, file_name: &str, read_only: bool, role: Role) -> Slot {
        Slot {
            drive_id: drive_id.into(),
            file_name: file_name.into(),
            read_only,
            role,
            generation: 0,
            state: State::Free,
            file: None,
        }
    }

    fn used_by(&self) -> Option<&SlotUse> {
        match &self.state {
            State::Free => None,
            State::Busy(user) | State::Attached(user) | State::Quarantined(user, ..) => Some(user),
        }
    }
}

/// What is needed to work on a slot that is [`State::Busy`].
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    pub(crate) id: SlotId,
    pub(crate) drive_id: String,
    pub(crate) stub: String,
    pub(crate) read_only: bool,
    pub(crate) progress: Progress,
}

/// Why no slot could be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unavailable {
    /// None of that role is free.
    Exhausted,
    /// The owner has something at that destination already, in the drive of this id.
    Doubled(String),
}

/// Answer to a wish to detach a slot.
#[derive(Debug)]
pub(crate) enum Detachable {
    /// It is the caller's now.
    Taken(Taken),
    /// Somebody works on it; ask again later.
    Busy,
    /// That use of the slot is over.
    Gone,
}

/// All slots of a VM.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    /// Indexes of free slots; the one that has been free longest comes first.
    free: VecDeque<usize>,
    /// How often any slot was reserved.
    uses: u64,
}

impl Slots {
    pub(crate) fn add(&mut self, slot: Slot) {
        self.free.push_back(self.slots.len());
        self.slots.push(slot);
    }

    /// Takes the slot of that role that has been free longest, for `file`.
    pub(crate) fn reserve(
        &mut self,
        role: Role,
        user: SlotUse,
        file: &HostFile,
    ) -> Result<Taken, Unavailable> {
        let same =
            |used: &SlotUse| used.owner == user.owner && used.destination == user.destination;
        if let Some(slot) = self
            .slots
            .iter()
            .find(|slot| slot.used_by().is_some_and(same))
        {
            return Err(Unavailable::Doubled(slot.drive_id.clone()));
        }
        let mut free = self.free.iter();
        let place = free.position(|&index| self.slots[index].role == role);
        let index = place.and_then(|place| self.free.remove(place));
        let index = index.ok_or(Unavailable::Exhausted)?;
        self.uses += 1;
        let slot = &mut self.slots[index];
        slot.generation = self.uses;
        slot.state = State::Busy(user);
        slot.file = Some(file.clone());
        Ok(self.taken(index, Progress::Reserved))
    }

    /// How many slots have that role, and how many of them are quarantined.
    pub(crate) fn count(&self, role: Role) -> (usize, usize) {
        let of_role = || self.slots.iter().filter(|slot| slot.role == role);
        let quarantined = |slot: &&Slot| matches!(slot.state, State::Quarantined(..));
        (of_role().count(), of_role().filter(quarantined).count())
    }

    /// The busy slot is in use from now on.
    pub(crate) fn attached(&mut self, id: SlotId) {
        self.replace_busy(id, State::Attached);
    }

    /// The busy slot is back at its stub, and the last in line. Answers its file, to be
    /// dropped without the lock on the slots.
    pub(crate) fn freed(&mut self, id: SlotId) -> Option<HostFile> {
        if !self.replace_busy(id, |_| State::Free) {
            return None;
        }
        self.free.push_back(id.index);
        self.slots[id.index].file.take()
    }

    /// The files behind all slots, from now on the caller's.
    pub(crate) fn take_files(&mut self) -> Vec<HostFile> {
        let slots = self.slots.iter_mut();
        slots.filter_map(|slot| slot.file.take()).collect()
    }

    /// The busy slot could not be brought back to its stub.
    pub(crate) fn quarantine(&mut self, id: SlotId, progress: Progress, reason: String) {
        self.replace_busy(id, |user| State::Quarantined(user, progress, reason));
    }

    fn replace_busy(&mut self, id: SlotId, next: impl FnOnce(SlotUse) -> State) -> bool {
        let Some(slot) = self.slots.get_mut(id.index) else {
            return false;
        };
        if slot.generation != id.generation {
            return false;
        }
        match std::mem::replace(&mut slot.state, State::Free) {
            State::Busy(user) => {
                slot.state = next(user);
                true
            }
            other => {
                slot.state = other;
                false
            }
        }
    }

    /// Takes an attached or quarantined slot, in order to bring it back to its stub.
    pub(crate) fn take(&mut self, id: SlotId) -> Detachable {
        let Some(slot) = self.slots.get_mut(id.index) else {
            return Detachable::Gone;
        };
        if slot.generation != id.generation {
            return Detachable::Gone;
        }
        let (user, progress) = match &slot.state {
            State::Free => return Detachable::Gone,
            State::Busy(_) => return Detachable::Busy,
            State::Attached(user) => (user.clone(), Progress::Mounted),
            State::Quarantined(user, progress, _) => (user.clone(), *progress),
        };
        slot.state = State::Busy(user);
        Detachable::Taken(self.taken(id.index, progress))
    }

    /// The slots an owner has, the last attached first, then everybody's quarantined ones.
    pub(crate) fn to_detach(&self, owner: &str) -> Vec<SlotId> {
        let mut own = Vec::new();
        let mut quarantined = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let id = SlotId {
                index,
                generation: slot.generation,
            };
            match &slot.state {
                State::Busy(user) | State::Attached(user) if user.owner == owner => own.push(id),
                State::Quarantined(..) => quarantined.push(id),
                _ => {}
            }
        }
        own.sort_by_key(|id| std::cmp::Reverse(id.generation));
        own.extend(quarantined);
        own
    }

    fn taken(&self, index: usize, progress: Progress) -> Taken {
        let slot = &self.slots[index];
        Taken {
            id: SlotId {
                index,
                generation: slot.generation,
            },
            drive_id: slot.drive_id.clone(),
            stub: slot.file_name.clone(),
            read_only: slot.read_only,
            progress,
        }
    }

    /// Whether drive mount `index` exists, and is read-only.
    pub(crate) fn drive_mount(&self, index: usize) -> Option<bool> {
        self.slots
            .iter()
            .find(|slot| slot.role == Role::DriveMount(index))
            .map(|slot| slot.read_only)
    }

    pub(crate) fn info(&self) -> Vec<SlotInfo> {
        let info = |(index, slot): (usize, &Slot)| SlotInfo {
            slot: SlotId {
                index,
                generation: slot.generation,
            },
            drive_id: slot.drive_id.clone(),
            file_name: slot.file_name.clone(),
            read_only: slot.read_only,
            drive_mount: match slot.role {
                Role::DriveMount(index) => Some(index),
                Role::Any(_) => None,
            },
            state: match &slot.state {
                State::Free => SlotState::Free,
                State::Busy(_) => SlotState::Busy,
                State::Attached(_) => SlotState::Attached,
                State::Quarantined(_, _, reason) => SlotState::Quarantined(reason.clone()),
            },
            used_by: slot.used_by().cloned(),
        };
        self.slots.iter().enumerate().map(info).collect()
    }
}

/// A slot, as shown to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotInfo {
    /// Its current, or if free its last, use.
    pub slot: SlotId,
    /// The VMM's name for the drive.
    pub drive_id: String,
    /// The stub file in the VM's directory.
    pub file_name: String,
    /// Whether the VMM refuses to write to it.
    pub read_only: bool,
    /// Which drive mount it is for, if it is for one.
    pub drive_mount: Option<usize>,
    /// What it is doing.
    pub state: SlotState,
    /// Who uses it; `None` exactly if it is free.
    pub used_by: Option<SlotUse>,
}

/// What a slot is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotState {
    /// Its stub is behind it.
    Free,
    /// Being attached or detached.
    Busy,
    /// In use.
    Attached,
    /// Detaching failed, and why. Not used again until it succeeds; tried again whenever something else is detached.
    Quarantined(String),
}
