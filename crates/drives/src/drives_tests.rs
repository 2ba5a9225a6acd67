use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tokio::task::yield_now;

use super::*;
use crate::links::Links;
use crate::slots::SlotState;
use crate::stubs::{DriveMountSlot, Layout, StubDrives};

/// xorshift64: enough to vary the order of things, and the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A VMM and a guest that do as told, fail when told, and remember.
struct Fake {
    /// What the VMM has behind each drive.
    files: Mutex<BTreeMap<String, String>>,
    /// What the guest has mounted: drive and destination.
    mounts: Mutex<BTreeMap<String, String>>,
    log: Mutex<Vec<String>>,
    random: Mutex<Random>,
    /// Fail one call in so many; 0 for never.
    fail_one_in: Mutex<u64>,
    fail_mount: AtomicBool,
    fail_unmount: AtomicBool,
}

impl Fake {
    fn new(seed: u64) -> Arc<Fake> {
        Arc::new(Fake {
            files: Mutex::default(),
            mounts: Mutex::default(),
            log: Mutex::default(),
            random: Mutex::new(Random(seed | 1)),
            fail_one_in: Mutex::new(0),
            fail_mount: AtomicBool::new(false),
            fail_unmount: AtomicBool::new(false),
        })
    }

    /// Lets others run for a while, then perhaps fails.
    async fn step(&self, what: String) -> Result<(), BackendError> {
        self.log.lock().unwrap().push(what);
        let (pauses, fails) = {
            let mut random = self.random.lock().unwrap();
            let one_in = *self.fail_one_in.lock().unwrap();
            (random.below(4), one_in > 0 && random.below(one_in) == 0)
        };
        for _ in 0..pauses {
            yield_now().await;
        }
        if fails {
            Err("bad luck".into())
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl DrivePatcher for Fake {
    async fn patch(&self, drive_id: &str, path: &str) -> Result<(), BackendError> {
        assert!(
            !self.mounts.lock().unwrap().contains_key(drive_id),
            "a mounted drive was swapped"
        );
        let result = self.step(format!("patch {path}")).await;
        // An error does not tell whether it had an effect: here it always has.
        self.files
            .lock()
            .unwrap()
            .insert(drive_id.into(), path.into());
        result
    }
}

#[async_trait]
impl GuestMounter for Fake {
    async fn mount(
        &self,
        drive_id: &str,
        destination: &str,
        fstype: &str,
        options: &[String],
    ) -> Result<(), BackendError> {
        let file = self.files.lock().unwrap()[drive_id].clone();
        assert!(file.ends_with(".attached"), "{file} was mounted");
        let result = self
            .step(format!(
                "mount {destination} {fstype} {}",
                options.join(",")
            ))
            .await;
        if self.fail_mount.load(Ordering::SeqCst) {
            return Err("no such filesystem".into());
        }
        let other = self
            .mounts
            .lock()
            .unwrap()
            .insert(drive_id.into(), destination.into());
        assert_eq!(other, None, "a drive was mounted twice");
        result
    }

    async fn unmount(&self, drive_id: &str) -> Result<(), BackendError> {
        self.step("unmount".into()).await?;
        if self.fail_unmount.load(Ordering::SeqCst) {
            return Err("busy".into());
        }
        self.mounts.lock().unwrap().remove(drive_id);
        Ok(())
    }
}

fn drives(dir: &Path, containers: u32, fake: &Arc<Fake>) -> Drives {
    let layout = Layout {
        containers,
        drive_mounts: vec![DriveMountSlot { read_only: true }],
        shared: containers,
        volumes: 1,
    };
    StubDrives::create(dir, &layout).unwrap().connect(
        Arc::new(Links::new(dir)),
        Arc::clone(fake) as _,
        Arc::clone(fake) as _,
    )
}

fn request(owner: &str) -> Attach {
    Attach {
        host_path: "/host/file".into(),
        destination: format!("/container/{owner}/disk"),
        fstype: "ext4".into(),
        options: vec!["noatime".into()],
        owner: owner.into(),
    }
}

fn links(dir: &Path) -> usize {
    let is_link = |entry: &fs::DirEntry| entry.file_type().unwrap().is_symlink();
    fs::read_dir(dir)
        .unwrap()
        .map(Result::unwrap)
        .filter(is_link)
        .count()
}

fn states(drives: &Drives) -> Vec<SlotState> {
    drives.slots().into_iter().map(|slot| slot.state).collect()
}

#[tokio::test]
async fn attaching_and_detaching_go_the_same_way_there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(1);
    let drives = drives(dir.path(), 1, &fake);
    let drive = drives.attach(Kind::Writable, request("a")).await.unwrap();
    let link = fs::read_link(dir.path().join("ctrstub0.attached")).unwrap();
    assert_eq!(link, Path::new("/host/file"));
    drives.detach(&drive).await.unwrap();
    assert_eq!(
        *fake.log.lock().unwrap(),
        [
            "patch ctrstub0.attached",
            "mount /container/a/disk ext4 noatime,rw",
            "unmount",
            "patch ctrstub0",
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
    let drives = drives(dir.path(), 2, &Fake::new(1));
    let first = drives.attach(Kind::Writable, request("a")).await.unwrap();
    drives.detach(&first).await.unwrap();
    let second = drives.attach(Kind::Writable, request("b")).await.unwrap();
    assert_ne!(first.drive_id, second.drive_id);
    let third = drives.attach(Kind::Writable, request("c")).await.unwrap();
    assert_eq!(first.drive_id, third.drive_id);
    assert_ne!(first.slot, third.slot);
    let image = drives.attach(Kind::ReadOnly, request("d")).await.unwrap();
    assert_eq!(image.drive_id, fc_stub_drive::drive_id("imgstub0"));

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
    let drives = drives(dir.path(), 1, &Fake::new(1));
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
    let fake = Fake::new(1);
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
        error.to_string(),
        "There are no remaining drives to be used: all 1 volume drives of the VM are in use; \
         set a larger VolumeSlots when creating the VM"
    );
}

#[tokio::test]
async fn the_same_wish_twice_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let drives = drives(dir.path(), 2, &Fake::new(1));
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
    let drives = drives(dir.path(), 1, &Fake::new(1));
    let mut wrong = request("a");
    wrong.options = vec!["rw".into()];
    let error = drives.attach(Kind::ReadOnly, wrong).await.unwrap_err();
    assert!(matches!(error, DriveError::Options(_)));
    let mut wrong = request("a");
    wrong.host_path = "file".into();
    let error = drives.attach(Kind::ReadOnly, wrong).await.unwrap_err();
    assert!(matches!(error, DriveError::RelativePath(_)));
    assert!(
        states(&drives)
            .iter()
            .all(|state| *state == SlotState::Free)
    );
}

#[tokio::test]
async fn a_failed_mount_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(1);
    let drives = drives(dir.path(), 1, &fake);
    fake.fail_mount.store(true, Ordering::SeqCst);
    let error = drives
        .attach(Kind::Writable, request("a"))
        .await
        .unwrap_err();
    assert!(chain(&error).ends_with("cannot be mounted in the guest: no such filesystem"));
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
    let fake = Fake::new(1);
    let drives = drives(dir.path(), 1, &fake);
    fake.fail_mount.store(true, Ordering::SeqCst);
    fake.fail_unmount.store(true, Ordering::SeqCst);
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
        matches!(&states(&drives)[0], SlotState::Quarantined(reason) if reason.contains("busy"))
    );
    let error = drives
        .attach(Kind::Writable, request("b"))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("1 of them could not be detached"),
        "{error}"
    );

    fake.fail_unmount.store(false, Ordering::SeqCst);
    drives.detach_owner("somebody else").await.unwrap();
    assert_eq!(states(&drives)[0], SlotState::Free);
    assert_eq!(links(dir.path()), 0);
}

#[tokio::test]
async fn an_owner_s_drives_go_together_and_in_reverse() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(1);
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
        ["unmount", "patch ctrstub1", "unmount", "patch imgstub0"]
    );
    assert_eq!(links(dir.path()), 1);
}

#[tokio::test]
async fn an_attach_nobody_waits_for_is_undone() {
    for patience in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let drives = drives(dir.path(), 1, &Fake::new(patience));
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
                let destination = slot.used_by.unwrap().destination;
                assert!(linked);
                assert_eq!(*file, link);
                assert_eq!(mounts[&slot.drive_id], destination);
                assert!(destinations.insert(destination), "two slots for one wish");
            }
            // In between anything goes, but a mounted file is never unlinked.
            SlotState::Busy | SlotState::Quarantined(_) => {
                assert!(linked || !mounts.contains_key(&slot.drive_id));
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

#[tokio::test]
async fn any_interleaving_keeps_the_invariants() {
    for seed in 1..=60_u64 {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        *fake.fail_one_in.lock().unwrap() = [0, 3, 10][usize::try_from(seed % 3).unwrap()];
        let drives = drives(dir.path(), 3, &fake);
        let clients: Vec<_> = (1..=6)
            .map(|number| tokio::spawn(client(drives.clone(), seed * 100 + number, 15)))
            .collect();
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
