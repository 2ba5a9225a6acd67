//! How long a slot keeps its file, and slots whose work was stopped half-way.

use std::path::PathBuf;

use super::fake::{Fake, drives, request, states};
use crate::{Attach, DriveError, Kind, SlotState};

/// A wish, and the path of its file: there is something there for as long as the file is kept.
fn wish(owner: &str) -> (Attach, PathBuf) {
    let request = request(owner);
    let path = request.file.path().to_owned();
    (request, path)
}

#[tokio::test]
async fn a_quarantined_slot_keeps_its_file() {
    for step in ["unmount", "patch-back", "withdraw"] {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::new(dir.path(), 1);
        let drives = drives(dir.path(), 1, &fake);
        let (request, path) = wish("a");
        drives.attach(Kind::Volume, request).await.unwrap();
        assert!(path.exists());

        fake.fail(&[step]);
        for _ in 0..2 {
            drives.detach_owner("a").await.unwrap_err();
            assert!(path.exists(), "{step}");
        }
        // What is not unmounted stays behind its drive.
        let file = fake.files.lock().unwrap()[&fc_stub_drive::drive_id("volstub0")].clone();
        assert_eq!(file == "volstub0.attached", step == "unmount", "{file}");

        fake.fail(&[]);
        drives.detach_owner("somebody else").await.unwrap();
        assert!(!path.exists(), "{step}");
    }
}

#[tokio::test]
async fn an_attach_that_fails_keeps_its_file_until_it_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path(), 1);
    let drives = drives(dir.path(), 1, &fake);
    fake.fail(&["mount"]);
    let (request, undone) = wish("a");
    drives.attach(Kind::Volume, request).await.unwrap_err();
    assert!(!undone.exists());

    fake.fail(&["mount", "unmount"]);
    let (request, stuck) = wish("a");
    drives.attach(Kind::Volume, request).await.unwrap_err();
    assert!(stuck.exists());
    let (request, refused) = wish("b");
    drives.attach(Kind::Volume, request).await.unwrap_err();
    assert!(!refused.exists(), "there was no slot for it");

    // The VM's end takes the guest's mounts with it.
    drives.vm_ended();
    assert!(!stuck.exists());
}

#[tokio::test]
async fn a_panic_quarantines_the_slot() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path(), 1);
    let drives = drives(dir.path(), 1, &fake);
    fake.panic_in(Some("mount"));
    let (request, path) = wish("a");
    let error = drives.attach(Kind::Volume, request).await.unwrap_err();
    assert!(matches!(error, DriveError::Stopped(_)), "{error}");
    let state = |drives| states(drives).pop().unwrap();
    assert!(matches!(state(&drives), SlotState::Quarantined(_)));

    fake.panic_in(Some("unmount"));
    drives.detach_owner("a").await.unwrap_err();
    assert!(matches!(state(&drives), SlotState::Quarantined(_)));
    assert!(path.exists());

    fake.panic_in(None);
    drives.detach_owner("a").await.unwrap();
    assert_eq!(state(&drives), SlotState::Free);
    assert!(!path.exists());
}
