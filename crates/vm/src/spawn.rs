//! The shim's process: its descriptors, environment, log and OOM score.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fc_proto::control::CreateVMRequest;
use fc_proto::protobuf::Message;
use rustix::fs::{CWD, FileType, MemfdFlags, Mode, mknodat};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::dir::{SHIM_LOG, VmDir};
use crate::launch::{
    CONTROL_FD, CONTROL_FD_ENV, LOCK_FD, LOCK_FD_ENV, Launch, ShimLog, TASK_FD, VM_ID_ENV,
};
use crate::lock::{ShimLock, write_holder};

/// Highest OOM score adjustment.
const OOM_SCORE_MAX: i32 = 1000;

/// Starts the shim. It has written its process id into the lock file before anybody else sees it:
/// until its program runs, the new process holds the caller's start lock too. Answers the reading end of
/// a [`ShimLog::Fifo`] as well, open from before the shim's first word.
pub(crate) fn spawn(
    launch: &Launch,
    dir: &VmDir,
    [task, control]: &[UnixListener; 2],
    lock: &ShimLock,
) -> io::Result<(Child, Option<File>)> {
    // Numbers above the targets, so that placing one does not close another, and the
    // targets are taken, so that nothing the standard library opens for itself gets them.
    let _reserved = reserve_targets()?;
    let fds = [
        (above_targets(task)?, TASK_FD),
        (above_targets(control)?, CONTROL_FD),
        (above_targets(lock.file())?, LOCK_FD),
    ];
    let lock = lock.file().try_clone()?;
    let mut command = command(launch, dir)?;
    let log = match launch.log {
        ShimLog::Fifo => Some(reading_end(&dir.join(SHIM_LOG))?),
        ShimLog::Discard | ShimLog::File(_) | ShimLog::Fd(_) => None,
    };
    let place = move || {
        rustix::process::setsid()?;
        write_holder(
            &lock,
            rustix::process::getpid()
                .as_raw_nonzero()
                .get()
                .cast_unsigned(),
        )?;
        for (from, to) in &fds {
            // SAFETY: `to` is one of the reserved numbers, which nobody else owns in the child.
            if unsafe { libc::dup2(from.as_raw_fd(), *to) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: only async-signal-safe system calls, and nothing is allocated.
    unsafe { command.pre_exec(place) };
    let child = command.spawn()?;
    adjust_oom_score(child.id(), &launch.containerd_address);
    Ok((child, log))
}

fn command(launch: &Launch, dir: &VmDir) -> io::Result<Command> {
    let mut command = Command::new(&launch.program);
    command
        .args(["-namespace", &launch.namespace])
        .args(["-address", &launch.containerd_address])
        .args(launch.debug.then_some("-debug"))
        .env("TTRPC_ADDRESS", &launch.ttrpc_address)
        .env(VM_ID_ENV, &launch.vm_id)
        .env(CONTROL_FD_ENV, CONTROL_FD.to_string())
        .env(LOCK_FD_ENV, LOCK_FD.to_string())
        .current_dir(dir.path())
        .stdout(Stdio::null());
    if let Some(config) = &launch.config {
        command.env(fc_config::PATH_ENV, config);
    }
    command.stdin(match &launch.request {
        None => Stdio::null(),
        Some(request) => Stdio::from(request_file(request)?),
    });
    command.stderr(match &launch.log {
        ShimLog::Discard => Stdio::null(),
        ShimLog::File(path) => Stdio::from(open_log(path)?),
        ShimLog::Fifo => {
            let path = dir.join(SHIM_LOG);
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            Stdio::from(open_log(&path)?)
        }
        ShimLog::Fd(fd) => Stdio::from(fd.try_clone()?),
    });
    Ok(command)
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

fn reading_end(fifo: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(fifo)
}

/// The request as a file of its own, at its start.
fn request_file(request: &CreateVMRequest) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(
        "create-vm-request",
        MemfdFlags::CLOEXEC,
    )?);
    file.write_all(&request.write_to_bytes().map_err(io::Error::other)?)?;
    io::Seek::rewind(&mut file)?;
    Ok(file)
}

fn above_targets(fd: &impl AsFd) -> io::Result<OwnedFd> {
    Ok(fcntl_dupfd_cloexec(fd, LOCK_FD + 1)?)
}

fn reserve_targets() -> io::Result<Vec<File>> {
    let mut reserved = Vec::new();
    loop {
        let file = File::open("/dev/null")?;
        let done = file.as_raw_fd() > LOCK_FD;
        reserved.push(file);
        if done {
            return Ok(reserved);
        }
    }
}

/// One above containerd's own score, so that containerd is not killed first. Without effect where
/// containerd is not to be found or that is not permitted: the shim then keeps what it inherited.
fn adjust_oom_score(pid: u32, containerd_address: &str) {
    let score = listener(containerd_address)
        .and_then(|containerd| {
            std::fs::read_to_string(format!("/proc/{containerd}/oom_score_adj")).ok()
        })
        .and_then(|score| score.trim().parse::<i32>().ok());
    if let Some(score) = score {
        let _ = std::fs::write(
            format!("/proc/{pid}/oom_score_adj"),
            (score + 1).min(OOM_SCORE_MAX).to_string(),
        );
    }
}

/// The process that listens on a socket; asked without ever waiting for it.
fn listener(path: &str) -> Option<i32> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .ok()?;
    connect(&socket, &SocketAddrUnix::new(path).ok()?).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&socket).ok()?;
    Some(peer.pid.as_raw_nonzero().get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let address = path.to_str().unwrap();
        assert_eq!(listener(address), None);
        let _listening = UnixListener::bind(&path).unwrap();
        assert_eq!(listener(address), i32::try_from(std::process::id()).ok());
    }
}
