use super::*;
use crate::list::{CleanUp, clean_up};
use fc_test_host::write_program;
use std::io::Read;

/// A stand-in for a shim: it reports its stdin, environment and descriptors, and does nothing more. Until then its children
/// have its lock too.
const STAND_IN: &str = r#"#!/bin/sh
{ echo "args $*"; echo "vm $FIRECRACKER_VM_ID $FCCONTROL_SOCKET_FD $FIRECRACKER_LOCK_FD"; echo "ttrpc $TTRPC_ADDRESS"
  echo "config $FIRECRACKER_CONTAINERD_RUNTIME_CONFIG_PATH"; echo "cwd $(pwd)"; echo "stdin $(wc -c)"
  for fd in 3 4 5; do readlink /proc/self/fd/$fd | sed 's/:.*//'; done; } > report.new
mv report.new report 5>&-
exec sleep 60
"#;

fn launch_in(base: &Path) -> Launch {
    let program = base.join("shim.sh");
    write_program(&program, STAND_IN);
    Launch {
        base: base.join("vms"),
        namespace: "ns".into(),
        vm_id: "v".repeat(76),
        containerd_address: base.join("c.sock").display().to_string(),
        ttrpc_address: "/run/c.ttrpc".into(),
        program,
        config: Some("/etc/fc.json".into()),
        log: ShimLog::Discard,
        debug: false,
        request: Some(CreateVMRequest {
            VMID: "v".repeat(76),
            ..CreateVMRequest::default()
        }),
    }
}

#[test]
fn second_starter_finds_the_first_and_a_killed_shim_is_replaced() {
    let base = tempfile::tempdir().unwrap();
    let config = launch_in(base.path());
    let first = launch(&config).unwrap();
    assert!(first.new);
    let again = launch(&config).unwrap();
    assert_eq!((again.new, again.shim), (false, first.shim));
    assert!(again.child.is_none());
    assert_eq!(again.task_socket, first.task_socket);

    let dir = VmDir::new(&config.base, "ns", &config.vm_id).unwrap();
    let report = wait_for(&dir.join("report"));
    let expected = format!(
        "args -namespace ns -address {}\nvm {} 4 5\nttrpc /run/c.ttrpc\nconfig /etc/fc.json\n\
         cwd {}\nstdin 78\nsocket\nsocket\n{}\n",
        config.containerd_address,
        config.vm_id,
        dir.path().display(),
        dir.join(crate::dir::LOCK).display()
    );
    assert_eq!(report, expected);

    kill(first);
    std::fs::write(dir.join("leftover"), "").unwrap();
    let second = launch(&config).unwrap();
    assert!(second.new);
    assert!(!dir.join("leftover").exists());
    wait_for(&dir.join("report"));
    let sockets = [second.task_socket.clone(), second.control_socket.clone()];
    kill(second);
    assert_eq!(clean_up(&dir).unwrap(), CleanUp::Done);
    assert!(sockets.iter().all(|socket| !socket.exists()));
}

#[test]
fn whatever_a_killed_starter_left_is_no_obstacle() {
    let base = tempfile::tempdir().unwrap();
    let config = launch_in(base.path());
    let dir = VmDir::new(&config.base, "ns", &config.vm_id).unwrap();
    let task = address::task_socket(&config.containerd_address, "ns", &config.vm_id);
    let control = address::control_socket(&task);
    let steps: [&dyn Fn(); 5] = [
        &|| std::fs::create_dir_all(dir.path()).unwrap(),
        &|| drop(StartLock::take(&dir).unwrap().try_shim_lock().unwrap()),
        &|| std::fs::write(dir.join("state.json.new"), "{").unwrap(),
        &|| {
            let state = State {
                sockets: Some(Sockets {
                    task: task.clone(),
                    control: control.clone(),
                }),
                ..State::new(&dir)
            };
            state.store(&dir).unwrap();
        },
        &|| drop((bind(&task).unwrap(), bind(&control).unwrap())),
    ];
    for killed_after in 1..=steps.len() {
        for step in &steps[..killed_after] {
            step();
        }
        let launched = launch(&config).unwrap();
        assert!(launched.new, "killed after step {killed_after}");
        wait_for(&dir.join("report"));
        kill(launched);
        assert_eq!(clean_up(&dir).unwrap(), CleanUp::Done);
        assert!(!task.exists() && !control.exists());
    }
}

#[test]
fn failed_launch_leaves_nothing() {
    let base = tempfile::tempdir().unwrap();
    let mut config = launch_in(base.path());
    config.program = base.path().join("missing");
    let error = launch(&config).unwrap_err();
    assert!(matches!(error, LaunchError::Spawn { .. }), "{error:?}");
    let dir = VmDir::new(&config.base, "ns", &config.vm_id).unwrap();
    assert!(!dir.path().exists());
    let socket = address::task_socket(&config.containerd_address, "ns", &config.vm_id);
    assert!(!socket.exists());
}

#[test]
fn the_log_may_be_a_pipe_of_the_caller() {
    let base = tempfile::tempdir().unwrap();
    let mut config = launch_in(base.path());
    write_program(&config.program, "#!/bin/sh\necho a line >&2\n");
    let (mut reader, writer) = io::pipe().unwrap();
    config.log = ShimLog::Fd(writer.into());
    let mut launched = launch(&config).unwrap();
    drop(config);
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    assert_eq!(log, "a line\n");
    launched.child.take().unwrap().wait().unwrap();
    let _ = std::fs::remove_file(launched.task_socket);
    let _ = std::fs::remove_file(launched.control_socket);
}

fn kill(mut launched: Launched) {
    launched.shim.kill(Duration::from_secs(60)).unwrap();
    launched.child.take().unwrap().wait().unwrap();
}

/// What is in a file that a stand-in makes. It forks a dozen times before, which takes seconds on a busy machine.
fn wait_for(path: &Path) -> String {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Ok(text) = std::fs::read_to_string(path) {
            return text;
        }
        assert!(
            Instant::now() < deadline,
            "{} did not appear",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
