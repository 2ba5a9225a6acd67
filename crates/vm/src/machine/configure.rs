//! The API calls that turn a fresh VMM into the VM of a spec.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use fc_client::api::{BootSource, Drive, Logger, MachineConfig, Metrics, Vsock};
use fc_client::{Client, FifoDrain};
use fc_config::Config;
use fc_drives::StubDrives;
use rustix::fs::Mode;

use super::error::BootError;
use super::spec::VmSpec;
use super::{Fifos, VmDir, dir};

/// Id of the root drive (the original's).
const ROOT_DRIVE: &str = "root_drive";
/// vsock address of the guest; without meaning outside of it.
const GUEST_CID: u32 = 3;

/// Makes the FIFOs for the VMM's log and metrics. Those that a caller asked for are left to
/// the caller to read; ours are drained.
pub(super) fn make_fifos(vm_dir: &VmDir, spec: &VmSpec) -> Result<Fifos, BootError> {
    let log = spec.log_fifo.clone();
    let metrics = spec.metrics_fifo.clone();
    let mut drains = Vec::new();
    for path in [&log, &metrics].into_iter().flatten() {
        make_fifo(path)?;
    }
    let log = match log {
        Some(path) => path,
        None => own(vm_dir, dir::LOG_FIFO, &mut drains, FifoDrain::log)?,
    };
    let metrics = match metrics {
        Some(path) => path,
        None => own(vm_dir, dir::METRICS_FIFO, &mut drains, FifoDrain::metrics)?,
    };
    Ok(Fifos {
        log,
        metrics,
        _drains: drains,
    })
}

fn own(
    vm_dir: &VmDir,
    name: &str,
    drains: &mut Vec<FifoDrain>,
    drain: impl Fn(&Path) -> Result<FifoDrain, fc_client::FifoError>,
) -> Result<PathBuf, BootError> {
    let path = vm_dir.join(name);
    drains.push(drain(&path)?);
    Ok(path)
}

/// A FIFO at a path of the caller's choice; one that is there already is used.
fn make_fifo(path: &Path) -> Result<(), BootError> {
    let error = |source| BootError::File {
        path: path.to_owned(),
        source,
    };
    match rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o700),
        0,
    ) {
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

/// Configures the VM, in the original's order: logger, metrics, machine, boot source, drives, vsock.
pub(super) async fn configure(
    api: &Client,
    config: &Config,
    spec: &VmSpec,
    fifos: &Fifos,
    stubs: &StubDrives,
) -> Result<(), BootError> {
    let level = config.log_levels.firecracker();
    api.put_logger(&Logger {
        log_path: Some(text(relative(&fifos.log, dir::LOG_FIFO))),
        level: level.map(|l| l.as_firecracker().to_owned()),
        show_level: Some(true),
        show_log_origin: Some(false),
    })
    .await?;
    api.put_metrics(&Metrics {
        metrics_path: text(relative(&fifos.metrics, dir::METRICS_FIFO)),
    })
    .await?;
    api.put_machine_config(&MachineConfig {
        smt: Some(spec.smt),
        cpu_template: spec.cpu_template.clone(),
        ..MachineConfig::new(spec.vcpus, spec.memory_mib)
    })
    .await?;
    api.put_boot_source(&BootSource {
        kernel_image_path: text(&spec.kernel),
        initrd_path: spec.initrd.as_deref().map(text),
        boot_args: Some(spec.kernel_args.clone()),
    })
    .await?;
    api.put_drive(&Drive {
        is_root_device: true,
        partuuid: spec.root.partuuid.clone(),
        cache_type: spec.root.cache_type.clone(),
        rate_limiter: spec.root.rate_limiter.clone(),
        ..Drive::new(ROOT_DRIVE, text(&spec.root.path), !spec.root.writable)
    })
    .await?;
    for slot in stubs.boot_drives() {
        api.put_drive(&Drive::new(&slot.drive_id, &slot.file_name, slot.read_only))
            .await?;
    }
    api.put_vsock(&Vsock {
        guest_cid: GUEST_CID,
        uds_path: dir::VSOCK.to_owned(),
    })
    .await?;
    Ok(())
}

/// The VMM's working directory is the VM's: what lies in it is named relatively, always alike.
fn relative<'a>(path: &'a Path, name: &'a str) -> &'a Path {
    if path.ends_with(name) {
        Path::new(name)
    } else {
        path
    }
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().display().to_string()
}
