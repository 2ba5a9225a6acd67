//! The allocator against a model of it, in any order of events.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use fc_host_file::HostFile;
use proptest::prelude::*;

use super::fake::file;
use crate::slots::{
    Detachable, Kind, Progress, Role, Slot, SlotId, SlotState, SlotUse, Slots, Taken, Unavailable,
};

const ROLES: [Role; 4] = [
    Role::Any(Kind::Writable),
    Role::Any(Kind::ReadOnly),
    Role::Any(Kind::Volume),
    Role::DriveMount(0),
];

/// One thing that can happen. Numbers choose among what there is.
#[derive(Debug, Clone)]
enum Event {
    Reserve {
        role: usize,
        owner: u8,
    },
    /// Attaching has succeeded.
    Attached(usize),
    /// Attaching or detaching has come back to the stub.
    Freed(usize),
    /// It got stuck.
    Stuck(usize),
    /// Somebody wants to detach any slot that was ever used.
    Take(usize),
    /// Somebody tells again what was told before, or late.
    Echo(usize),
    /// The VMM has added a drive to the running VM.
    Added(usize),
    /// The VM has ended, and with it all use of files; whoever works on a slot does not know yet.
    VmEnded,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..ROLES.len(), 0..6_u8).prop_map(|(role, owner)| Event::Reserve { role, owner }),
        3 => any::<usize>().prop_map(Event::Attached),
        2 => any::<usize>().prop_map(Event::Freed),
        1 => any::<usize>().prop_map(Event::Stuck),
        3 => any::<usize>().prop_map(Event::Take),
        1 => any::<usize>().prop_map(Event::Echo),
        1 => (0..3_usize).prop_map(Event::Added),
        1 => Just(Event::VmEnded),
    ]
}

/// What must be true of the slots, kept in the plainest way.
#[derive(Default)]
struct Model {
    slots: Slots,
    /// How many there are.
    total: usize,
    /// The files that slots must have, by drive: each exists exactly as long as somebody keeps it.
    files: BTreeMap<String, PathBuf>,
    free: BTreeMap<usize, VecDeque<String>>,
    busy: Vec<Taken>,
    /// Attached or quarantined.
    resting: BTreeMap<String, SlotId>,
    users: BTreeMap<String, SlotUse>,
    ever: Vec<SlotId>,
}

impl Model {
    fn new(counts: [usize; 4]) -> Model {
        let mut model = Model::default();
        for (role, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                model.add(role);
            }
        }
        model
    }

    fn add(&mut self, role: usize) {
        let id = format!("{role}_{}", self.total);
        self.slots.add(Slot::new(&id, &id, role == 1, ROLES[role]));
        self.free.entry(role).or_default().push_back(id);
        self.total += 1;
    }

    fn reserve(&mut self, role: usize, owner: u8) {
        let file = file();
        let user = used(&file, owner, role);
        let same =
            |used: &SlotUse| (&used.owner, &used.destination) == (&user.owner, &user.destination);
        let doubled = self.users.iter().find(|(_, used)| same(used));
        let doubled = doubled.map(|(drive, _)| drive.clone());
        match self.slots.reserve(ROLES[role], user.clone(), &file) {
            Ok(taken) => {
                assert_eq!(doubled, None, "a double wish was granted");
                let longest = self.free.get_mut(&role).and_then(VecDeque::pop_front);
                assert_eq!(
                    longest.as_ref(),
                    Some(&taken.drive_id),
                    "not the one free longest"
                );
                assert!(
                    !self.ever.contains(&taken.id),
                    "a use's name was used again"
                );
                self.ever.push(taken.id);
                let path = file.path().to_owned();
                self.files.insert(taken.drive_id.clone(), path);
                self.users.insert(taken.drive_id.clone(), user);
                self.busy.push(taken);
            }
            Err(Unavailable::Doubled(drive)) => assert_eq!(Some(drive), doubled),
            Err(Unavailable::Exhausted) => {
                assert!(self.free.get(&role).is_none_or(VecDeque::is_empty));
            }
        }
    }

    fn end_work(&mut self, choice: usize) -> Option<Taken> {
        (!self.busy.is_empty()).then(|| self.busy.swap_remove(choice % self.busy.len()))
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Reserve { role, owner } => self.reserve(role, owner),
            Event::Attached(choice) => {
                if let Some(taken) = self.end_work(choice) {
                    self.slots.attached(taken.id);
                    self.resting.insert(taken.drive_id, taken.id);
                }
            }
            Event::Stuck(choice) => {
                if let Some(taken) = self.end_work(choice) {
                    let reason = "stuck".to_owned();
                    self.slots.quarantine(taken.id, Progress::Patched, reason);
                    self.resting.insert(taken.drive_id, taken.id);
                }
            }
            Event::Freed(choice) => {
                if let Some(taken) = self.end_work(choice) {
                    self.slots.freed(taken.id);
                    let path = self.files.remove(&taken.drive_id);
                    assert!(path.is_none_or(|path| !path.exists()), "its file is kept");
                    self.users.remove(&taken.drive_id);
                    let role = taken.drive_id.as_bytes()[0] - b'0';
                    let free = self.free.entry(role.into()).or_default();
                    free.push_back(taken.drive_id);
                }
            }
            Event::Take(choice) => {
                let Some(&id) = self.ever.get(choice % self.ever.len().max(1)) else {
                    return;
                };
                match self.slots.take(id) {
                    Detachable::Taken(taken) => {
                        assert_eq!(self.resting.remove(&taken.drive_id), Some(id));
                        self.busy.push(taken);
                    }
                    Detachable::Busy => assert!(self.busy.iter().any(|taken| taken.id == id)),
                    Detachable::Gone => assert!(self.resting.values().all(|there| *there != id)),
                }
            }
            Event::Echo(choice) => {
                let Some(&id) = self.ever.get(choice % self.ever.len().max(1)) else {
                    return;
                };
                if self.busy.iter().all(|taken| taken.id != id) {
                    self.slots.freed(id);
                    self.slots.attached(id);
                    self.slots.quarantine(id, Progress::Mounted, "late".into());
                }
            }
            Event::Added(role) => self.add(role),
            Event::VmEnded => {
                self.slots.take_files();
                for path in std::mem::take(&mut self.files).into_values() {
                    assert!(!path.exists(), "its file is kept");
                }
            }
        }
    }

    fn check(&self) {
        let info = self.slots.info();
        assert_eq!(info.len(), self.total);
        let mut wishes = BTreeSet::new();
        for slot in info {
            let id = &slot.drive_id;
            let free = self.free.values().flatten().any(|free| free == id);
            let busy = self
                .busy
                .iter()
                .filter(|taken| taken.drive_id == *id)
                .count();
            let resting = self.resting.contains_key(id);
            assert_eq!(
                usize::from(free) + busy + usize::from(resting),
                1,
                "{id} twice or never"
            );
            match slot.state {
                SlotState::Free => assert!(free),
                SlotState::Busy => assert_eq!(busy, 1),
                SlotState::Attached | SlotState::Quarantined(_) => assert!(resting),
            }
            assert_eq!(slot.used_by.as_ref(), self.users.get(id));
            assert_eq!(slot.used_by.is_none(), free);
            if let Some(user) = slot.used_by {
                assert!(
                    wishes.insert((user.owner, user.destination)),
                    "two slots for one wish"
                );
            }
        }
    }
}

fn used(file: &HostFile, owner: u8, destination: usize) -> SlotUse {
    SlotUse {
        owner: owner.to_string(),
        host_path: file.path().to_owned(),
        destination: destination.to_string(),
    }
}

proptest! {
    #[test]
    fn every_slot_is_somewhere_exactly_once(
        counts in [0..4_usize, 0..4_usize, 0..3_usize, 0..2_usize],
        events in prop::collection::vec(event(), 0..200),
    ) {
        let mut model = Model::new(counts);
        for event in events {
            model.happen(event);
            model.check();
        }
        prop_assert!(model.files.values().all(|path| path.exists()), "a file was let go of");
    }

    #[test]
    fn an_owner_s_slots_come_last_attached_first(owners in prop::collection::vec(0..3_u8, 1..8)) {
        let mut slots = Slots::default();
        for index in 0..owners.len() {
            let id = index.to_string();
            slots.add(Slot::new(&id, &id, false, ROLES[0]));
        }
        let mut own = Vec::new();
        for (index, owner) in owners.iter().enumerate() {
            let file = file();
            let user = used(&file, *owner, index);
            let taken = slots.reserve(ROLES[0], user, &file).unwrap();
            slots.attached(taken.id);
            if *owner == 0 {
                own.insert(0, taken.id);
            }
        }
        prop_assert_eq!(slots.to_detach("0"), own);
    }
}

/// A slot can be used any number of times.
#[test]
fn one_slot_serves_forever() {
    let mut model = Model::new([1, 0, 0, 0]);
    for round in 0..3_000 {
        model.happen(Event::Reserve {
            role: 0,
            owner: u8::try_from(round % 6).unwrap(),
        });
        model.happen(Event::Attached(0));
        model.happen(Event::Take(round));
        model.happen(Event::Freed(0));
        model.check();
    }
    assert_eq!(model.ever.len(), 3_000);
}
