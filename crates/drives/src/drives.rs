//! Puts files behind the slots of a running VM and takes them away again.
//!
//! Attaching takes four steps (`work`): reserve a slot, expose the file to the VMM as
//! `<stub>.attached`, have the VMM open that, have the guest mount the drive. Detaching,
//! and undoing an attach that failed, goes the same way back from wherever it got
//! to and stops at the first step that fails: a file that the guest may still
//! write to must stay behind its drive. The slot is then quarantined, and keeps its file, open and locked.
//!
//! Each operation runs as a task of its own: one that has begun comes to its
//! end whether or not the caller still waits for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fc_errors::chain;
use fc_host_file::{Access, HostFile};
use fc_stub_drive::{SECTOR, SECTORS};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::backend::{BackendError, DrivePatcher, Exposer, GuestMounter, HotPlug};
use crate::error::{DetachErrors, DriveError};
use crate::options::for_drive;
use crate::slots::{
    Detachable, Kind, Role, Slot, SlotId, SlotInfo, SlotUse, Slots, Taken, Unavailable,
};
use crate::work::Work;

/// What to attach, and where the guest shall have it.
#[derive(Debug, Clone)]
pub struct Attach {
    /// The file or block device on the host. The slot keeps it, and so its lock, until it is out of the VMM's sight:
    /// while the slot is quarantined too, but not when the VM has ended.
    pub file: HostFile,
    /// Where the guest mounts it.
    pub destination: String,
    /// Type of the filesystem in it.
    pub fstype: String,
    /// Mount options; `rw` or `ro` is added as the slot demands, and `nouuid` for xfs.
    pub options: Vec<String>,
    /// Who it is for (a container's id): shown to people, and the key of [`Drives::detach_owner`].
    pub owner: String,
}

/// A drive that the guest has mounted. Dropping this does nothing: use [`Drives::detach`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedDrive {
    /// For [`Drives::detach`].
    pub slot: SlotId,
    /// The VMM's and the guest's name for it.
    pub drive_id: String,
    /// Who it is for.
    pub owner: String,
}

/// The drive slots of a running VM. Clones are the same slots.
#[derive(Clone)]
pub struct Drives {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    slots: Mutex<Slots>,
    /// Wakes those who wait for a slot that is being worked on.
    pub(crate) changed: Notify,
    pub(crate) exposer: Arc<dyn Exposer>,
    pub(crate) patcher: Arc<dyn DrivePatcher>,
    pub(crate) mounter: Arc<dyn GuestMounter>,
    hot_plug: Arc<dyn HotPlug>,
}

impl Drives {
    pub(crate) fn new(
        slots: Slots,
        exposer: Arc<dyn Exposer>,
        patcher: Arc<dyn DrivePatcher>,
        mounter: Arc<dyn GuestMounter>,
        hot_plug: Arc<dyn HotPlug>,
    ) -> Drives {
        Drives {
            inner: Arc::new(Inner {
                slots: Mutex::new(slots),
                changed: Notify::new(),
                exposer,
                patcher,
                mounter,
                hot_plug,
            }),
        }
    }

    /// Attaches a file to a free slot and has the guest mount it. Without a free one the VM gets another, if
    /// it can ([`HotPlug`]).
    ///
    /// If the returned future is dropped, the drive is attached and then detached again.
    ///
    /// # Errors
    /// When no slot is free, the owner has a drive at that destination, or a step fails; the steps before it
    /// are undone.
    pub async fn attach(&self, kind: Kind, request: Attach) -> Result<AttachedDrive, DriveError> {
        let role = Role::Any(kind);
        let request = checked(request, !kind.is_read_only())?;
        loop {
            match self.reserve(role, &request)? {
                Some(taken) => return self.attach_taken(taken, request).await,
                // Somebody else may be faster to reserve it; then there will be yet another one.
                None => self.add_slot(kind).await?,
            }
        }
    }

    /// Like [`Drives::attach`], for the VM's drive mount number `index`, whose slot is its own.
    ///
    /// # Errors
    /// When there is no such drive mount, it is mounted already, or a step fails.
    pub async fn attach_drive_mount(
        &self,
        index: usize,
        request: Attach,
    ) -> Result<AttachedDrive, DriveError> {
        let read_only = self.inner.slots().drive_mount(index);
        let read_only = read_only.ok_or(DriveError::NoSuchDriveMount(index))?;
        let request = checked(request, !read_only)?;
        let taken = self.reserve(Role::DriveMount(index), &request)?;
        let taken = taken.ok_or(DriveError::DriveMountInUse(index))?;
        self.attach_taken(taken, request).await
    }

    /// A slot for the request; `None` if none of that role is free.
    fn reserve(&self, role: Role, request: &Attach) -> Result<Option<Taken>, DriveError> {
        let user = SlotUse {
            owner: request.owner.clone(),
            host_path: request.file.path().to_owned(),
            destination: request.destination.clone(),
        };
        match self.inner.slots().reserve(role, user, &request.file) {
            Ok(taken) => Ok(Some(taken)),
            Err(Unavailable::Exhausted) => Ok(None),
            Err(Unavailable::Doubled(drive_id)) => Err(DriveError::InUse {
                drive_id,
                owner: request.owner.clone(),
                destination: request.destination.clone(),
            }),
        }
    }

    /// Has the VMM add a drive to the running VM, and makes a free slot of it.
    async fn add_slot(&self, kind: Kind) -> Result<(), DriveError> {
        let inner = Arc::clone(&self.inner);
        let work = tokio::spawn(async move {
            let added = inner.hot_plug.add(kind).await?;
            let (role, read_only) = (Role::Any(kind), kind.is_read_only());
            let slot = Slot::new(&added.drive_id, &added.file_name, read_only, role);
            inner.slots().add(slot);
            Ok::<(), BackendError>(())
        });
        let added = work.await.map_err(DriveError::Stopped)?;
        added.map_err(|source| {
            let (limit, quarantined) = self.inner.slots().count(Role::Any(kind));
            DriveError::Exhausted {
                kind,
                limit,
                quarantined,
                source,
            }
        })
    }

    async fn attach_taken(
        &self,
        taken: Taken,
        request: Attach,
    ) -> Result<AttachedDrive, DriveError> {
        let drives = self.clone();
        let work = tokio::spawn(async move {
            let work = Work::on(Arc::clone(&drives.inner), taken);
            let attached = work.attach(request).await?;
            Ok(Claim {
                drives,
                attached,
                redeemed: false,
            })
        });
        match work.await {
            Ok(claim) => claim.map(Claim::redeem),
            Err(stopped) => Err(DriveError::Stopped(stopped)),
        }
    }

    /// Has the guest unmount the drive, takes the file away, and frees the slot.
    /// Waits for whoever is working on the slot.
    ///
    /// # Errors
    /// When a step fails; the slot is quarantined, and detaching it again goes on from there.
    pub async fn detach(&self, drive: &AttachedDrive) -> Result<(), DriveError> {
        let inner = Arc::clone(&self.inner);
        let slot = drive.slot;
        let work = tokio::spawn(inner.detach(slot));
        match work.await {
            Ok(Some(result)) => result,
            Ok(None) => Err(DriveError::NotAttached {
                drive_id: drive.drive_id.clone(),
                owner: drive.owner.clone(),
            }),
            Err(stopped) => Err(DriveError::Stopped(stopped)),
        }
    }

    /// Detaches everything that `owner` has, last attached first, and tries
    /// again to detach what is quarantined. An owner without drives is no error.
    ///
    /// # Errors
    /// Every drive that could not be detached; the others are.
    pub async fn detach_owner(&self, owner: &str) -> Result<(), DetachErrors> {
        let slots = self.inner.slots().to_detach(owner);
        let inner = Arc::clone(&self.inner);
        let work = tokio::spawn(async move {
            let mut errors = Vec::new();
            for slot in slots {
                // `None`: somebody else was faster.
                if let Some(Err(error)) = Arc::clone(&inner).detach(slot).await {
                    errors.push(error);
                }
            }
            errors
        });
        let errors = work
            .await
            .unwrap_or_else(|stopped| vec![DriveError::Stopped(stopped)]);
        if errors.is_empty() {
            Ok(())
        } else {
            Err(DetachErrors(errors))
        }
    }

    /// Lets go of the files behind the slots: nobody uses them any more, because the VM has ended.
    pub fn vm_ended(&self) {
        let files = self.inner.slots().take_files();
        drop(files);
    }

    /// Every slot and what it is doing, in the order of the VM's drives.
    pub fn slots(&self) -> Vec<SlotInfo> {
        self.inner.slots().info()
    }
}

/// The request with the mount options that a drive needs that can, or cannot, be written to.
fn checked(request: Attach, writable: bool) -> Result<Attach, DriveError> {
    if writable && request.file.access() == Access::Read {
        return Err(DriveError::NotWritable(request.file.path().to_owned()));
    }
    check_size(&request.file)?;
    let options = for_drive(&request.fstype, request.options, writable)?;
    Ok(Attach { options, ..request })
}

/// The guest tells by its size that a file has taken the stub's place.
fn check_size(file: &HostFile) -> Result<(), DriveError> {
    // A block device's length is not in its metadata, and none has a single sector.
    if file.is_block_device() {
        return Ok(());
    }
    let path = || file.path().to_owned();
    let metadata = file.file().metadata();
    let metadata = metadata.map_err(|source| DriveError::Look {
        path: path(),
        source,
    })?;
    let bytes = metadata.len();
    if bytes / SECTOR as u64 <= SECTORS {
        return Err(DriveError::TooSmall {
            path: path(),
            bytes,
        });
    }
    Ok(())
}

/// An attached drive on its way to a caller who may have gone.
struct Claim {
    drives: Drives,
    attached: AttachedDrive,
    redeemed: bool,
}

impl Claim {
    fn redeem(mut self) -> AttachedDrive {
        self.redeemed = true;
        self.attached.clone()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.redeemed {
            return;
        }
        // Without a runtime the process is ending, and the VM with it.
        if let Ok(runtime) = Handle::try_current() {
            let inner = Arc::clone(&self.drives.inner);
            let slot = self.attached.slot;
            runtime.spawn(async move {
                if let Some(Err(error)) = inner.detach(slot).await {
                    tracing::warn!(
                        error = chain(&error),
                        "a drive nobody waited for is still attached"
                    );
                }
            });
        }
    }
}

impl Inner {
    pub(crate) fn slots(&self) -> MutexGuard<'_, Slots> {
        // Every change of a slot is complete before anything can panic.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` if that use of the slot is over.
    async fn detach(self: Arc<Self>, slot: SlotId) -> Option<Result<(), DriveError>> {
        loop {
            let changed = self.changed.notified();
            let answer = self.slots().take(slot);
            match answer {
                Detachable::Taken(taken) => {
                    let work = Work::on(Arc::clone(&self), taken);
                    return Some(work.bring_back().await);
                }
                Detachable::Gone => return None,
                Detachable::Busy => changed.await,
            }
        }
    }
}
