//! A drive's file, as the configuration holds it before the guest runs and as a swap brings it in.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::fault::BlockFault;
use crate::model::{CacheType, DriveConfig, IoEngine, RateLimiter};

/// Bytes that count as one on a virtio disk.
const SECTOR: u64 = 512;

/// Longest serial number of a virtio disk, in bytes.
const SERIAL_LEN: usize = 20;

/// An open host file that backs a drive.
#[derive(Debug)]
pub struct DriveFile {
    /// Opened for writing only if the guest may write.
    pub file: File,
    /// What the guest sees of it: whole sectors.
    pub size: u64,
    /// Whether it is a block device of the host rather than a regular file.
    pub block_device: bool,
    /// The serial number the guest sees: made of the file's device and inode, as Firecracker makes it.
    pub serial: String,
}

impl DriveFile {
    /// Opens `path`; a relative one is relative to the process's working directory.
    ///
    /// # Errors
    /// It cannot be opened so, or its size cannot be found out.
    pub fn open(path: &str, read_only: bool) -> Result<Self, BlockFault> {
        let fault = |error: Error| BlockFault::BackingFile {
            error,
            path: path.to_owned(),
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(fault)?;
        let metadata = file.metadata().map_err(fault)?;
        if metadata.is_dir() {
            // It opens for reading, and would fail at the first read.
            return Err(fault(ErrorKind::IsADirectory.into()));
        }
        // Seeking tells the size of a block device too, which its metadata do not.
        let bytes = file.seek(SeekFrom::End(0)).map_err(fault)?;
        if bytes % SECTOR != 0 {
            log::warn!(
                "Disk size {bytes} is not a multiple of sector size {SECTOR}; the remainder will not be \
                 visible to the guest."
            );
        }
        let mut serial = format!("{}{}{}", metadata.dev(), metadata.rdev(), metadata.ino());
        serial.truncate(SERIAL_LEN);
        Ok(Self {
            file,
            size: bytes / SECTOR * SECTOR,
            block_device: metadata.file_type().is_block_device(),
            serial,
        })
    }
}

/// A configured drive with its file.
#[derive(Debug)]
pub struct Drive {
    /// As configured; `is_read_only`, `path_on_host` and `io_engine` are always set.
    pub config: DriveConfig,
    /// Its file.
    pub backing: DriveFile,
}

impl Drive {
    /// Checks the configuration and opens the file.
    ///
    /// # Errors
    /// There is not one path, what is asked for is not offered, or the file cannot be opened.
    pub fn new(mut config: DriveConfig) -> Result<Self, BlockFault> {
        let path = match (&config.path_on_host, &config.socket) {
            (Some(path), None) => path,
            (None, Some(_)) => return Err(BlockFault::NotOffered("A vhost-user block device")),
            _ => return Err(BlockFault::InvalidConfig),
        };
        let read_only = *config.is_read_only.get_or_insert(false);
        let backing = DriveFile::open(path, read_only)?;
        config.rate_limiter = config.rate_limiter.and_then(RateLimiter::effective);
        config.io_engine.get_or_insert_default();
        Ok(Self { config, backing })
    }

    /// Whether the guest may only read.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.config.is_read_only == Some(true)
    }

    /// How its nodes are opened, now and after each swap.
    #[must_use]
    pub fn mode(&self) -> DriveMode {
        DriveMode {
            read_only: self.read_only(),
            ignore_flush: self.config.cache_type == CacheType::Unsafe,
            io_uring: self.config.io_engine == Some(IoEngine::Async),
        }
    }
}

/// What stays the same when a drive's file is swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriveMode {
    /// The guest may only read.
    pub read_only: bool,
    /// Flushes do not reach the host's disk.
    pub ignore_flush: bool,
    /// I/O by io_uring rather than on threads.
    pub io_uring: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &str) -> DriveConfig {
        DriveConfig {
            drive_id: "a".into(),
            path_on_host: Some(path.into()),
            is_read_only: Some(true),
            ..DriveConfig::default()
        }
    }

    #[test]
    fn whole_sectors_and_a_serial() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(3 * 512 + 511).unwrap();
        let drive = Drive::new(config(file.path().to_str().unwrap())).unwrap();
        assert_eq!(drive.backing.size, 3 * 512);
        assert!(!drive.backing.serial.is_empty() && drive.backing.serial.len() <= 20);
        assert_eq!(drive.config.io_engine, Some(IoEngine::Sync));
        assert!(drive.mode().ignore_flush);
    }

    #[test]
    fn refusals() {
        let missing = Drive::new(config("no/such/file")).unwrap_err().to_string();
        assert_eq!(
            missing,
            "Virtio backend error: Error manipulating the backing file: No such file or directory (os error \
             2) no/such/file"
        );
        let no_path = DriveConfig {
            path_on_host: None,
            ..config("")
        };
        assert!(matches!(
            Drive::new(no_path),
            Err(BlockFault::InvalidConfig)
        ));
        let both = DriveConfig {
            socket: Some("s".into()),
            ..config("")
        };
        assert!(matches!(
            Drive::new(both.clone()),
            Err(BlockFault::InvalidConfig)
        ));
        let socket = DriveConfig {
            path_on_host: None,
            ..both
        };
        assert!(matches!(Drive::new(socket), Err(BlockFault::NotOffered(_))));
    }

    #[test]
    fn writable_unless_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let untold = DriveConfig {
            is_read_only: None,
            ..config(file.path().to_str().unwrap())
        };
        let mut drive = Drive::new(untold).unwrap();
        assert!(!drive.read_only() && !drive.mode().read_only);
        assert_eq!(drive.config.is_read_only, Some(false));
        std::io::Write::write_all(&mut drive.backing.file, b"x").unwrap();
    }
}
