//! A VMM, a jail and a guest that do as told, fail when told, and remember.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use fc_host_file::HostFile;
use tokio::task::yield_now;

use crate::{
    AddedDrive, Attach, BackendError, DriveMountSlot, DrivePatcher, Drives, Exposer, FixedDrives,
    GuestMounter, HotPlug, Kind, Layout, Links, SlotState, StubDrives,
};

/// xorshift64: enough to vary the order of things, and the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// All of them.
pub struct Fake {
    links: Links,
    /// What the VMM has behind each drive.
    pub files: Mutex<BTreeMap<String, String>>,
    /// What the guest has mounted: drive and destination.
    pub mounts: Mutex<BTreeMap<String, String>>,
    pub log: Mutex<Vec<String>>,
    random: Mutex<Random>,
    /// Fail one call in so many; 0 for never.
    pub fail_one_in: Mutex<u64>,
    /// Calls that fail always: first words of the log's lines, or `patch-back`.
    pub fail: Mutex<BTreeSet<&'static str>>,
    /// The call that panics.
    panics: Mutex<Option<&'static str>>,
    /// How many more drives the VMM can add; as real ones, none unless told.
    pub addable: AtomicU64,
}

impl Fake {
    pub fn new(dir: &Path, seed: u64) -> Arc<Fake> {
        Arc::new(Fake {
            links: Links::new(dir),
            files: Mutex::default(),
            mounts: Mutex::default(),
            log: Mutex::default(),
            random: Mutex::new(Random(seed | 1)),
            fail_one_in: Mutex::new(0),
            fail: Mutex::default(),
            panics: Mutex::default(),
            addable: AtomicU64::new(0),
        })
    }

    pub fn fail(&self, calls: &[&'static str]) {
        *self.fail.lock().unwrap() = calls.iter().copied().collect();
    }

    pub fn panic_in(&self, call: Option<&'static str>) {
        *self.panics.lock().unwrap() = call;
    }

    /// Lets others run for a while, then perhaps fails.
    async fn step(&self, what: String) -> Result<(), BackendError> {
        let call = match what.split(' ').next().unwrap_or_default() {
            "patch" if !what.ends_with(".attached") => "patch-back",
            first => first,
        };
        let panics = *self.panics.lock().unwrap();
        assert_ne!(panics, Some(call), "told to panic");
        let told = self.fail.lock().unwrap().contains(call);
        self.log.lock().unwrap().push(what);
        let (pauses, unlucky) = {
            let mut random = self.random.lock().unwrap();
            let one_in = *self.fail_one_in.lock().unwrap();
            (random.below(4), one_in > 0 && random.below(one_in) == 0)
        };
        for _ in 0..pauses {
            yield_now().await;
        }
        if told || unlucky {
            Err("bad luck".into())
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl Exposer for Fake {
    async fn expose(
        &self,
        name: &str,
        file: &HostFile,
        read_only: bool,
    ) -> Result<String, BackendError> {
        // An error does not tell whether it had an effect: here and below it always has.
        let path = self.links.expose(name, file, read_only).await?;
        let word = if read_only { "expose-ro" } else { "expose" };
        self.step(format!("{word} {name}")).await?;
        Ok(path)
    }

    async fn withdraw(&self, name: &str) -> Result<(), BackendError> {
        let gone = self.links.withdraw(name).await;
        self.step(format!("withdraw {name}")).await?;
        gone
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
        self.mounts.lock().unwrap().remove(drive_id);
        Ok(())
    }
}

/// A VMM that can add so many drives of any kind.
#[async_trait]
impl HotPlug for Fake {
    async fn add(&self, kind: Kind) -> Result<AddedDrive, BackendError> {
        let left = self.addable.load(Ordering::Relaxed);
        let left = left.checked_sub(1).ok_or(FixedDrives)?;
        self.addable.store(left, Ordering::Relaxed);
        // It may fail and still count: it is enough that it is never there in part.
        self.step(format!("add {kind:?}")).await?;
        Ok(AddedDrive {
            drive_id: format!("added-{left}"),
            file_name: format!("addedstub{left}"),
        })
    }
}

/// The slots of a VM for so many containers, with one drive mount and one volume.
pub fn drives(dir: &Path, containers: u32, fake: &Arc<Fake>) -> Drives {
    let layout = Layout {
        containers,
        drive_mounts: vec![DriveMountSlot { read_only: true }],
        shared: containers,
        volumes: 1,
    };
    StubDrives::create(dir, &layout).unwrap().connect(
        Arc::clone(fake) as _,
        Arc::clone(fake) as _,
        Arc::clone(fake) as _,
        Arc::clone(fake) as _,
    )
}

/// A file that exists as long as somebody keeps it.
pub fn file() -> HostFile {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("fc-drives-test-{}-{number}", std::process::id());
    let file = HostFile::create(&std::env::temp_dir().join(name)).unwrap();
    file.file().set_len(1 << 20).unwrap();
    file
}

/// A wish that nobody else has.
pub fn request(owner: &str) -> Attach {
    Attach {
        file: file(),
        destination: format!("/container/{owner}/disk"),
        fstype: "ext4".into(),
        options: vec!["noatime".into()],
        owner: owner.into(),
    }
}

/// How many files the VMM can see.
pub fn links(dir: &Path) -> usize {
    let is_link = |entry: &fs::DirEntry| entry.file_type().unwrap().is_symlink();
    fs::read_dir(dir)
        .unwrap()
        .map(Result::unwrap)
        .filter(is_link)
        .count()
}

pub fn states(drives: &Drives) -> Vec<SlotState> {
    drives.slots().into_iter().map(|slot| slot.state).collect()
}
