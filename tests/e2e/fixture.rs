//! Where the product is, and running it under private containerds.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fc_testbed::containerd::{Containerd, Options, tail};
use fc_testbed::image;
use fc_testbed::leftovers::Scope;
use fc_testbed::runtime_config::{self, Layout};
use serde_json::{Map, Value};

use crate::daemon::{BOUND, Daemon};

/// One containerd to test with.
#[derive(Debug, Clone)]
pub struct Flavor {
    /// For messages, e.g. `containerd 1.6.20`.
    pub name: String,
    /// Directory with its binaries; `None`: the machine's.
    pub prefix: Option<PathBuf>,
    /// Whether `firecracker-control` runs beside it.
    pub daemon: bool,
}

/// What all tests share.
pub struct Setup {
    bin_dir: PathBuf,
    guest: PathBuf,
    vmm: PathBuf,
    work: tempfile::TempDir,
    scope: Scope,
    next: AtomicU32,
}

impl Setup {
    /// Finds binaries and guest image; the error says what is missing.
    pub fn find() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("needs root".to_owned());
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let dir =
            |var: &str, default: PathBuf| std::env::var_os(var).map_or(default, PathBuf::from);
        let triple_release = std::env::current_exe()
            .ok()
            .and_then(|exe| Some(exe.parent()?.parent()?.parent()?.join("release")));
        let bin_dir = dir(
            "FC_BIN_DIR",
            triple_release.unwrap_or_else(|| root.join("target/release")),
        );
        let guest = dir("FC_GUEST_DIR", root.join("build/guest"));
        let need = |path: PathBuf| {
            path.exists()
                .then_some(())
                .ok_or_else(|| format!("{} is missing; make test builds it", path.display()))
        };
        need(bin_dir.join("containerd-shim-aws-firecracker"))?;
        need(bin_dir.join("firecracker-control"))?;
        need(guest.join("default-rootfs.img"))?;
        let configured = std::env::var_os("FIRECRACKER_BIN").map(PathBuf::from);
        let vmm = configured.unwrap_or_else(|| bin_dir.join("firecracker-tcg"));
        let work = tempfile::Builder::new()
            .prefix("fc-e2e-")
            .tempdir()
            .map_err(|e| e.to_string())?;
        Ok(Self {
            bin_dir,
            guest,
            vmm,
            scope: Scope::new(work.path()),
            work,
            next: AtomicU32::new(0),
        })
    }

    /// The containerds at hand, the machine's first; at last it once more, with the control daemon.
    pub fn flavors(&self) -> Vec<Flavor> {
        let newer = std::env::var_os("FC_CONTAINERD_NEWER").map(PathBuf::from);
        [
            None,
            newer
                .filter(|dir| dir.exists())
                .map(Some)
                .unwrap_or_default(),
        ]
        .into_iter()
        .enumerate()
        .filter(|(i, prefix)| *i == 0 || prefix.is_some())
        .map(|(_, prefix)| Flavor {
            name: version_of(prefix.as_deref()),
            prefix,
            daemon: false,
        })
        .chain([Flavor {
            name: format!("{} + firecracker-control", version_of(None)),
            prefix: None,
            daemon: true,
        }])
        .collect()
    }

    /// Directory with our binaries.
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// The VMM that the tests use.
    pub fn vmm(&self) -> &Path {
        &self.vmm
    }

    /// A directory that no other test uses.
    pub fn fresh_dir(&self) -> PathBuf {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let dir = self.work.path().join(n.to_string());
        std::fs::create_dir_all(&dir).expect("test directory");
        dir
    }

    /// What the tests left on the host. That stays as it is, for nobody is there to remove it; what other test runs
    /// are about to remove (sockets of shims that they killed, at the same place as ours) is not ours.
    pub fn leftovers(&self) -> Vec<String> {
        let _ = self.scope.wait_for_processes(BOUND);
        eventually(|| self.scope.leftovers(&[]).is_empty());
        self.scope.leftovers(&[])
    }
}

fn version_of(prefix: Option<&Path>) -> String {
    let program = prefix.map_or_else(|| PathBuf::from("containerd"), |p| p.join("containerd"));
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    let version = text
        .unwrap_or_default()
        .split_whitespace()
        .nth(2)
        .unwrap_or("?")
        .to_owned();
    format!("containerd {version}")
}

/// One private containerd with a runtime configuration.
pub struct Instance {
    pub containerd: Containerd,
    pub layout: Layout,
}

/// How a `ctr` command ended.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub took: Duration,
}

impl Finished {
    fn new(output: Output, took: Duration) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took,
        }
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails the test unless the command ended with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            code,
            "stdout: {}\nstderr: {}",
            self.text(),
            self.stderr
        );
        self
    }
}

impl Instance {
    /// Starts a containerd whose shims use the default test configuration.
    pub fn start(setup: &Setup, flavor: &Flavor) -> Self {
        Self::with_config(setup, flavor, |_| {})
    }

    /// The same with keys of the configuration changed by `edit`.
    pub fn with_config(
        setup: &Setup,
        flavor: &Flavor,
        edit: impl FnOnce(&mut Map<String, Value>),
    ) -> Self {
        Self::with(setup, flavor, edit, "")
    }

    /// The same with more text in containerd's configuration.
    pub fn with(
        setup: &Setup,
        flavor: &Flavor,
        edit: impl FnOnce(&mut Map<String, Value>),
        extra_config: &str,
    ) -> Self {
        let dir = setup.fresh_dir();
        let layout = Layout {
            vmm: setup.vmm.clone(),
            guest: setup.guest.clone(),
            dir: dir.clone(),
        };
        let mut config = layout.config();
        edit(&mut config);
        let runtime_config = dir.join("firecracker-runtime.json");
        runtime_config::write(&runtime_config, &config).expect("runtime configuration");
        Self::on(setup, flavor, layout, runtime_config, extra_config)
    }

    /// The same with a configuration file that the test wrote itself.
    pub fn with_raw_config(setup: &Setup, flavor: &Flavor, text: &str) -> Self {
        let dir = setup.fresh_dir();
        let layout = Layout {
            vmm: setup.vmm.clone(),
            guest: setup.guest.clone(),
            dir: dir.clone(),
        };
        let runtime_config = dir.join("firecracker-runtime.json");
        std::fs::write(&runtime_config, text).expect("runtime configuration");
        Self::on(setup, flavor, layout, runtime_config, "")
    }

    fn on(
        setup: &Setup,
        flavor: &Flavor,
        layout: Layout,
        runtime_config: PathBuf,
        extra_config: &str,
    ) -> Self {
        let containerd = Containerd::start(Options {
            dir: layout.dir.join("c"),
            prefix: flavor.prefix.clone(),
            bin_dir: setup.bin_dir.clone(),
            runtime_config,
            extra_config: extra_config.to_owned(),
        })
        .expect("containerd starts");
        let tar = layout.dir.join("image.tar");
        image::write(&tar).expect("test image");
        containerd.import(image::NAME, &tar).expect("import");
        Self { containerd, layout }
    }

    /// `ctr run --runtime aws.firecracker OPTIONS IMAGE id COMMAND`, not started yet.
    pub fn run_command(&self, options: &[&str], id: &str, command: &[&str]) -> Command {
        let mut ctr = self.containerd.ctr();
        ctr.args(["run", "--runtime", "aws.firecracker"])
            .args(options)
            .args([image::NAME, id])
            .args(command)
            .stdin(Stdio::null());
        ctr
    }

    /// Runs a container to its end, with `--rm`.
    pub fn run(&self, options: &[&str], id: &str, command: &[&str]) -> Finished {
        let mut all = vec!["--rm"];
        all.extend(options);
        finish(self.run_command(&all, id, command))
    }

    /// Starts a container in the background.
    #[track_caller]
    pub fn run_detached(&self, options: &[&str], id: &str, command: &[&str]) {
        let mut all = vec!["-d"];
        all.extend(options);
        finish(self.run_command(&all, id, command)).expect(0);
    }

    /// Any other `ctr` command.
    pub fn ctr(&self, args: &[&str]) -> Finished {
        let mut ctr = self.containerd.ctr();
        ctr.args(args).stdin(Stdio::null());
        finish(ctr)
    }

    /// Kills and removes a container that a test left running.
    pub fn remove(&self, id: &str) {
        // Each may fail where the test has got there already.
        let _ = self.ctr(&["task", "kill", "-s", "SIGKILL", id]);
        let _ = self.ctr(&["task", "rm", "-f", id]);
        let _ = self.ctr(&["container", "rm", id]);
    }

    /// The instance's processes and what else it has on the host.
    pub fn scope(&self) -> Scope {
        Scope::new(&self.layout.dir)
    }

    /// Entries of the VMs' base directory.
    pub fn vm_dirs(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.layout.shim_base())
            .map(|dir| dir.flatten().map(|e| e.path()).collect())
            .unwrap_or_default()
    }

    /// The end of containerd's log, for messages.
    pub fn log(&self) -> String {
        tail(&self.containerd.log(), 40)
    }
}

/// Runs a command and takes its time.
pub fn finish(mut command: Command) -> Finished {
    let begin = Instant::now();
    let output = command.output().expect("ctr runs");
    Finished::new(output, begin.elapsed())
}

/// The lines of a command's output, as they come; the channel ends with it.
pub fn lines_of(child: &mut Child) -> Receiver<String> {
    let stdout = child.stdout.take().expect("piped");
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Waits for what nobody tells of, at most [`BOUND`]: whether it came.
pub fn eventually(mut is_there: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !is_there() {
        if begin.elapsed() > BOUND {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Instances with the default configuration, one per flavor, started when first asked for.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<HashMap<String, Running>>>);

/// An instance, and its daemon if its flavor has one.
type Running = (Arc<Instance>, Option<Daemon>);

impl Shared {
    /// The flavor's instance.
    pub fn get(&self, setup: &Setup, flavor: &Flavor) -> Arc<Instance> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (instance, _) = all.entry(flavor.name.clone()).or_insert_with(|| {
            let instance = Instance::start(setup, flavor);
            let daemon = flavor.daemon.then(|| Daemon::start(setup, &instance));
            (Arc::new(instance), daemon)
        });
        Arc::clone(instance)
    }

    /// Takes the instances out, so that they end.
    pub fn end(&self) -> Vec<Running> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.drain().map(|(_, instance)| instance).collect()
    }
}
