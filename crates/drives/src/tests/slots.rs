//! The allocator against a model of it, in any order of events.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

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
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..ROLES.len(), 0..6_u8).prop_map(|(role, owner)| Event::Reserve { role, owner }),
        3 => any::<usize>().prop_map(Event::Attached),
        2 => any::<usize>().prop_map(Event::Freed),
        1 => any::<usize>().prop_map(Event::Stuck),
        3 => any::<usize>().prop_map(Event::Take),
        1 => any::<usize>().prop_map(Event::Echo),
    ]
}

/// What must be true of the slots, kept in the plainest way.
#[derive(Default)]
struct Model {
    slots: Slots,
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
            for index in 0..count {
                let id = format!("{role}_{index}");
                model.slots.add(Slot::new(&id, &id, role == 1, ROLES[role]));
                model.free.entry(role).or_default().push_back(id);
            }
        }
        model
    }

    fn reserve(&mut self, role: usize, owner: u8) {
        let user = SlotUse {
            owner: owner.to_string(),
            host_path: "/file".into(),
            destination: role.to_string(),
        };
        let doubled = self.users.iter().find(|(_, used)| **used == user);
        let doubled = doubled.map(|(drive, _)| drive.clone());
        match self.slots.reserve(ROLES[role], user.clone(), None) {
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
        }
    }

    fn check(&self, total: usize) {
        let info = self.slots.info();
        assert_eq!(info.len(), total);
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

proptest! {
    #[test]
    fn every_slot_is_somewhere_exactly_once(
        counts in [0..4_usize, 0..4_usize, 0..3_usize, 0..2_usize],
        events in prop::collection::vec(event(), 0..200),
    ) {
        let mut model = Model::new(counts);
        for event in events {
            model.happen(event);
            model.check(counts.iter().sum());
        }
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
            let user = SlotUse {
                owner: owner.to_string(),
                host_path: "/file".into(),
                destination: index.to_string(),
            };
            let taken = slots.reserve(ROLES[0], user, None).unwrap();
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
    for round in 0..10_000 {
        model.happen(Event::Reserve {
            role: 0,
            owner: u8::try_from(round % 6).unwrap(),
        });
        model.happen(Event::Attached(0));
        model.happen(Event::Take(round));
        model.happen(Event::Freed(0));
        model.check(1);
    }
    assert_eq!(model.ever.len(), 10_000);
}
