//! Attaching and detaching, one at a time.

use std::fs;

use fc_errors::chain;
use fc_host_file::{Access, HostFile};
use tokio::task::yield_now;

use super::fake::{Fake, drives, links, request, states};
use crate::{DriveError, Kind, SlotState, Step};

#[tokio::test]
async fn attaching_and_detaching_go_the_same_way_there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path(), 1);
    let drives = drives(dir.path(), 1, &fake);
    let request = request("a");
    let (path, link) = (request.file.path().to_owned(), request.file.link());
    let drive = drives.attach(Kind::Writable, request).await.unwrap();
    let seen = fs::read_link(dir.path().join("ctrstub0.attached")).unwrap();
    assert_eq!(seen, link);
    // People are shown where it is.
    assert_eq!(drives.slots()[0].used_by.as_ref().unwrap().host_path, path);
    drives.detach(&drive).await.unwrap();
    assert_eq!(
        *fake.log.lock().unwrap(),
        [
            "expose ctrstub0.attached",
            "patch ctrstub0.attached",
            "mount /container/a/disk ext4 noatime,rw",
            "unmount",
            "patch ctrstub0",
            "withdraw ctrstub0.attached",
        ]
    );
    assert_eq!(links(dir.path()), 0);
    let again = drives.detach(&drive).await.unwrap_err();
    assert_eq!(
        again.to_string(),
        "Drive MN2HE43UOVRDA is not attached any more: container a drive was not found"
    );
}

#[tokio::test]
async fn the_slot_free_longest_is_used_first_and_images_have_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let drives = drives(dir.path(), 2, &Fake::new(dir.path(), 1));
    let first = drives.attach(Kind::Writable, request("a")).await.unwrap();
    drives.detach(&first).await.unwrap();
    let second = drives.attach(Kind::Writable, request("b")).await.unwrap();
    assert_ne!(first.drive_id, second.drive_id);
    let third = drives.attach(Kind::Writable, request("c")).await.unwrap();
    assert_eq!(first.drive_id, third.drive_id);
    assert_ne!(first.slot, third.slot);
    let image = drives.attach(Kind::ReadOnly, request("d")).await.unwrap();
    assert_eq!(image.drive_id, fc_stub_drive::drive_id("imgstub0"));

    drives.attach(Kind::ReadOnly, request("f")).await.unwrap();
    let error = drives.attach(Kind::ReadOnly, request("g")).await;
    let text = error.unwrap_err().to_string();
    assert!(
        text.contains("all 2 read-only image drives") && text.contains("up to 8"),
        "{text}"
    );
    let error = drives
        .attach(Kind::Writable, request("e"))
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("There are no remaining drives to be used"),
        "{text}"
    );
    assert!(
        text.contains("all 2") && text.contains("default_container_count"),
        "{text}"
    );
}

#[tokio::test]
async fn a_drive_mount_has_its_own_slot() {
    let dir = tempfile::tempdir().unwrap();
    let drives = drives(dir.path(), 1, &Fake::new(dir.path(), 1));
    drives.attach_drive_mount(0, request("vm")).await.unwrap();
    let again = drives
        .attach_drive_mount(0, request("other"))
        .await
        .unwrap_err();
    assert!(matches!(again, DriveError::DriveMountInUse(0)));
    let absent = drives
        .attach_drive_mount(1, request("vm"))
        .await
        .unwrap_err();
    assert!(matches!(absent, DriveError::NoSuchDriveMount(1)));
}

#[tokio::test]
async fn a_volume_has_a_writable_slot_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path(), 1);
    let drives = drives(dir.path(), 1, &fake);
    let drive = drives.attach(Kind::Volume, request("a")).await.unwrap();
    assert_eq!(drive.drive_id, fc_stub_drive::drive_id("volstub0"));
    assert!(
        fake.log
            .lock()
            .unwrap()
            .contains(&"mount /container/a/disk ext4 noatime,rw".into())
    );
    let error = drives.attach(Kind::Volume, request("b")).await.unwrap_err();
    assert_eq!(
        chain(&error),
        "There are no remaining drives to be used: the only volume drive of the VM is in use; \
         set a larger VolumeSlots when creating the VM: The VMM cannot add a drive to a running VM"
    );
}

#[tokio::test]
async fn the_same_wish_twice_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let drives = drives(dir.path(), 2, &Fake::new(dir.path(), 1));
    drives.attach(Kind::Writable, request("a")).await.unwrap();
    let error = drives
        .attach(Kind::Writable, request("a"))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "Drive MN2HE43UOVRDA is mounted at /container/a/disk already: drive with ID a already in use"
    );
    assert_eq!(states(&drives)[1], SlotState::Free);
}

#[tokio::test]
async fn a_contradiction_costs_no_slot() {
    let dir = tempfile::tempdir().unwrap();
    let drives = drives(dir.path(), 1, &Fake::new(dir.path(), 1));
    let mut wrong = request("a");
    wrong.options = vec!["rw".into()];
    let error = drives.attach(Kind::ReadOnly, wrong).await.unwrap_err();
    assert!(matches!(error, DriveError::Options(_)));
    let mut wrong = request("a");
    let path = dir.path().join("file");
    fs::write(&path, "").unwrap();
    wrong.file = HostFile::open(&path, Access::Read).unwrap();
    let error = drives.attach(Kind::Writable, wrong).await.unwrap_err();
    assert!(matches!(error, DriveError::NotWritable(_)));
    // To the guest, that would still be the stub.
    let small = request("a");
    small.file.file().set_len(1023).unwrap();
    let error = drives.attach(Kind::Writable, small).await.unwrap_err();
    assert!(error.to_string().contains("only 1023 bytes"), "{error}");
    assert!(
        states(&drives)
            .iter()
            .all(|state| *state == SlotState::Free)
    );
}

#[tokio::test]
async fn a_failed_mount_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path(), 1);
    let drives = drives(dir.path(), 1, &fake);
    fake.fail(&["mount"]);
    let wish = request("a");
    let path = wish.file.path().display().to_string();
    let error = drives.attach(Kind::Writable, wish).await.unwrap_err();
    let error = chain(&error);
    assert!(error.ends_with("cannot be mounted in the guest: bad luck"));
    assert!(error.contains(&path), "{error}");
    assert_eq!(
        fake.files.lock().unwrap().values().next().unwrap(),
        "ctrstub0"
    );
    assert_eq!(links(dir.path()), 0);
    assert_eq!(states(&drives)[0], SlotState::Free);
}

#[tokio::test]
async fn what_cannot_be_undone_is_quarantined_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path(), 1);
    let drives = drives(dir.path(), 1, &fake);
    fake.fail(&["mount", "unmount"]);
    let error = drives
        .attach(Kind::Writable, request("a"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("besides"), "{error}");
    // The guest may have it mounted, so its file stays.
    assert_eq!(
        fake.files.lock().unwrap().values().next().unwrap(),
        "ctrstub0.attached"
    );
    assert!(
        matches!(&states(&drives)[0], SlotState::Quarantined(reason) if reason.contains("bad luck"))
    );
    let error = drives
        .attach(Kind::Writable, request("b"))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("(it could not be detached)"),
        "{error}"
    );

    fake.fail(&[]);
    drives.detach_owner("somebody else").await.unwrap();
    assert_eq!(states(&drives)[0], SlotState::Free);
    assert_eq!(links(dir.path()), 0);
}

#[tokio::test]
async fn an_owner_s_drives_go_together_and_in_reverse() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path(), 1);
    let drives = drives(dir.path(), 2, &fake);
    let mut image = request("a");
    image.destination = "/container/a/image".into();
    drives.attach(Kind::ReadOnly, image).await.unwrap();
    drives.attach(Kind::Writable, request("b")).await.unwrap();
    drives.attach(Kind::Writable, request("a")).await.unwrap();
    fake.log.lock().unwrap().clear();
    drives.detach_owner("a").await.unwrap();
    let log = fake.log.lock().unwrap().clone();
    assert_eq!(
        log,
        [
            "unmount",
            "patch ctrstub1",
            "withdraw ctrstub1.attached",
            "unmount",
            "patch imgstub0",
            "withdraw imgstub0.attached",
        ]
    );
    assert_eq!(links(dir.path()), 1);
}

#[tokio::test]
async fn an_attach_nobody_waits_for_is_undone() {
    for patience in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let drives = drives(dir.path(), 1, &Fake::new(dir.path(), patience));
        {
            let attach = drives.attach(Kind::Writable, request("a"));
            let gives_up = async {
                for _ in 0..patience {
                    yield_now().await;
                }
            };
            tokio::select! {
                biased;
                _ = attach => continue,
                () = gives_up => {}
            }
        }
        while states(&drives)[0] != SlotState::Free {
            yield_now().await;
        }
        assert_eq!(links(dir.path()), 0);
    }
}

/// Whatever step fails, the steps before it are undone in reverse; whatever step of that fails, the
/// slot is set aside there, keeps its file, and the next detach goes on.
#[tokio::test]
async fn every_step_is_undone_and_every_undo_is_tried_again() {
    let steps = [
        ("expose", Step::Expose, &["withdraw"][..]),
        ("patch", Step::Patch, &["patch-back", "withdraw"]),
        ("mount", Step::Mount, &["unmount", "patch-back", "withdraw"]),
    ];
    for (fails, wanted, undo) in steps {
        for stuck in std::iter::once(None).chain(undo.iter().copied().map(Some)) {
            let dir = tempfile::tempdir().unwrap();
            let fake = Fake::new(dir.path(), 1);
            let drives = drives(dir.path(), 1, &fake);
            fake.fail(&[&[fails][..], stuck.as_slice()].concat());
            let error = drives
                .attach(Kind::Writable, request("a"))
                .await
                .unwrap_err();
            let DriveError::Attach { step, undo, .. } = &error else {
                panic!("{error}");
            };
            assert_eq!(*step, wanted);
            assert_eq!(
                undo.is_some(),
                stuck.is_some(),
                "{fails} {stuck:?}: {error}"
            );
            match &states(&drives)[0] {
                SlotState::Free => assert_eq!(stuck, None),
                SlotState::Quarantined(reason) => {
                    assert!(stuck.is_some());
                    assert!(reason.contains("bad luck"), "{reason}");
                    // Nobody else gets it.
                    let next = drives.attach(Kind::Writable, request("b")).await;
                    assert!(matches!(next, Err(DriveError::Exhausted { .. })));
                }
                other => panic!("{other:?}"),
            }
            if stuck == Some("unmount") {
                assert_eq!(
                    links(dir.path()),
                    1,
                    "a file that may be mounted was taken away"
                );
            }
            fake.fail(&[]);
            drives.detach_owner("whoever").await.unwrap();
            assert_eq!(states(&drives)[0], SlotState::Free);
            assert_eq!(links(dir.path()), 0);
            drives.attach(Kind::Writable, request("b")).await.unwrap();
        }
    }
}
