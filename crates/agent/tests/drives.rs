//! The agent's drives: a loop device plays the stub drive, whose file the "host" replaces.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fc_proto::guest::{DriveMounterClient, MountDriveRequest, UnmountDriveRequest};
use fc_proto::ttrpc::Code;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use support::{Agent, code, context, skipped};

/// A loop device over a file, until dropped.
struct Loop {
    device: String,
    file: PathBuf,
}

impl Loop {
    fn attach(file: PathBuf) -> Self {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&file)
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        Self { device, file }
    }

    /// Other content, and the news for the kernel: as when the host replaces a drive's file.
    fn replace(&self, content: &Path) {
        fs::copy(content, &self.file).unwrap();
        run(Command::new("losetup").args(["--set-capacity", &self.device]));
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .args(["--detach", &self.device])
            .status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn tools_missing() -> bool {
    if !fc_test_host::has_programs(&[("mkfs.ext4", "e2fsprogs"), ("losetup", "mount")]) {
        return true;
    }
    if !Path::new("/dev/loop-control").exists() {
        println!("SKIPPED: no loop devices");
        return true;
    }
    false
}

#[tokio::test]
async fn a_drive_is_mounted_when_its_file_has_come_and_really_unmounted() {
    if skipped() || tools_missing() {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let name = format!("test{}", std::process::id());
    let id = fc_stub_drive::create(files.path(), &name).unwrap();
    let stub = Loop::attach(files.path().join(&name));
    let agent = Agent::start().await;
    let drives = DriveMounterClient::new(agent.client.clone());
    let container = agent.dir.path().join("container/c1");

    let mut mount = MountDriveRequest::new();
    mount.DriveID = "NONE".to_owned();
    mount.DestinationPath = container.join("rootfs").display().to_string();
    mount.FilesytemType = "ext4".to_owned();
    mount.Options = vec!["rw".to_owned(), "loop".to_owned()];
    let unknown = drives.mount_drive(context(), &mount).await;
    assert_eq!(code(&unknown), Code::NOT_FOUND);
    mount.DriveID.clone_from(&id);
    let mut system = mount.clone();
    system.DestinationPath = "/proc/x".to_owned();
    let refused = drives.mount_drive(context(), &system).await;
    assert_eq!(code(&refused), Code::INVALID_ARGUMENT);

    // The request first, the file later: only the device's event tells.
    let rootfs = agent.bundle("c1").join("rootfs");
    let image = files.path().join("image");
    let file = fs::File::create(&image).unwrap();
    file.set_len(16 << 20).unwrap();
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-d"])
        .arg(&rootfs)
        .arg(&image));
    fs::remove_dir_all(&container).unwrap();
    // The agent makes the mount point before it waits for the file.
    let made = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
    made.add_watch(container.parent().unwrap(), AddWatchFlags::IN_CREATE)
        .unwrap();
    let mounting = drives.mount_drive(context(), &mount);
    let replacing = tokio::task::spawn_blocking(move || {
        made.read_events().unwrap();
        stub.replace(&image);
        stub
    });
    let (mounted, stub) = tokio::join!(mounting, replacing);
    mounted.unwrap();
    let stub = stub.unwrap();

    let ports = agent.ports();
    let mut request = agent.request("c1", "echo kept > /file; cat /file", false, ports.base);
    // The helper above has put files where the drive is mounted in the agent's view.
    request.rootfs.clear();
    let (created, streams) =
        tokio::join!(agent.task.create(context(), &request), ports.accept(false));
    created.unwrap();
    agent.start_task("c1", "").await;
    assert_eq!(streams.finish().await.0, "kept\n");
    assert_eq!(agent.wait("c1", "").await, 0);
    agent.delete("c1", "").await.unwrap();

    let mut unmount = UnmountDriveRequest::new();
    unmount.DriveID = id;
    drives.unmount_drive(context(), &unmount).await.unwrap();
    // It is on the disk, not in some cache.
    let output = Command::new("debugfs")
        .args(["-R", "cat /file"])
        .arg(&stub.file)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "kept\n");
    // Nothing mounted: fine.
    drives.unmount_drive(context(), &unmount).await.unwrap();
    agent.shut_down().await;
}

#[tokio::test]
async fn a_drive_that_somebody_uses_is_not_let_go_of() {
    if skipped() || tools_missing() {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let name = format!("busy{}", std::process::id());
    let id = fc_stub_drive::create(files.path(), &name).unwrap();
    let stub = Loop::attach(files.path().join(&name));
    let agent = Agent::start().await;
    let drives = DriveMounterClient::new(agent.client.clone());
    let rootfs = agent.bundle("c1").join("rootfs");
    let image = files.path().join("image");
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-d"])
        .arg(&rootfs)
        .arg(&image));
    stub.replace(&image);
    // The helper below makes it again, on this side of the agent's mount.
    fs::remove_dir_all(rootfs.parent().unwrap()).unwrap();
    let mut mount = MountDriveRequest::new();
    mount.DriveID.clone_from(&id);
    mount.DestinationPath = rootfs.display().to_string();
    mount.FilesytemType = "ext4".to_owned();
    drives.mount_drive(context(), &mount).await.unwrap();
    let streams = agent.create("c1", "exec sleep 1000", false).await;
    agent.start_task("c1", "").await;

    let mut unmount = UnmountDriveRequest::new();
    unmount.DriveID = id;
    let busy = drives.unmount_drive(context(), &unmount).await;
    assert_eq!(code(&busy), Code::FAILED_PRECONDITION);
    let text = busy.unwrap_err().to_string();
    assert!(text.contains("still in use by process"), "{text}");
    assert!(text.contains("/c1"), "names the container: {text}");

    // Once the container is gone, asking again succeeds.
    agent.kill("c1", "", 9, true).await.unwrap();
    agent.wait("c1", "").await;
    agent.delete("c1", "").await.unwrap();
    drives.unmount_drive(context(), &unmount).await.unwrap();
    drop(streams);
    agent.shut_down().await;
}
