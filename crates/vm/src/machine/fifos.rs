//! The FIFOs that a VMM writes its log and metrics to.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use fc_client::{FifoDrain, FifoError, FifoTail};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::error::BootError;
use super::{Progress, VmSpec};
use crate::dir::{LOG_FIFO, METRICS_FIFO, VmDir};
use crate::state::State;

/// Both FIFOs, and what empties those that nobody else reads.
pub(super) struct Fifos {
    /// Absolute path on the host.
    pub(super) log: PathBuf,
    /// Absolute path on the host.
    pub(super) metrics: PathBuf,
    /// The last lines of the log, if we read it.
    pub(super) log_tail: Option<FifoTail>,
    _drains: Vec<FifoDrain>,
}

impl Fifos {
    /// Makes the FIFOs. Those that a caller asked for are the caller's to read, and
    /// are on record before they are made; ours are in the VM's directory, and drained.
    pub(super) fn make(
        vm_dir: &VmDir,
        spec: &VmSpec,
        state: &mut State,
        progress: &Progress,
    ) -> Result<Self, BootError> {
        let asked = [
            ("LogFifoPath", spec.log_fifo.as_deref()),
            ("MetricsFifoPath", spec.metrics_fifo.as_deref()),
        ];
        let asked: Vec<_> = asked
            .into_iter()
            .filter_map(|(field, path)| Some((field, path?)))
            .collect();
        let new = asked.iter().filter(|(_, path)| !path.exists());
        state.files.extend(new.map(|(_, path)| path.to_path_buf()));
        if !state.files.is_empty() {
            state.store(vm_dir)?;
        }
        for (field, path) in asked {
            make(field, path)?;
        }
        let mut drains = Vec::new();
        let mut log_tail = None;
        let log = fifo(vm_dir, spec.log_fifo.as_deref(), LOG_FIFO, |path| {
            let drain = FifoDrain::log_to(path, progress.vmm_log())?;
            log_tail = Some(drain.shared_tail());
            drains.push(drain);
            Ok(())
        })?;
        let metrics = fifo(vm_dir, spec.metrics_fifo.as_deref(), METRICS_FIFO, |path| {
            drains.push(FifoDrain::metrics(path)?);
            Ok(())
        })?;
        Ok(Self {
            log,
            metrics,
            log_tail,
            _drains: drains,
        })
    }
}

/// The caller's FIFO, or ours, which is made.
fn fifo(
    vm_dir: &VmDir,
    asked: Option<&Path>,
    own: &str,
    make: impl FnOnce(&Path) -> Result<(), FifoError>,
) -> Result<PathBuf, BootError> {
    if let Some(path) = asked {
        return Ok(path.to_owned());
    }
    let path = vm_dir.join(own);
    make(&path)?;
    Ok(path)
}

/// A FIFO at a path of the caller's choice; one that is there already is used.
fn make(field: &'static str, path: &Path) -> Result<(), BootError> {
    let error = |source| BootError::AskedFifo {
        field,
        path: path.to_owned(),
        source,
    };
    match mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0) {
        Err(rustix::io::Errno::EXIST) => {
            let there = std::fs::metadata(path).map_err(error)?;
            if there.file_type().is_fifo() {
                Ok(())
            } else {
                Err(error(std::io::ErrorKind::AlreadyExists.into()))
            }
        }
        other => other.map_err(|e| error(e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fc_config::Config;
    use fc_proto::control::CreateVMRequest;
    use std::os::unix::fs::PermissionsExt;

    fn made(base: &Path, log: &Path) -> (VmDir, Result<Fifos, BootError>) {
        let request = CreateVMRequest {
            LogFifoPath: log.display().to_string(),
            ..CreateVMRequest::default()
        };
        let spec = VmSpec::new(&Config::default(), &request, true).unwrap();
        let dir = VmDir::new(base, "ns", "vm").unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        let fifos = Fifos::make(&dir, &spec, &mut State::new(&dir), &Progress::default());
        (dir, fifos)
    }

    #[tokio::test]
    async fn a_caller_s_fifo_is_made_and_goes_with_the_vm() {
        let base = tempfile::tempdir().unwrap();
        let log = base.path().join("log");
        let (dir, fifos) = made(base.path(), &log);
        let fifos = fifos.unwrap();
        assert_eq!(
            (&fifos.log, &fifos.metrics),
            (&log, &dir.join(METRICS_FIFO))
        );
        let mode = std::fs::metadata(&log).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(crate::state::undo(&dir).is_empty());
        assert!(!log.exists());
    }

    #[tokio::test]
    async fn what_is_there_already_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let log = base.path().join("log");
        mknodat(CWD, &log, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let (dir, fifos) = made(base.path(), &log);
        fifos.unwrap();
        assert!(crate::state::undo(&dir).is_empty());
        assert!(log.exists(), "the caller made it");

        std::fs::remove_file(&log).unwrap();
        std::fs::write(&log, "a file").unwrap();
        let (dir, fifos) = made(base.path(), &log);
        let text = fifos.err().unwrap().to_string();
        assert!(text.starts_with("LogFifoPath"), "{text}");
        assert!(crate::state::undo(&dir).is_empty());
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "a file");
    }
}
