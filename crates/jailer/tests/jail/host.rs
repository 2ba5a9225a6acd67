//! A host for jails: runtimes, VM directories, and what jails leave on it.

use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use fc_client::Vmm;
use fc_host_file::{Access, HostFile};
use fc_jailer::{CpusetList, ExposePolicy, JailRequest, Jailer, Runc, Setup, Start, User};

use fc_test_host::write_program;

use crate::stand_in::Orders;

/// The template that is shipped.
pub const TEMPLATE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/firecracker-runc-config.json"
);

/// Who jailed VMMs run as.
pub const UID: u32 = 61_234;
pub const GID: u32 = 61_235;

/// crun 1.8 refuses a host that has cgroup v1 and v2 controllers: it is shown the v1 ones only.
const CRUN_ON_HYBRID: &str = r#"#!/bin/sh
exec unshare --mount --propagation slave sh -c 'umount /sys/fs/cgroup/unified; exec crun "$@"' crun "$@"
"#;

/// An OCI runtime of this machine.
#[derive(Clone)]
pub struct Runtime {
    name: &'static str,
    program: Option<PathBuf>,
}

impl Runtime {
    /// The machine's runc and crun, and a newer runc where `FC_RUNC_NEWER` names one.
    pub fn all() -> [Self; 3] {
        let of = |name: &'static str| Self {
            name,
            program: Some(name.into()),
        };
        let newer = Self {
            name: "runc-newer",
            program: std::env::var_os("FC_RUNC_NEWER").map(PathBuf::from),
        };
        [of("runc"), of("crun"), newer]
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Why tests with it cannot run here.
    pub fn missing(&self) -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("needs root".into());
        }
        let Some(program) = &self.program else {
            return Some("FC_RUNC_NEWER does not name a newer runc".into());
        };
        let version = Command::new(program).arg("--version").output();
        version
            .is_err()
            .then(|| format!("{} is not installed", program.display()))
    }

    /// The program, or its name on `PATH`; only of a runtime that is not missing.
    pub fn file(&self) -> &Path {
        self.program.as_deref().expect("it is not missing")
    }

    /// The program to call; `directory` is for a wrapper where one is needed.
    pub fn program(&self, directory: &Path) -> PathBuf {
        let hybrid = Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists();
        if self.name != "crun" || !hybrid {
            return self.file().to_owned();
        }
        let wrapper = directory.join("crun");
        write_program(&wrapper, CRUN_ON_HYBRID);
        wrapper
    }
}

/// Another name for a program, which needs no space; a copy where that cannot be.
pub fn link(program: &Path, name: &Path) {
    if fs::hard_link(program, name).is_err() {
        fs::copy(program, name).unwrap();
    }
}

/// A directory with a VM's directory in it, which is checked for leftovers in the end.
pub struct Host {
    pub base: Base,
    pub dir: PathBuf,
    pub vm_id: String,
    pub runc: PathBuf,
    pub vmm: PathBuf,
    pub template: PathBuf,
    pub request: JailRequest,
}

/// The directory around it.
pub enum Base {
    Own(tempfile::TempDir),
    Other(PathBuf),
}

impl Base {
    pub fn path(&self) -> &Path {
        match self {
            Self::Own(directory) => directory.path(),
            Self::Other(path) => path,
        }
    }
}

impl Host {
    pub fn new(runtime: &Runtime) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let base = tempfile::tempdir().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let vm_id = format!("jail-test-{}-{number}", std::process::id());
        let dir = base.path().join(format!("ns#{vm_id}"));
        fs::create_dir(&dir).unwrap();
        let vmm = base.path().join("vmm");
        link(&std::env::current_exe().unwrap(), &vmm);
        // Programs are linked statically here; this file is to be seen in the jail.
        let needs = r#"{"read_only_paths": ["/etc/os-release"], "environment": {"NEEDED": "yes"}}"#;
        fs::write(base.path().join("vmm.jail.json"), needs).unwrap();
        let mut host = Self::of(&dir, &runtime.program(base.path()), &vmm);
        host.base = Base::Own(base);
        host
    }

    /// Another process' host.
    pub fn of(dir: &Path, runc: &Path, vmm: &Path) -> Self {
        let name = dir.file_name().unwrap().to_str().unwrap();
        Self {
            base: Base::Other(dir.parent().unwrap().to_owned()),
            dir: dir.to_owned(),
            vm_id: name.trim_start_matches("ns#").to_owned(),
            runc: runc.to_owned(),
            vmm: vmm.to_owned(),
            template: TEMPLATE.into(),
            request: JailRequest {
                user: User::new(UID, GID).unwrap(),
                net_ns: None,
                cpus: CpusetList::default(),
                mems: CpusetList::default(),
                cgroup_path: String::new(),
                policy: ExposePolicy::Bind,
            },
        }
    }

    pub fn setup(&self) -> Setup<'_> {
        Setup {
            dir: &self.dir,
            namespace: "ns",
            vm_id: &self.vm_id,
            vmm: &self.vmm,
            vmm_id: &self.vm_id,
            runc: &self.runc,
            template: &self.template,
            request: self.request.clone(),
        }
    }

    pub async fn prepare(&self) -> Runc {
        Runc::prepare(self.setup()).await.unwrap()
    }

    /// A jail whose VMM is the stand-in.
    pub async fn start(&self) -> (Runc, Vmm, Orders) {
        let jail = self.prepare().await;
        let vmm = jail.start(Start::default()).await.unwrap();
        let orders = Orders::connect(jail.root());
        (jail, vmm, orders)
    }

    /// Fails unless nothing of any jail in this directory is left on the host.
    pub fn assert_clean(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let base = self.base.path().to_str().unwrap();
        assert!(!mounts.contains(base), "mounts stay:\n{mounts}");
        let groups = Command::new("find")
            .args(["/sys/fs/cgroup", "-name", &format!("{}*", self.vm_id)])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&groups.stdout), "", "cgroups stay");
        let left: Vec<_> = fs::read_dir(&self.dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(left.is_empty(), "{left:?} stay");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What a failed test left.
        for error in fc_jailer::undo(&self.dir) {
            eprintln!("{error}");
        }
    }
}

/// Runs a test; a panic is its failure.
pub fn in_this_thread(test: impl FnOnce()) -> Result<(), String> {
    std::panic::catch_unwind(AssertUnwindSafe(test)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "panicked".to_owned())
    })
}

/// A file as a VM gets it that may write to it.
pub fn open(path: &Path) -> HostFile {
    HostFile::open(path, Access::Write).unwrap()
}

/// Runs a future as a shim does: on one thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}
