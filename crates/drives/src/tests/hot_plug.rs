//! A VMM that can add drives to a running VM: the interface has room for one.

use std::sync::atomic::Ordering;

use super::fake::{Fake, drives, links, request, states};
use crate::{DriveError, Kind, SlotState};

#[tokio::test]
async fn without_a_free_slot_the_vm_gets_another_drive() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path(), 1);
    let drives = drives(dir.path(), 1, &fake);
    fake.addable.store(2, Ordering::Relaxed);
    let before = states(&drives).len();
    for owner in ["a", "b"] {
        drives.attach(Kind::ReadOnly, request(owner)).await.unwrap();
    }
    let added = drives.slots().pop().unwrap();
    assert_eq!(
        (added.drive_id.as_str(), added.read_only),
        ("added-1", true)
    );
    assert_eq!(added.state, SlotState::Attached);
    assert_eq!(states(&drives).len(), before + 1);

    // It is a slot like the others: free when released, and used again instead of yet another one.
    drives.detach_owner("b").await.unwrap();
    assert_eq!(states(&drives)[before], SlotState::Free);
    drives.attach(Kind::ReadOnly, request("c")).await.unwrap();
    assert_eq!(states(&drives).len(), before + 1);

    // When that fails, the error is that of a VM without slots.
    fake.fail(&["add"]);
    let error = drives.attach(Kind::ReadOnly, request("d")).await;
    assert!(matches!(error, Err(DriveError::Exhausted { limit: 2, .. })));
    assert_eq!(states(&drives).len(), before + 1);
    for owner in ["a", "c"] {
        drives.detach_owner(owner).await.unwrap();
    }
    assert_eq!(links(dir.path()), 0);
}

#[tokio::test]
async fn many_at_once_get_one_each() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path(), 7);
    let drives = drives(dir.path(), 1, &fake);
    fake.addable.store(4, Ordering::Relaxed);
    let wishes = (0..6).map(|number| {
        let drives = drives.clone();
        tokio::spawn(async move {
            let wish = request(&number.to_string());
            drives.attach(Kind::Writable, wish).await
        })
    });
    let wishes: Vec<_> = wishes.collect();
    let mut granted = std::collections::BTreeSet::new();
    for wish in wishes {
        if let Ok(drive) = wish.await.unwrap() {
            assert!(granted.insert(drive.drive_id), "one drive for two");
        }
    }
    // The one that was there, and the four that were added.
    assert_eq!(granted.len(), 5);
}

#[tokio::test]
async fn a_drive_mount_is_never_added() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path(), 1);
    let drives = drives(dir.path(), 1, &fake);
    fake.addable.store(1, Ordering::Relaxed);
    drives.attach_drive_mount(0, request("vm")).await.unwrap();
    let again = drives.attach_drive_mount(0, request("other")).await;
    assert!(matches!(again, Err(DriveError::DriveMountInUse(0))));
    assert_eq!(fake.addable.load(Ordering::Relaxed), 1);
}
