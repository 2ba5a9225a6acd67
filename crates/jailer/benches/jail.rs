//! What a jail adds to the start of a VM: medians of the time before and after the OCI runtime's own, and of that.

#[path = "../tests/jail/host.rs"]
#[allow(dead_code, reason = "the tests need the rest")]
mod host;
#[path = "../tests/jail/stand_in.rs"]
#[allow(dead_code, reason = "the tests need the rest")]
mod stand_in;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use fc_jailer::{ExposePolicy, Jailer, Role, Runc, Start};

use host::{Host, Runtime};

const ROUNDS: usize = 20;
/// As large as the default guest's kernel and root image.
const KERNEL: u64 = 53 << 20;
const ROOT_IMAGE: u64 = 21 << 20;

fn main() {
    let program = std::env::args_os().next().map(PathBuf::from);
    if program.is_some_and(|program| stand_in::NAMES.iter().any(|name| program.ends_with(name))) {
        stand_in::main();
        return;
    }
    for runtime in Runtime::all() {
        if let Some(why) = runtime.missing() {
            println!("SKIPPED {}: {why}", runtime.name());
            continue;
        }
        for policy in [ExposePolicy::Bind, ExposePolicy::Copy] {
            host::block_on(measure(&runtime, policy));
        }
    }
}

async fn measure(runtime: &Runtime, policy: ExposePolicy) {
    let (mut before, mut start, mut alone, mut close) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let mut host = Host::new(runtime);
        host.request.policy = policy;
        let (kernel, image) = (
            host.base.path().join("kernel"),
            host.base.path().join("image"),
        );
        for (path, length) in [(&kernel, KERNEL), (&image, ROOT_IMAGE)] {
            fs::write(path, vec![1; usize::try_from(length).expect("a size")]).expect("a file");
        }
        let begin = Instant::now();
        let jail = host.prepare().await;
        jail.show(Role::Kernel, &kernel).await.expect("shown");
        let root = Role::RootDrive { read_only: true };
        jail.show(root, &image).await.expect("shown");
        before.push(begin.elapsed());
        let begin = Instant::now();
        let vmm = jail.start(Start::default()).await.expect("started");
        start.push(begin.elapsed());
        vmm.kill();
        vmm.exited().await;
        alone.push(runtime_alone(&host, &jail));
        let begin = Instant::now();
        assert!(jail.close().await.is_empty());
        close.push(begin.elapsed());
    }
    println!(
        "{} {policy:?}: before the runtime {:?}, start {:?} (the runtime alone {:?}), close {:?}",
        runtime.name(),
        median(before),
        median(start),
        median(alone),
        median(close)
    );
}

/// The same container by the runtime's command line, without us.
fn runtime_alone(host: &Host, jail: &Runc) -> Duration {
    for name in [jail.api_socket(), stand_in::ORDERS] {
        fs::remove_file(jail.root().join(name)).expect("the stand-in made it");
    }
    let runtime = |arguments: &[&str]| {
        let mut command = Command::new(&host.runc);
        let state = host.dir.join("alone");
        command.arg("--root").arg(state).args(arguments);
        let status = command.stdout(std::process::Stdio::null()).status();
        assert!(status.expect("it runs").success());
    };
    let bundle = host.dir.to_str().expect("text");
    let begin = Instant::now();
    runtime(&["run", "--detach", "--bundle", bundle, "alone"]);
    let took = begin.elapsed();
    runtime(&["delete", "--force", "alone"]);
    took
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
