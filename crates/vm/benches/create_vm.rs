//! What CreateVM's time goes into: our own part, the OCI runtime, the VMM, the guest.
//!
//! `cargo bench -p fc-vm --bench create_vm -- [--count N] [--jail]` starts VMs one after the other, each through a shim as a
//! daemon does, and prints medians. The shim (`FC_BIN_DIR`), the VMM (`FIRECRACKER_BIN`, or firecracker-tcg in
//! `FC_BIN_DIR`) and the guest (`FC_GUEST_DIR`) are those of the environment; needs root.

use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fc_proto::control::{
    CreateVMRequest, DriveExposePolicy, FirecrackerClient, FirecrackerMachineConfiguration,
    GetVMInfoRequest, JailerConfig, StopVMRequest,
};
use fc_proto::protobuf::MessageField;
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::ttrpc::asynchronous::Client;
use fc_proto::ttrpc::asynchronous::transport::Socket;
use fc_proto::ttrpc::context::with_duration;
use fc_proto::vm::VmClient;
use fc_vm::launch::{Launch, ShimLog, launch};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Bound on every call.
const BOUND: Duration = Duration::from_secs(120);

/// What is started and where.
struct Setup {
    shim: PathBuf,
    config: PathBuf,
    base: tempfile::TempDir,
    jail: bool,
}

/// One CreateVM: the time of each part, and whom it waited for.
type Parts = BTreeMap<(String, String), Duration>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut count = 20;
    let mut jail = false;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--count" => count = args.next().ok_or("--count needs a number")?.parse()?,
            "--jail" => jail = true,
            // From cargo.
            "--bench" => {}
            other => return Err(format!("Unknown argument {other}").into()),
        }
    }
    let setup = match Setup::find(jail)? {
        Ok(setup) => setup,
        Err(missing) => {
            println!("SKIPPED: {missing}");
            return Ok(());
        }
    };
    let mut runs = Vec::new();
    for number in 0..count {
        runs.push(setup.create_vm(number).await?);
    }
    print(&runs);
    Ok(())
}

impl Setup {
    /// What the environment has; inside, what is missing.
    fn find(jail: bool) -> Result<std::result::Result<Self, &'static str>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Err("needs root"));
        }
        let var = |name| std::env::var_os(name).map(PathBuf::from);
        let Some(programs) = var("FC_BIN_DIR") else {
            return Ok(Err("FC_BIN_DIR is not set"));
        };
        let Some(guest) = var("FC_GUEST_DIR") else {
            return Ok(Err("FC_GUEST_DIR is not set"));
        };
        let vmm = var("FIRECRACKER_BIN").unwrap_or_else(|| programs.join("firecracker-tcg"));
        let base = tempfile::tempdir()?;
        let linked = base.path().join("vmm");
        symlink(&vmm, &linked)?;
        let needs = Command::new(&vmm).arg("--print-jail-paths").output()?;
        if needs.status.success() {
            std::fs::write(base.path().join("vmm.jail.json"), needs.stdout)?;
        }
        let template = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../docs/firecracker-runc-config.json")
            .canonicalize()?;
        let config = serde_json::json!({
            "firecracker_binary_path": linked,
            "kernel_image_path": guest.join("default-vmlinux.bin"),
            "initrd_path": guest.join("default-initrd.img"),
            "root_drive": guest.join("default-rootfs.img"),
            "shim_base_dir": base.path().join("vms"),
            "image_cache_dir": base.path().join("cache"),
            "jailer": {"runc_binary_path": "runc", "runc_config_path": template},
        });
        let path = base.path().join("config.json");
        std::fs::write(&path, config.to_string())?;
        Ok(Ok(Self {
            shim: programs.join("containerd-shim-aws-firecracker"),
            config: path,
            base,
            jail,
        }))
    }

    /// Starts a VM, waits until CreateVM would answer, and stops it.
    async fn create_vm(&self, number: usize) -> Result<Parts> {
        let vm_id = format!("bench-{}-{number}", std::process::id());
        let containerd = self.base.path().join("c.sock").display().to_string();
        let to_launch = Launch {
            base: self.base.path().join("vms"),
            namespace: "bench".into(),
            vm_id: vm_id.clone(),
            ttrpc_address: format!("{containerd}.ttrpc"),
            containerd_address: containerd,
            program: self.shim.clone(),
            config: Some(self.config.clone()),
            log: ShimLog::Discard,
            debug: false,
            request: Some(self.request(&vm_id)),
        };
        let begin = Instant::now();
        let mut launched = launch(&to_launch)?;
        let launching = begin.elapsed();
        let stream = fc_vsock::unix::connect(&launched.control_socket).await?;
        let client = Client::new(Socket::new(stream));
        let control = FirecrackerClient::new(client.clone());
        let info = GetVMInfoRequest {
            VMID: vm_id.clone(),
            ..GetVMInfoRequest::default()
        };
        control.get_vm_info(with_duration(BOUND), &info).await?;
        let total = begin.elapsed();

        let vm = VmClient::new(client);
        let status = vm.status(with_duration(BOUND), &Empty::default()).await?;
        let mut parts = Parts::from([(("launch".to_owned(), String::new()), launching)]);
        for span in status.spans {
            let part = parts.entry((span.name, span.waits_for)).or_default();
            *part += Duration::from_nanos(span.duration_ns);
        }
        let named = parts.values().sum();
        // The shim's exec and whatever no span covers.
        let rest = total.saturating_sub(named);
        parts.insert(("not in a span".to_owned(), "?".to_owned()), rest);
        parts.insert(("all of it".to_owned(), "total".to_owned()), total);

        let stop = StopVMRequest {
            VMID: vm_id,
            ..StopVMRequest::default()
        };
        control.stop_vm(with_duration(BOUND), &stop).await?;
        launched.shim.ended().await?;
        if let Some(child) = &mut launched.child {
            child.wait()?;
        }
        Ok(parts)
    }

    fn request(&self, vm_id: &str) -> CreateVMRequest {
        let jail = JailerConfig {
            UID: 300_001,
            GID: 300_001,
            DriveExposePolicy: DriveExposePolicy::BIND.into(),
            ..JailerConfig::default()
        };
        CreateVMRequest {
            VMID: vm_id.to_owned(),
            MachineCfg: MessageField::some(FirecrackerMachineConfiguration {
                VcpuCount: 1,
                MemSizeMib: 128,
                ..FirecrackerMachineConfiguration::default()
            }),
            JailerConfig: self.jail.then_some(jail).into(),
            TimeoutSeconds: 60,
            ..CreateVMRequest::default()
        }
    }
}

/// Prints the median of each part, and of our own parts together.
fn print(runs: &[Parts]) {
    let median = |of: &dyn Fn(&Parts) -> Duration| {
        let mut times: Vec<Duration> = runs.iter().map(of).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    };
    let names: std::collections::BTreeSet<_> = runs.iter().flat_map(BTreeMap::keys).collect();
    println!("median of {} VMs, one at a time", runs.len());
    for key in names {
        let (name, waits_for) = key;
        let whom = if waits_for.is_empty() {
            "own"
        } else {
            waits_for
        };
        let time = median(&|parts| parts.get(key).copied().unwrap_or_default());
        println!("{whom:12} {name:28} {:10.3} ms", time.as_secs_f64() * 1e3);
    }
    let own = median(&|parts| {
        let own = parts
            .iter()
            .filter(|((_, waits_for), _)| waits_for.is_empty());
        own.map(|(_, time)| *time).sum()
    });
    println!("our own part: {:.3} ms", own.as_secs_f64() * 1e3);
}
