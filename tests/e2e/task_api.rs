//! A shim's task API, called as containerd calls it: for root file systems that no snapshotter at hand gives.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use fc_proto::task::TaskClient;
use fc_proto::task::api::{
    CreateTaskRequest, DeleteRequest, KillRequest, Mount, StartRequest, WaitRequest,
};
use fc_proto::ttrpc;
use fc_proto::ttrpc::context::Context;
use serde_json::json;

use crate::drives_vm::context;
use crate::fixture::Instance;
use crate::shared_vm::{Socket, on_socket};

/// The task API of one VM, which is there already.
pub struct Tasks<'a> {
    on: &'a Instance,
    vm: &'a str,
}

/// A container that was started. Whoever started it ends it with [`Tasks::end`].
#[derive(Debug)]
pub struct Started {
    id: String,
    /// Its standard output and error.
    pub output: BufReader<File>,
}

impl Started {
    /// The next line of its output.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        line
    }
}

/// One of a root file system's mounts, at `target` in it (`""`: at its root).
pub fn mount_at(target: &str, fstype: &str, source: &Path, options: &[&str]) -> Mount {
    Mount {
        type_: fstype.to_owned(),
        source: source.display().to_string(),
        target: target.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Mount::default()
    }
}

/// The same at its root.
pub fn mount(fstype: &str, source: &Path, options: &[&str]) -> Mount {
    mount_at("", fstype, source, options)
}

impl<'a> Tasks<'a> {
    /// Of the VM `vm`.
    pub fn of(on: &'a Instance, vm: &'a str) -> Self {
        Self { on, vm }
    }

    /// Starts a container with this root file system, which runs `args` as root.
    ///
    /// # Errors
    /// What the shim answers to Create.
    pub fn start(&self, id: &str, rootfs: &[Mount], args: &[&str]) -> ttrpc::Result<Started> {
        let bundle = self.bundle(id, args);
        let fifo = bundle.join("output");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).expect("a FIFO");
        // Opening it for both never waits; while this is open, opening it for reading does not either.
        let both = File::options().read(true).write(true).open(&fifo);
        let output = BufReader::new(File::open(&fifo).expect("the FIFO"));
        let request = CreateTaskRequest {
            id: id.to_owned(),
            bundle: bundle.display().to_string(),
            rootfs: rootfs.to_vec(),
            stdout: fifo.display().to_string(),
            stderr: fifo.display().to_string(),
            ..CreateTaskRequest::default()
        };
        let created = self.call(async |tasks, context| tasks.create(context, &request).await);
        // From now on the shim is the only writer: its end is the output's.
        drop(both);
        created?;
        let request = StartRequest {
            id: id.to_owned(),
            ..StartRequest::default()
        };
        self.call(async |tasks, context| tasks.start(context, &request).await)
            .expect("Start");
        Ok(Started {
            id: id.to_owned(),
            output,
        })
    }

    /// Waits for the container's end and deletes it; answers its status and what it still had to say.
    pub fn end(&self, mut started: Started) -> (u32, String) {
        let mut text = String::new();
        started.output.read_to_string(&mut text).expect("output");
        let wait = WaitRequest {
            id: started.id.clone(),
            ..WaitRequest::default()
        };
        let waited = self.call(async |tasks, context| tasks.wait(context, &wait).await);
        self.delete(&started.id).expect("Delete");
        (waited.expect("Wait").exit_status, text)
    }

    /// Deletes a container, without asking first whether it has ended, as a client of containerd does.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn delete(&self, id: &str) -> ttrpc::Result<()> {
        let request = DeleteRequest {
            id: id.to_owned(),
            ..DeleteRequest::default()
        };
        self.call(async |tasks, context| tasks.delete(context, &request).await)
            .map(drop)
    }

    /// Sends a signal to the container's first process.
    pub fn kill(&self, started: &Started, signal: u32) {
        let request = KillRequest {
            id: started.id.clone(),
            signal,
            ..KillRequest::default()
        };
        self.call(async |tasks, context| tasks.kill(context, &request).await)
            .expect("Kill");
    }

    /// Runs a container to its end, which must be a success; answers its output.
    #[track_caller]
    pub fn run(&self, id: &str, rootfs: &[Mount], args: &[&str]) -> String {
        let started = self.start(id, rootfs, args);
        let started = started.unwrap_or_else(|error| panic!("{id}: {error}"));
        let (status, text) = self.end(started);
        assert_eq!(status, 0, "{id}: {text}");
        text
    }

    /// The same with a script for busybox.
    #[track_caller]
    pub fn sh(&self, id: &str, rootfs: &[Mount], script: &str) -> String {
        self.run(id, rootfs, &["/bin/sh", "-euc", script])
    }

    fn call<T>(&self, call: impl AsyncFnOnce(TaskClient, Context) -> T) -> T {
        on_socket(self.on, self.vm, Socket::Task, async |client| {
            call(TaskClient::new(client), context()).await
        })
    }

    fn bundle(&self, id: &str, args: &[&str]) -> PathBuf {
        let bundle = self.on.layout.dir.join("bundles").join(self.vm).join(id);
        // A container of an earlier one's id begins anew.
        let _ = std::fs::remove_dir_all(&bundle);
        let mut dir = std::fs::DirBuilder::new();
        dir.recursive(true).mode(0o711);
        dir.create(&bundle).expect("a bundle");
        // To see attributes that are root's alone, and whatever others' files there are.
        let all = ["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"];
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": args,
                "env": ["PATH=/bin"],
                "cwd": "/",
                "capabilities": { "bounding": all, "effective": all, "permitted": all },
            },
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs" },
            ],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "mount" }] },
        });
        std::fs::write(bundle.join("config.json"), spec.to_string()).expect("config.json");
        bundle
    }
}
