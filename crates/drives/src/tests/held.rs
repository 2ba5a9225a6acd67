//! What is held for a file, and slots whose work was stopped half-way.

use std::sync::{Arc, Weak};

use super::fake::{Fake, drives, request, states};
use crate::{Attach, DriveError, Kind, SlotState};

/// A wish with something to hold, and how to see whether it is still held.
fn holding(owner: &str) -> (Attach, Weak<()>) {
    let held = Arc::new(());
    let alive = Arc::downgrade(&held);
    let request = Attach {
        held: Some(held),
        ..request(owner)
    };
    (request, alive)
}

fn is_held(alive: &Weak<()>) -> bool {
    alive.upgrade().is_some()
}

#[tokio::test]
async fn a_quarantined_slot_keeps_what_it_holds() {
    for step in ["unmount", "patch-back", "withdraw"] {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::new(dir.path(), 1);
        let drives = drives(dir.path(), 1, &fake);
        let (request, alive) = holding("a");
        drives.attach(Kind::Volume, request).await.unwrap();
        assert!(is_held(&alive));

        fake.fail(&[step]);
        for _ in 0..2 {
            drives.detach_owner("a").await.unwrap_err();
            assert!(is_held(&alive), "{step}");
        }
        // What is not unmounted stays behind its drive.
        let file = fake.files.lock().unwrap()[&fc_stub_drive::drive_id("volstub0")].clone();
        assert_eq!(file == "volstub0.attached", step == "unmount", "{file}");

        fake.fail(&[]);
        drives.detach_owner("somebody else").await.unwrap();
        assert!(!is_held(&alive), "{step}");
    }
}

#[tokio::test]
async fn an_attach_that_fails_holds_on_until_it_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path(), 1);
    let drives = drives(dir.path(), 1, &fake);
    fake.fail(&["mount"]);
    let (request, undone) = holding("a");
    drives.attach(Kind::Volume, request).await.unwrap_err();
    assert!(!is_held(&undone));

    fake.fail(&["mount", "unmount"]);
    let (request, stuck) = holding("a");
    drives.attach(Kind::Volume, request).await.unwrap_err();
    assert!(is_held(&stuck));
    let (request, refused) = holding("b");
    drives.attach(Kind::Volume, request).await.unwrap_err();
    assert!(!is_held(&refused), "there was no slot for it");

    // The VM's end takes the guest's mounts with it.
    drives.vm_ended();
    assert!(!is_held(&stuck));
}

#[tokio::test]
async fn a_panic_quarantines_the_slot() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path(), 1);
    let drives = drives(dir.path(), 1, &fake);
    fake.panic_in(Some("mount"));
    let (request, alive) = holding("a");
    let error = drives.attach(Kind::Volume, request).await.unwrap_err();
    assert!(matches!(error, DriveError::Stopped(_)), "{error}");
    let state = |drives| states(drives).pop().unwrap();
    assert!(matches!(state(&drives), SlotState::Quarantined(_)));

    fake.panic_in(Some("unmount"));
    drives.detach_owner("a").await.unwrap_err();
    assert!(matches!(state(&drives), SlotState::Quarantined(_)));
    assert!(is_held(&alive));

    fake.panic_in(None);
    drives.detach_owner("a").await.unwrap();
    assert_eq!(state(&drives), SlotState::Free);
    assert!(!is_held(&alive));
}
