//! One block device that started as a stub.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

use super::DriveError;
use crate::mount::Disk;

nix::ioctl_none!(
    /// Writes a device's cached blocks back and forgets them (`BLKFLSBUF`, linux/fs.h).
    flush_buffers,
    0x12,
    97
);

/// A block device and the size that its stub had.
#[derive(Debug, Clone)]
pub(super) struct Device {
    name: String,
    stub_sectors: u64,
}

impl Device {
    /// All devices that hold a stub now, with the ids in them.
    pub(super) fn stubs() -> Result<Vec<(String, Self)>, DriveError> {
        let list = |source| DriveError::Device {
            action: "list",
            name: "/sys/block".to_owned(),
            source,
        };
        let mut found = Vec::new();
        for entry in fs::read_dir("/sys/block").map_err(list)? {
            let Ok(name) = entry.map_err(list)?.file_name().into_string() else {
                continue;
            };
            // A device that cannot be read (an empty loop device, say) is not a stub.
            if let Some(stub) = Self::read_stub(&name) {
                found.push(stub);
            }
        }
        Ok(found)
    }

    fn read_stub(name: &str) -> Option<(String, Self)> {
        let mut sector = [0; fc_stub_drive::SECTOR];
        let mut file = File::open(format!("/dev/{name}")).ok()?;
        file.read_exact(&mut sector).ok()?;
        let id = fc_stub_drive::parse(&sector)?.to_owned();
        let device = Self {
            name: name.to_owned(),
            stub_sectors: read_sectors(name).ok()?,
        };
        Some((id, device))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn path(&self) -> String {
        format!("/dev/{}", self.name)
    }

    pub(super) fn stub_sectors(&self) -> u64 {
        self.stub_sectors
    }

    /// Its size now, in units of 512 bytes.
    pub(super) fn sectors(&self) -> Result<u64, DriveError> {
        read_sectors(&self.name).map_err(|source| self.error("read the size of", source))
    }

    /// Its major and minor number.
    pub(super) fn number(&self) -> Result<(u64, u64), DriveError> {
        let parse = || {
            let text = fs::read_to_string(format!("/sys/block/{}/dev", self.name))?;
            text.trim()
                .split_once(':')
                .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        };
        parse().map_err(|source| self.error("read the number of", source))
    }

    /// What mount tables call it.
    pub(super) fn disk(&self) -> Result<Disk, DriveError> {
        let (major, minor) = self.number()?;
        Ok(Disk::new(major, minor, self.path()))
    }

    /// Forgets cached blocks.
    pub(super) fn drop_cache(&self) -> Result<(), DriveError> {
        let drop_cache = || -> io::Result<()> {
            let file = File::open(self.path())?;
            // SAFETY: the ioctl takes no argument.
            unsafe { flush_buffers(file.as_raw_fd()) }?;
            Ok(())
        };
        drop_cache().map_err(|source| self.error("drop the cache of", source))
    }

    /// Writes everything back to the device and has the device write it back too.
    pub(super) fn flush(&self) -> Result<(), DriveError> {
        File::open(self.path())
            .and_then(|file| file.sync_all())
            .map_err(|source| self.error("flush", source))?;
        self.drop_cache()
    }

    /// Whether a file system is still on it, possibly mounted only in other mount namespaces.
    pub(super) fn is_claimed(&self) -> Result<bool, DriveError> {
        let exclusive = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(self.path());
        match exclusive {
            Ok(_) => Ok(false),
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => Ok(true),
            Err(error) => Err(self.error("open", error)),
        }
    }

    fn error(&self, action: &'static str, source: io::Error) -> DriveError {
        DriveError::Device {
            action,
            name: self.name.clone(),
            source,
        }
    }
}

fn read_sectors(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/sys/block/{name}/size"))?;
    text.trim()
        .parse()
        .map_err(|_| io::ErrorKind::InvalidData.into())
}
