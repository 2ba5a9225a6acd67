//! The drives that the host attaches for containers (service `DriveMounter`).
//!
//! A drive is reserved at boot as a stub (see `fc-stub-drive`); its id is in the stub. When the
//! host puts a real file in the stub's place, the same block device changes its size. So the
//! mapping from ids to devices, once read, stays.

mod device;
mod path;
mod service;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::mount::{self, InfoError, MountError};
use crate::uevent::Uevents;
use device::Device;
pub use service::DriveService;

/// Bound on a swap's becoming visible in the guest; the host has done it before it calls.
const SWAP_BOUND: Duration = Duration::from_secs(10);
/// Bound on the wait for a device that other mount namespaces are about to let go of.
const BUSY_BOUND: Duration = Duration::from_secs(5);
/// The kernel does not tell when a device is let go of, so it is asked this often.
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
    /// The destination is below a system directory.
    #[error("Drives cannot be mounted at {0}: it is inside /proc, /sys or /dev")]
    Destination(PathBuf),
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
    #[error("Drive {id:?} ({name}) is still in use")]
    Busy {
        /// The drive.
        id: String,
        /// Its kernel name.
        name: String,
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
}

impl Drives {
    /// Finds the stubs that are there now.
    ///
    /// # Errors
    /// When the list of block devices cannot be read.
    pub fn discover(uevents: Uevents, bundles: PathBuf) -> Result<Self, DriveError> {
        let drives = Self {
            known: Mutex::default(),
            uevents,
            bundles,
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
        let target = path::resolve(destination).map_err(|source| DriveError::MountPoint {
            path: destination.to_owned(),
            source,
        })?;
        if path::is_system(&target) {
            return Err(DriveError::Destination(destination.to_owned()));
        }
        self.wait_for_swap(id, &device).await?;
        path::make_private(&target).map_err(|source| DriveError::MountPoint {
            path: target.clone(),
            source,
        })?;
        let (fstype, options) = (fstype.to_owned(), options.to_vec());
        blocking(move || {
            // The kernel may have cached sectors of the file that was there before.
            device.drop_cache()?;
            mount::mount_at(&device.path(), &target, &fstype, &options)?;
            Ok(())
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
        let copy = device.clone();
        blocking(move || {
            let (major, minor) = copy.number()?;
            let mut points = mount::mount_points(major, minor)?;
            points.reverse();
            for point in points {
                mount::unmount(&point)?;
                path::remove_empty(&point, &bundles);
            }
            copy.flush()
        })
        .await?;
        let deadline = Instant::now() + BUSY_BOUND;
        while device.is_claimed()? {
            if Instant::now() >= deadline {
                return Err(DriveError::Busy {
                    id: id.to_owned(),
                    name: device.name().to_owned(),
                });
            }
            sleep(BUSY_INTERVAL).await;
        }
        Ok(())
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

/// Runs `work`, which waits for a disk, beside the event loop.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DriveError> + Send + 'static,
) -> Result<T, DriveError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
