//! `firecracker-bench drives`: one slot, one container after another in it.

use fc_proto::vm::{ReadRequest, Stream, VmClient};
use fc_rpc::client::context;
use fc_testbed::image;
use fc_testbed::measure::drive_times;

use super::VmArgs;
use super::host::{BOUND, BenchError, Host, NAMESPACE, call_error, create_vm, runtime, stop_vm};

const VM: &str = "bench";

pub fn run(args: &VmArgs) -> Result<(), BenchError> {
    let host = Host::start(args, |config| {
        // The shim notes the times at this level.
        config.insert("log_levels".to_owned(), vec!["debug"].into());
    })?;
    let tar = host.dir.join("image.tar");
    image::write(&tar)?;
    host.containerd.import(image::NAME, &tar)?;
    let runtime = runtime(&host.dir)?;
    let control = runtime.block_on(host.control())?;
    runtime.block_on(create_vm(&control, VM))?;
    let in_vm = format!("aws.firecracker.vm.id={VM}");
    let (mut log, mut known) = (Vec::new(), 0);
    for round in 0..args.repeat.max(1) {
        let id = format!("bench-{round}");
        let run = ["run", "--rm", "--runtime", "aws.firecracker"];
        let container = ["--annotation", &in_vm, image::NAME, &id, "/bin/true"];
        host.containerd.ctr_ok(&[&run[..], &container].concat())?;
        // Each time: the shim keeps the end of its log only.
        runtime.block_on(async {
            let vm = host.vm(VM).await?;
            read(&vm, &mut log, &mut known).await
        })?;
    }
    runtime.block_on(stop_vm(&control, VM))?;
    println!(
        "A container's drives, median of {} rounds",
        args.repeat.max(1)
    );
    for times in drive_times(&log) {
        println!("  {times}");
    }
    Ok(())
}

/// Adds what the shim has logged after the line with number `known`.
async fn read(vm: &VmClient, log: &mut Vec<String>, known: &mut u64) -> Result<(), BenchError> {
    loop {
        let request = ReadRequest {
            stream: Stream::SHIM_LOG.into(),
            after: *known,
            ..ReadRequest::default()
        };
        let read = vm.read(context(NAMESPACE, BOUND), &request).await;
        let read = read.map_err(call_error("Read"))?;
        if read.lines.is_empty() {
            return Ok(());
        }
        *known = read.last;
        log.extend(read.lines);
    }
}
