//! The drives that the host attaches for containers (service `DriveMounter`).
//!
//! A drive is reserved at boot as a stub (see `fc-stub-drive`); its id is in the stub. When the
//! host puts a real file in the stub's place, the same block device changes its size. So the
//! mapping from ids to devices, once read, stays.

mod device;
mod holders;
mod point;
mod service;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use nix::errno::Errno;
use nix::sys::stat::makedev;

use crate::machine::Role;
use crate::mount::{self, InfoError, MountError, RootError};
use crate::server::STATE_DIR;
use crate::uevent::Uevents;
use device::Device;
use point::MountPoint;
pub use service::DriveService;

/// Bound on a swap's becoming visible in the guest; the host has done it before it calls.
const SWAP_BOUND: Duration = Duration::from_secs(30);
/// Bound on the wait for a device that other mount namespaces are about to let go of.
const BUSY_BOUND: Duration = Duration::from_secs(10);
/// The kernel tells nobody when a block device is let go of, so it is asked this often. `/proc/self/mountinfo` can be
/// polled, but it is of one's own mount namespace only. An end of the last process in the other one can be waited for,
/// but the kernel unmounts what that process had at some time after it, and not every holder is a process.
const BUSY_INTERVAL: Duration = Duration::from_millis(10);

/// Why a drive could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// No stub with this id.
    #[error("Drive {id:?} could not be found among the block devices ({present})")]
    Unknown {
        /// The id asked for.
        id: String,
        /// The ids there are.
        present: String,
    },
    /// The destination holds what the guest needs.
    #[error("Drives cannot be mounted at {path}: {place} belongs to the guest's system")]
    Destination {
        /// The destination.
        path: PathBuf,
        /// What it is with all links resolved.
        place: PathBuf,
    },
    /// The destination is to be made where nothing can be.
    #[error("Cannot make mount point {0}: the guest's root is read-only")]
    ReadOnlyRoot(PathBuf),
    /// Making room for it failed.
    #[error("Cannot make the guest's root writable for mount point {path}")]
    Root {
        /// The destination.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<RootError>,
    },
    /// The destination cannot be looked at or made.
    #[error("Cannot make mount point {path}")]
    MountPoint {
        /// The destination.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device is still a stub.
    #[error(
        "Drive {0:?} still has the size of its stub after {bound} s: its file was not replaced",
        bound = SWAP_BOUND.as_secs()
    )]
    NotSwapped(String),
    /// The device cannot be examined or flushed.
    #[error("Cannot {action} block device {name}")]
    Device {
        /// What was tried.
        action: &'static str,
        /// Its kernel name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody still uses the device.
    #[error("Drive {id:?} ({name}) is still in use by {holders}")]
    Busy {
        /// The drive.
        id: String,
        /// Its kernel name.
        name: String,
        /// Who they are.
        holders: String,
    },
    /// Mounting itself.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The mount table.
    #[error(transparent)]
    Info(#[from] InfoError),
}

/// The drives of this VM.
#[derive(Debug)]
pub struct Drives {
    known: Mutex<HashMap<String, Device>>,
    uevents: Uevents,
    /// Mount points below it are removed after unmounting.
    bundles: PathBuf,
    role: Role,
    /// Held while the root is being made writable; whether it was.
    root: Arc<Mutex<bool>>,
}

impl Drives {
    /// Finds the stubs that are there now. With `role` `Init` the root is the agent's to change.
    ///
    /// # Errors
    /// When the list of block devices cannot be read.
    pub fn discover(uevents: Uevents, bundles: PathBuf, role: Role) -> Result<Self, DriveError> {
        let drives = Self {
            known: Mutex::default(),
            uevents,
            bundles,
            role,
            root: Arc::default(),
        };
        drives.scan()?;
        Ok(drives)
    }

    /// Mounts drive `id` at `destination`, which is made if need be, once its file has replaced
    /// the stub.
    ///
    /// # Errors
    /// See [`DriveError`].
    pub async fn mount(
        &self,
        id: &str,
        destination: &Path,
        fstype: &str,
        options: &[String],
    ) -> Result<(), DriveError> {
        let device = self.find(id)?;
        let point = self.mount_point(destination).await?;
        self.wait_for_swap(id, &device).await?;
        let (fstype, options) = (fstype.to_owned(), options.to_vec());
        blocking(move || {
            // The kernel may have cached sectors of the file that was there before.
            device.drop_cache()?;
            mount::mount_at(&device.path(), &point.handle(), &fstype, &options)
                .map_err(|error| error.at(point.path()))?;
            Ok(())
        })
        .await
    }

    /// The directory `path`, made if need be, also on a read-only root if that is ours.
    async fn mount_point(&self, path: &Path) -> Result<MountPoint, DriveError> {
        let (path, role, root) = (path.to_owned(), self.role, Arc::clone(&self.root));
        blocking(move || match MountPoint::make(&path) {
            Err(DriveError::ReadOnlyRoot(_)) if role == Role::Init => {
                let mut writable = root.lock().unwrap_or_else(PoisonError::into_inner);
                if !*writable {
                    mount::make_writable(&Path::new(STATE_DIR).join("root")).map_err(|source| {
                        DriveError::Root {
                            path: path.clone(),
                            source: Box::new(source),
                        }
                    })?;
                    *writable = true;
                }
                MountPoint::make(&path)
            }
            result => result,
        })
        .await
    }

    /// Unmounts drive `id` wherever it is mounted and writes everything back, so that its file
    /// can be taken away.
    ///
    /// # Errors
    /// See [`DriveError`]; what was unmounted stays so.
    pub async fn unmount(&self, id: &str) -> Result<(), DriveError> {
        let device = self.find(id)?;
        let bundles = self.bundles.clone();
        let (owned, copy) = (id.to_owned(), device.clone());
        blocking(move || {
            let mut points = mount::mount_points(&copy.disk()?)?;
            points.reverse();
            for point in points {
                match mount::unmount(&point) {
                    Err(MountError::Unmount {
                        source: Errno::EBUSY,
                        ..
                    }) => return Err(busy(&owned, &copy)),
                    result => result?,
                }
                point::remove_empty(&point, &bundles);
            }
            Ok(())
        })
        .await?;
        let deadline = Instant::now() + BUSY_BOUND;
        while device.is_claimed()? {
            if Instant::now() >= deadline {
                let id = id.to_owned();
                return blocking(move || Err(busy(&id, &device))).await;
            }
            sleep(BUSY_INTERVAL).await;
        }
        // Not before: whoever else had it mounted may have written until then.
        blocking(move || device.flush()).await
    }

    async fn wait_for_swap(&self, id: &str, device: &Device) -> Result<(), DriveError> {
        let mut events = self.uevents.subscribe();
        let deadline = Instant::now() + SWAP_BOUND;
        while device.sectors()? == device.stub_sectors() {
            if timeout_at(deadline, events.next()).await.is_err() {
                return Err(DriveError::NotSwapped(id.to_owned()));
            }
        }
        Ok(())
    }

    fn find(&self, id: &str) -> Result<Device, DriveError> {
        let find = || {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(id).cloned()
        };
        if let Some(device) = find() {
            return Ok(device);
        }
        // It may have appeared since.
        self.scan()?;
        find().ok_or_else(|| {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let mut ids: Vec<_> = known.keys().cloned().collect();
            ids.sort();
            DriveError::Unknown {
                id: id.to_owned(),
                present: ids.join(", "),
            }
        })
    }

    fn scan(&self) -> Result<(), DriveError> {
        let stubs = Device::stubs()?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, device) in stubs {
            known.entry(id).or_insert(device);
        }
        Ok(())
    }
}

/// The error for a device that somebody does not let go of.
fn busy(id: &str, device: &Device) -> DriveError {
    let named = || {
        let (major, minor) = device.number()?;
        Ok(holders::name(makedev(major, minor), &device.disk()?))
    };
    named().map_or_else(
        |error| error,
        |holders| DriveError::Busy {
            id: id.to_owned(),
            name: device.name().to_owned(),
            holders,
        },
    )
}

/// Runs `work`, which waits for a disk, beside the event loop.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DriveError> + Send + 'static,
) -> Result<T, DriveError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
