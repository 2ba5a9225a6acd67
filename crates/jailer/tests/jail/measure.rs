//! Measures what a jail costs: time beyond the OCI runtime's own, and room on the disk. For the tests and the benchmark.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fc_jailer::{ExposePolicy, Jailer, Role, Runc, Start, Unjailed};

use crate::host::{Host, Runtime, open};
use crate::stand_in::ORDERS;

/// As large as the default guest's kernel and root image.
const KERNEL: usize = 53 << 20;
const ROOT_IMAGE: usize = 21 << 20;

/// Before each measurement: the first move of a process into a cgroup waits for the kernel's readers (an RCU grace
/// period of tens of milliseconds); one that follows soon does not, and would be no measure for the one before.
const REST: Duration = Duration::from_millis(100);

/// How long the steps of one VM took.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Making the jail and showing it a kernel and a root image, until the OCI runtime is called.
    pub prepare: Duration,
    /// From the runtime's call until the VMM's API has answered and its root image is complete.
    pub start: Duration,
    /// A container with the same configuration, made by the runtime's command line without us.
    pub runtime_alone: Duration,
    /// The start of the same VMM without a jail, until its API has answered.
    pub unjailed: Duration,
    /// Removing the jail.
    pub close: Duration,
}

impl Times {
    /// The median of one of them.
    pub fn median(times: &[Self], of: fn(&Self) -> Duration) -> Duration {
        let mut values: Vec<_> = times.iter().map(of).collect();
        values.sort();
        values[values.len() / 2]
    }

    /// What the jail adds to the start of a VM beyond the runtime's own time.
    pub fn added(&self) -> Duration {
        let total = self.prepare + self.start;
        total.saturating_sub(self.runtime_alone + self.unjailed)
    }
}

/// Starts `rounds` jailed VMMs, one after the other.
pub async fn measure(runtime: &Runtime, policy: ExposePolicy, rounds: usize) -> Vec<Times> {
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, length| {
        let path = files.path().join(name);
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(&vec![1; length]).unwrap();
        // Not to be written to the disk while something else is measured.
        file.sync_all().unwrap();
        path
    };
    let (kernel, image) = (file("kernel", KERNEL), file("image", ROOT_IMAGE));
    let mut times = Vec::new();
    for _ in 0..rounds {
        times.push(one(runtime, policy, &kernel, &image).await);
    }
    times
}

async fn one(runtime: &Runtime, policy: ExposePolicy, kernel: &Path, image: &Path) -> Times {
    let mut host = Host::new(runtime);
    host.request.policy = policy;
    std::thread::sleep(REST);
    let begin = Instant::now();
    let jail = host.prepare().await;
    jail.show(Role::Kernel, kernel).await.unwrap();
    let root = jail.drive_file(open(image), true).unwrap();
    jail.show_root(root.file(), true).unwrap();
    let prepare = begin.elapsed();
    let begin = Instant::now();
    let vmm = jail.start(Start::default()).await.unwrap();
    root.complete().await.unwrap();
    let start = begin.elapsed();
    vmm.kill();
    vmm.exited().await;
    let runtime_alone = runtime_alone(&host, &jail);
    let begin = Instant::now();
    assert!(jail.close().await.is_empty());
    let close = begin.elapsed();
    host.assert_clean();
    Times {
        prepare,
        start,
        runtime_alone,
        unjailed: unjailed(&host).await,
        close,
    }
}

/// The container's configuration with a cgroup of its own, which the runtime has to make, too.
fn runtime_alone(host: &Host, jail: &Runc) -> Duration {
    for name in [jail.api_socket(), ORDERS] {
        fs::remove_file(jail.root().join(name)).expect("the stand-in made it");
    }
    let bundle = host.base.path().join("alone");
    fs::create_dir(&bundle).unwrap();
    let text = fs::read(host.dir.join("config.json")).unwrap();
    let mut configuration: serde_json::Value = serde_json::from_slice(&text).unwrap();
    configuration["root"]["path"] = jail.root().to_str().unwrap().into();
    let cgroup = format!("{}-alone", jail.cgroup_path().expect("a jail has one"));
    configuration["linux"]["cgroupsPath"] = cgroup.into();
    fs::write(bundle.join("config.json"), configuration.to_string()).unwrap();
    let call = |arguments: &[&str]| {
        let mut command = Command::new(&host.runc);
        command.arg("--root").arg(bundle.join("state"));
        let status = command.args(arguments).stdout(Stdio::null()).status();
        assert!(status.expect("it runs").success());
    };
    std::thread::sleep(REST);
    let begin = Instant::now();
    let directory = bundle.to_str().expect("text");
    call(&["run", "--detach", "--bundle", directory, "alone"]);
    let took = begin.elapsed();
    call(&["delete", "--force", "alone"]);
    took
}

async fn unjailed(host: &Host) -> Duration {
    let begin = Instant::now();
    let jailer = Unjailed::new(&host.dir, &host.vmm, &host.vm_id);
    let vmm = jailer.start(Start::default()).await.unwrap();
    let took = begin.elapsed();
    vmm.kill();
    vmm.exited().await;
    took
}

/// A root image for [`disk_use`]: its length, and how much of it is data.
pub const IMAGE_LENGTH: u64 = 1 << 30;
pub const IMAGE_DATA: u64 = 10 << 20;

/// How many bytes of the disk a VM's directory takes when its root drive has [`IMAGE_LENGTH`].
pub async fn disk_use(runtime: &Runtime, policy: ExposePolicy) -> u64 {
    let mut host = Host::new(runtime);
    host.request.policy = policy;
    let image = host.base.path().join("image");
    let mut file = fs::File::create(&image).unwrap();
    let data = usize::try_from(IMAGE_DATA).unwrap();
    file.write_all(&vec![1; data]).unwrap();
    file.set_len(IMAGE_LENGTH).unwrap();
    file.sync_all().unwrap();
    let jail = host.prepare().await;
    let root = jail.drive_file(open(&image), false).unwrap();
    let name = jail.show_root(root.file(), false).unwrap();
    // Kept: a copy goes with its last user.
    let root = root.complete().await.unwrap();
    let shown = jail.root().join(name).metadata().unwrap();
    assert_eq!(shown.len(), IMAGE_LENGTH);
    let used = allocated(&host.dir, host.dir.metadata().unwrap().dev());
    drop(root);
    assert!(jail.close().await.is_empty());
    host.assert_clean();
    used
}

/// Bytes that the files below `directory` take on the file system `device`; what is mounted there is not on it, or
/// is no file of the directory.
fn allocated(directory: &Path, device: u64) -> u64 {
    let mounted = mounts();
    let mut bytes = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        if metadata.dev() != device || mounted.contains(&path) {
            continue;
        }
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            bytes += allocated(&path, device);
        }
    }
    bytes
}

fn mounts() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    points.map(PathBuf::from).collect()
}
