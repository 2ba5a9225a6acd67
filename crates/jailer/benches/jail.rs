//! What a jail adds to the start of a VM beyond the OCI runtime's own time, and how much of the disk it takes. One
//! line per runtime and policy; times are medians.

#[path = "../tests/jail/file_calls.rs"]
#[allow(dead_code, reason = "the tests need it")]
mod file_calls;
#[path = "../tests/jail/host.rs"]
#[allow(dead_code, reason = "the tests need the rest")]
mod host;
#[path = "../tests/jail/measure.rs"]
mod measure;
#[path = "../tests/jail/stand_in.rs"]
#[allow(dead_code, reason = "the tests need the rest")]
mod stand_in;

use std::path::PathBuf;

use fc_jailer::ExposePolicy;

use host::Runtime;
use measure::Times;

const ROUNDS: usize = 20;

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
            host::block_on(print(&runtime, policy));
        }
    }
}

async fn print(runtime: &Runtime, policy: ExposePolicy) {
    let times = measure::measure(runtime, policy, ROUNDS).await;
    let median = |of| Times::median(&times, of).as_secs_f64() * 1e3;
    println!(
        "{} {policy:?}: added {:.1} ms = prepare {:.1} + start {:.1} - the runtime alone {:.1} - the VMM unjailed {:.1}; \
         close {:.1} ms; disk {} KiB for an image of {} MiB with {} MiB of data",
        runtime.name(),
        median(Times::added),
        median(|times| times.prepare),
        median(|times| times.start),
        median(|times| times.runtime_alone),
        median(|times| times.unjailed),
        median(|times| times.close),
        measure::disk_use(runtime, policy).await >> 10,
        measure::IMAGE_LENGTH >> 20,
        measure::IMAGE_DATA >> 20,
    );
}
