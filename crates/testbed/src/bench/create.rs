//! `firecracker-bench create`: CreateVM by a daemon, over and over.

use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_rpc::client::context;
use fc_testbed::measure::median;
use fc_vm::timeline::now_ns;

use super::VmArgs;
use super::host::{BOUND, BenchError, Host, NAMESPACE, call_error, create_vm, runtime, stop_vm};
use super::spans::Sample;

pub fn run(args: &VmArgs) -> Result<(), BenchError> {
    let host = Host::start(args, |_| {})?;
    let samples = runtime(&host.dir)?.block_on(measure(args.repeat, &host))?;
    print(&samples);
    Ok(())
}

async fn measure(repeat: u32, host: &Host) -> Result<Vec<Sample>, BenchError> {
    let control = host.control().await?;
    let mut samples = Vec::new();
    for i in 0..repeat.max(1) {
        let vm_id = format!("bench-{i}");
        let begin_ns = now_ns();
        let created = create_vm(&control, &vm_id).await;
        let end_ns = now_ns();
        created?;
        let vm = host.vm(&vm_id).await?;
        let status = vm
            .status(context(NAMESPACE, BOUND), &Empty::default())
            .await;
        samples.push(Sample {
            begin_ns,
            end_ns,
            spans: status.map_err(call_error("Status"))?.spans,
        });
        drop(vm);
        stop_vm(&control, &vm_id).await?;
    }
    Ok(samples)
}

fn print(samples: &[Sample]) {
    println!("CreateVM, median of {} (ms)", samples.len());
    let mut names: Vec<(&str, &str)> = Vec::new();
    for span in samples.iter().flat_map(|sample| &sample.spans) {
        let name = (span.name.as_str(), span.waits_for.as_str());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for (name, waits_for) in names {
        let time = median(samples.iter().map(|sample| sample.named(name)));
        let whose = match waits_for {
            "" => "our own",
            other => other,
        };
        println!("  {name:<24} {time:>9.2}  {whose}");
    }
    println!(
        "  {:<24} {:>9.2}",
        "waiting",
        median(samples.iter().map(Sample::waiting))
    );
    println!(
        "  {:<24} {:>9.2}  the parts above that wait for nobody",
        "our own",
        median(samples.iter().map(Sample::own_named))
    );
    println!(
        "  {:<24} {:>9.2}  with what has no name: the shim's process, calls",
        "all that is no waiting",
        median(samples.iter().map(Sample::own))
    );
    println!(
        "  {:<24} {:>9.2}",
        "CreateVM",
        median(samples.iter().map(Sample::total))
    );
}
