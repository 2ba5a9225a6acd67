//! A jail: the VMM in a container, as a user of its own, with nothing to see but its own files.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use fc_client::{StartedVmm, Vmm};
use fc_drives::Exposer;
use fc_host_file::HostFile;

use crate::access::Access;
use crate::cgroup::{self, CgroupError, Hierarchies};
use crate::copy::copy;
use crate::drive_file::DriveFile;
use crate::error::{JailError, StartError};
use crate::exposer::{JailExposer, check_name};
use crate::file_limit::FileLimit;
use crate::file_mount::{ExposeError, FileMounter};
use crate::jailer::{Jailer, ROOT_DRIVE, Role, Start};
use crate::layout;
use crate::loan::Lender;
use crate::needs::Needs;
use crate::oci_runtime::{OciRuntime, RuntimeError};
use crate::record::{Cgroup, Journal, Record};
use crate::request::{JailRequest, Setup};
use crate::root::Root;
use crate::spec::{Overrides, Template};
use crate::undo::{UndoError, undo_except};
use crate::{cache_topology, netns, program};

/// The VMM's program, in its root (the original's name).
const PROGRAM: &str = "firecracker";
/// File name of the API socket (the original's).
const API_SOCKET: &str = "api.socket";
/// How long the OCI runtime may take to start a container: to find one that hangs, on a busy host too. Whoever starts
/// the VM has a bound of its own.
const RUN_BOUND: Duration = Duration::from_secs(120);

/// A jail made by an OCI runtime.
pub struct Runc {
    dir: PathBuf,
    root: Root,
    cgroup: String,
    vmm: PathBuf,
    args: Vec<String>,
    needs: Needs,
    template: Template,
    request: JailRequest,
    runtime: OciRuntime,
    limit: Arc<FileLimit>,
    mounter: Arc<FileMounter>,
    exposer: Arc<JailExposer>,
    copies: AtomicUsize,
    /// The VMM's process, whose exit status is [`Vmm`]'s to take.
    vmm_pid: OnceLock<u32>,
}

impl Runc {
    /// Whether the template and the VMM with its list are such as jails can be made of.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(vmm: &Path, template: &Path) -> Result<(), JailError> {
        let template = Template::read(template)?;
        Needs::of(&program::find(vmm), &template)?;
        Ok(())
    }

    /// Checks everything that can be checked, then makes the jail's directories and cgroup. Nothing stays of
    /// a jail that cannot be made.
    ///
    /// # Errors
    /// See [`JailError`].
    pub async fn prepare(setup: Setup<'_>) -> Result<Self, JailError> {
        let template = Template::read(setup.template)?;
        match &setup.request.net_ns {
            Some(path) => netns::check(path)?,
            None => template.check_network()?,
        }
        let vmm = program::find(setup.vmm);
        let needs = Needs::of(&vmm, &template)?;
        let names = cgroup::candidates(&setup.request.cgroup_path, setup.namespace, setup.vm_id)?;
        let hierarchies = Hierarchies::of_host()?;
        let journal = Arc::new(Journal::begin(
            setup.dir,
            Record {
                runc: setup.runc.to_owned(),
                container: setup.vm_id.to_owned(),
                cgroup: None,
                owners: Vec::new(),
            },
        )?);
        let user = setup.request.user;
        let made = layout::make(setup.dir, user)
            .map_err(JailError::from)
            .and_then(|()| claim(&hierarchies, &names, &journal));
        let cgroup = undo_on_error(setup.dir, made)?;
        let state = setup.dir.join(layout::STATE);
        let limit = Arc::new(FileLimit::new(hierarchies, &cgroup));
        let lender = Arc::new(Lender::new(user, journal));
        let mounter = FileMounter::new(user, Arc::clone(&lender), Arc::clone(&limit));
        let mounter = Arc::new(mounter);
        let jail = Self {
            dir: setup.dir.to_owned(),
            root: Root::new(setup.dir.join(layout::ROOT), user),
            cgroup,
            vmm: vmm.clone(),
            args: command_line(setup.vmm_id),
            needs,
            template,
            runtime: OciRuntime::new(setup.runc, state, setup.vm_id),
            exposer: Arc::new(JailExposer::new(setup.dir, Arc::clone(&mounter), lender)),
            limit,
            mounter,
            request: setup.request,
            copies: AtomicUsize::new(0),
            vmm_pid: OnceLock::new(),
        };
        let filled = jail.fill();
        undo_on_error(setup.dir, filled)?;
        Ok(jail)
    }

    /// What every VMM finds in its root.
    fn fill(&self) -> Result<(), JailError> {
        let root = self.root.path();
        let target = root.join(PROGRAM);
        self.mounter.attach(&self.vmm, &target, Access::Execute)?;
        if cfg!(target_arch = "aarch64") {
            cache_topology::copy(Path::new("/"), root).map_err(|source| JailError::File {
                path: root.join("sys"),
                source,
            })?;
        }
        Ok(())
    }

    /// A copy of a regular file that is the jail user's. It is shown by its descriptor, like every file.
    fn copy(&self, from: HostFile, read_only: bool) -> Result<DriveFile, JailError> {
        let number = self.copies.fetch_add(1, Ordering::Relaxed);
        let to = self.dir.join(layout::COPIES).join(number.to_string());
        let made = self.make_copy(&from, &to, read_only);
        let (copied, target) = made.map_err(|source| JailError::Copy {
            path: from.path().to_owned(),
            to,
            source,
        })?;
        let path = from.path().to_owned();
        Ok(DriveFile::copied(&path, copied, move |given_up| {
            copy(from.file(), &target, given_up)
        }))
    }

    /// An empty file as long as `from`, for the VMM, and a second descriptor of it.
    fn make_copy(
        &self,
        from: &HostFile,
        to: &Path,
        read_only: bool,
    ) -> io::Result<(HostFile, File)> {
        let user = self.request.user;
        let mode = if read_only { 0o400 } else { 0o600 };
        let to = HostFile::create(to).map_err(io::Error::other)?;
        let file = to.file();
        file.set_len(from.file().metadata()?.len())?;
        file.set_permissions(Permissions::from_mode(mode))?;
        fchown(file, Some(user.uid()), Some(user.gid()))?;
        let target = file.try_clone()?;
        Ok((to, target))
    }

    fn write_configuration(&self) -> Result<(), JailError> {
        let configuration = self.template.apply(&Overrides {
            args: &self.args,
            env: &self.needs.environment(),
            user: self.request.user,
            cgroups_path: &self.cgroup,
            net_ns: self.request.net_ns.as_deref(),
            cpus: self.request.cpus.as_str(),
            mems: self.request.mems.as_str(),
            drives: &self.dir.join(layout::DRIVES),
            read_only: &self.needs.read_only_paths,
            devices: &self.needs.devices(),
        })?;
        let path = self.dir.join(layout::CONFIG);
        let write = || {
            let mut options = std::fs::OpenOptions::new();
            let file = options
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(&path)?;
            serde_json::to_writer(&file, &configuration)?;
            Ok(())
        };
        write().map_err(|source| JailError::File {
            path: path.clone(),
            source,
        })
    }

    /// Whose fault it is that there is no container: the request's when the host does not have what it pins the VMM to.
    fn fault(&self, error: RuntimeError) -> StartError {
        let JailRequest { cpus, mems, .. } = &self.request;
        let pinned = [
            ("JailerConfig.CPUs", cpus, "cpuset.cpus"),
            ("JailerConfig.Mems", mems, "cpuset.mems"),
        ];
        let refused = pinned
            .into_iter()
            .find(|(_, list, file)| !list.as_str().is_empty() && error.mentions(file));
        match refused {
            Some((field, list, _)) => StartError::Jail(JailError::Cpuset {
                field,
                list: list.clone(),
                source: Box::new(error),
            }),
            None => StartError::Container(error),
        }
    }
}

#[async_trait]
impl Jailer for Runc {
    fn root(&self) -> &Path {
        self.root.path()
    }

    fn api_socket(&self) -> &'static str {
        API_SOCKET
    }

    fn cgroup_path(&self) -> Option<&str> {
        Some(&self.cgroup)
    }

    async fn show(&self, role: Role, host_path: &Path) -> Result<String, JailError> {
        let name = match role {
            Role::Kernel => "kernel-image",
            Role::Initrd => "initrd-image",
        };
        let target = self.root.path().join(name);
        self.mounter.attach(host_path, &target, Access::Read)?;
        Ok(name.to_owned())
    }

    fn show_root(&self, file: &HostFile, read_only: bool) -> Result<String, JailError> {
        let target = self.root.path().join(ROOT_DRIVE);
        let access = Access::of_drive(read_only);
        self.mounter
            .attach_open(file.file(), file.path(), &target, access)?;
        Ok(ROOT_DRIVE.to_owned())
    }

    async fn show_fifo(&self, name: &str, host_path: &Path) -> Result<String, JailError> {
        check_name(name)?;
        // The VMM opens its FIFOs for reading and writing, so as not to wait for a reader.
        let target = self.root.path().join(name);
        self.mounter.attach_fifo(host_path, &target)?;
        Ok(name.to_owned())
    }

    fn share(&self, name: &str) -> Result<(), JailError> {
        self.root.share(name)
    }

    fn check_drive(&self, file: &HostFile, read_only: bool) -> Result<(), JailError> {
        // A copy gets a mode of its own, and a device a node of its own.
        if !self.request.policy.copies(file.is_block_device()) {
            let access = Access::of_drive(read_only);
            self.mounter.check(file.file(), file.path(), access)?;
        }
        Ok(())
    }

    fn drive_file(&self, file: HostFile, read_only: bool) -> Result<DriveFile, JailError> {
        if self.request.policy.copies(file.is_block_device()) {
            self.copy(file, read_only)
        } else {
            Ok(DriveFile::itself(file))
        }
    }

    fn exposer(&self) -> Arc<dyn Exposer> {
        Arc::clone(&self.exposer) as Arc<dyn Exposer>
    }

    async fn start(&self, start: Start) -> Result<Vmm, StartError> {
        self.write_configuration()?;
        let started = self.runtime.run(&self.dir, RUN_BOUND).await;
        let started = started.map_err(|error| self.fault(error))?;
        // Fails only for a second start, which the runtime has refused.
        let _ = self.vmm_pid.set(started.pid);
        let api = self.root.path().join(API_SOCKET);
        let mut attached = StartedVmm::new(&self.vmm, started.pid, api);
        attached.stdout = Some(started.stdout);
        attached.stderr = Some(started.stderr);
        attached.log_output = start.log_output;
        attached.ready_bound = start.ready_bound;
        attached.output = start.output;
        attached.log = start.log;
        let vmm = Vmm::attach(attached).await?;
        self.root.take_socket(API_SOCKET)?;
        Ok(vmm)
    }

    fn seal(&self, name: &str) -> Result<(), JailError> {
        self.root.take_socket(name)?;
        let begun = self.limit.begin();
        begun.map_err(|source| ExposeError::Limit { source }.into())
    }

    async fn close(&self) -> Vec<UndoError> {
        let dir = self.dir.clone();
        let vmm = self.vmm_pid.get().copied();
        let undone = tokio::task::spawn_blocking(move || undo_except(&dir, vmm));
        let undone = undone.await.unwrap_or_else(|stopped| {
            vec![UndoError::Remove {
                path: self.dir.clone(),
                source: io::Error::other(stopped),
            }]
        });
        self.exposer.closed();
        undone
    }
}

/// The first of `names` that no other VM has, which is the VM's from then on.
fn claim(
    hierarchies: &Hierarchies,
    names: &[String],
    journal: &Journal,
) -> Result<String, JailError> {
    let write = |path: &str, claimed| {
        let path = path.to_owned();
        journal.change(|record| record.cgroup = Some(Cgroup { path, claimed }))
    };
    for name in names {
        write(name, false)?;
        if hierarchies.claim(name)? {
            write(name, true)?;
            return Ok(name.clone());
        }
    }
    journal.change(|record| record.cgroup = None)?;
    Err(CgroupError::Taken(names.to_vec()).into())
}

/// `<program> --api-sock <socket> --id <id>`, as the original starts it.
fn command_line(vmm_id: &str) -> Vec<String> {
    let program = format!("/{PROGRAM}");
    [&program, "--api-sock", API_SOCKET, "--id", vmm_id]
        .map(ToOwned::to_owned)
        .to_vec()
}

/// The error that stopped the making of a jail is the one to report.
fn undo_on_error<T>(dir: &Path, result: Result<T, JailError>) -> Result<T, JailError> {
    if result.is_err() {
        for error in undo_except(dir, None) {
            tracing::warn!(%error, "Something stays of a jail that cannot be made");
        }
    }
    result
}
