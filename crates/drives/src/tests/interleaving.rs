//! Many at once.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;

use tokio::task::{JoinHandle, yield_now};

use super::fake::{Fake, Random, drives, links, request, states};
use crate::{Drives, Kind, SlotState, SlotUse};

/// Whether everything that the VMM, the guest and the directory have agrees with what the slots say.
fn check(dir: &Path, drives: &Drives, fake: &Fake) {
    let files = fake.files.lock().unwrap();
    let mounts = fake.mounts.lock().unwrap();
    let mut destinations = BTreeSet::new();
    for slot in drives.slots() {
        let link = format!("{}.attached", slot.file_name);
        let linked = dir.join(&link).symlink_metadata().is_ok();
        let file = files.get(&slot.drive_id).unwrap_or(&slot.file_name);
        match slot.state {
            SlotState::Free => {
                assert!(!linked);
                assert_eq!(*file, slot.file_name);
                assert!(!mounts.contains_key(&slot.drive_id));
            }
            SlotState::Attached => {
                let SlotUse {
                    host_path,
                    destination,
                    ..
                } = slot.used_by.unwrap();
                assert!(linked && host_path.exists());
                assert_eq!(*file, link);
                assert_eq!(mounts[&slot.drive_id], destination);
                assert!(destinations.insert(destination), "two slots for one wish");
            }
            // In between anything goes, but a mounted file is never unlinked.
            SlotState::Busy | SlotState::Quarantined(_) => {
                assert!(linked || !mounts.contains_key(&slot.drive_id));
                assert!(slot.used_by.unwrap().host_path.exists());
            }
        }
    }
}

/// One task's life: attaches, and detaches what it got, some of the time giving up early.
async fn client(drives: Drives, seed: u64, rounds: u64) {
    let mut random = Random(seed | 1);
    for round in 0..rounds {
        let owner = format!("{seed}-{round}");
        let kind = if random.below(2) == 0 {
            Kind::Writable
        } else {
            Kind::ReadOnly
        };
        let patience = random.below(40);
        let gives_up = async {
            for _ in 0..patience {
                yield_now().await;
            }
        };
        let attached = tokio::select! {
            biased;
            attached = drives.attach(kind, request(&owner)) => attached.ok(),
            () = gives_up => None,
        };
        for _ in 0..random.below(5) {
            yield_now().await;
        }
        match attached {
            Some(drive) if random.below(2) == 0 => drop(drives.detach(&drive).await),
            _ => drop(drives.detach_owner(&owner).await),
        }
    }
}

fn clients(drives: &Drives, seed: u64) -> Vec<JoinHandle<()>> {
    let client = |number| tokio::spawn(client(drives.clone(), seed * 100 + number, 15));
    (1..=6).map(client).collect()
}

#[tokio::test]
async fn any_interleaving_keeps_the_invariants() {
    for seed in 1..=60_u64 {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::new(dir.path(), seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        *fake.fail_one_in.lock().unwrap() = [0, 3, 10][usize::try_from(seed % 3).unwrap()];
        // Some VMMs can add drives, up to a point.
        fake.addable.store(seed % 4, Ordering::Relaxed);
        let drives = drives(dir.path(), 3, &fake);
        let clients = clients(&drives, seed);
        while clients.iter().any(|client| !client.is_finished()) {
            check(dir.path(), &drives, &fake);
            yield_now().await;
        }
        for client in clients {
            client.await.unwrap();
        }
        // Once nothing fails any more, everything comes back.
        *fake.fail_one_in.lock().unwrap() = 0;
        while states(&drives)
            .iter()
            .any(|state| *state != SlotState::Free)
        {
            drives.detach_owner("nobody").await.unwrap();
            yield_now().await;
        }
        check(dir.path(), &drives, &fake);
        assert_eq!(links(dir.path()), 0);
    }
}

/// The guest dies in the middle of it all: nothing more works, nobody hangs, and with the VM's end every file is let
/// go of.
#[tokio::test]
async fn a_guest_that_dies_keeps_no_file() {
    for seed in 1..=20_u64 {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::new(dir.path(), seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let drives = drives(dir.path(), 3, &fake);
        let clients = clients(&drives, seed);
        for _ in 0..seed * 7 {
            check(dir.path(), &drives, &fake);
            yield_now().await;
        }
        fake.fail(&["add", "patch", "patch-back", "mount", "unmount"]);
        for client in clients {
            client.await.unwrap();
        }
        let busy = |drives: &Drives| states(drives).contains(&SlotState::Busy);
        while busy(&drives) {
            yield_now().await;
        }
        check(dir.path(), &drives, &fake);
        let used = drives.slots().into_iter().filter_map(|slot| slot.used_by);
        let paths: Vec<_> = used.map(|user| user.host_path).collect();
        drives.vm_ended();
        assert!(paths.iter().all(|path| !path.exists()));
    }
}
