//! Requests as the host's shim makes them, and what they carry.

use fc_proto::guest::ExtraData;
use fc_proto::protobuf::well_known_types::any::Any;
use fc_proto::protobuf::{Message, MessageField};
use fc_proto::task::api;
use serde_json::{Value, json};

pub fn extra(base: u32, host_listens: bool, json: Vec<u8>, options: Option<Any>) -> Any {
    let mut extra = ExtraData::new();
    extra.JsonSpec = json;
    extra.RuncOptions = options.into();
    extra.StdinPort = base;
    extra.StdoutPort = base + 1;
    extra.StderrPort = base + 2;
    extra.HostListens = host_listens;
    Any {
        type_url: "ExtraData".to_owned(),
        value: extra.write_to_bytes().unwrap(),
        ..Any::default()
    }
}

pub fn exec_request(
    id: &str,
    exec_id: &str,
    script: &str,
    terminal: bool,
    base: u32,
) -> api::ExecProcessRequest {
    let mut request = api::ExecProcessRequest::new();
    request.id = id.to_owned();
    request.exec_id = exec_id.to_owned();
    request.terminal = terminal;
    request.stdin = "/host/stdin".to_owned();
    request.stdout = "/host/stdout".to_owned();
    if !terminal {
        request.stderr = "/host/stderr".to_owned();
    }
    let process = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
        value: process(script, terminal).to_string().into_bytes(),
        ..Any::default()
    };
    request.spec = MessageField::some(extra(base, true, Vec::new(), Some(process)));
    request
}

fn process(script: &str, terminal: bool) -> Value {
    json!({
        "terminal": terminal,
        "user": { "uid": 0, "gid": 0 },
        "args": ["/bin/sh", "-c", script],
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {
            "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"],
        },
        "noNewPrivileges": true,
    })
}

pub fn spec(script: &str, terminal: bool) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": process(script, terminal),
        "root": { "path": "/host/path/rootfs" },
        "hostname": "test",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
        ],
        "linux": {
            "cgroupsPath": "system.slice:containerd:x",
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "network", "path": "/var/run/netns/of-the-host" },
            ],
            "maskedPaths": ["/proc/kcore"],
        },
    })
}
