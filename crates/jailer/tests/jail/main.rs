//! Jails made by real OCI runtimes. The program is the test and, in the jail, the VMM that was taken over.
//!
//! What some of it needs is in the environment: `FC_RUNC_NEWER` is a newer runc, `FC_BIN_DIR` has `firecracker-tcg`
//! (or `FIRECRACKER_BIN` is the VMM), `FC_GUEST_DIR` has the guest image, and `FC_TEST_KERNEL_DIR` the modules of its
//! kernel: an unpacked Debian package.

mod boot;
mod cost;
mod file_calls;
mod files;
mod host;
#[allow(dead_code, reason = "the benchmark needs the rest")]
mod measure;
mod request;
mod seccomp;
mod security;
mod stand_in;
mod teardown;
mod v2_guest;

use std::path::PathBuf;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use host::Runtime;

/// A test with one runtime.
type Test = fn(&Runtime);

fn main() -> ExitCode {
    // By its name, whatever the arguments: a VMM that ran the tests would start more VMMs, without end.
    let program = std::env::args_os().next().map(PathBuf::from);
    if program.is_some_and(|program| stand_in::NAMES.iter().any(|name| program.ends_with(name))) {
        return stand_in::main();
    }
    let words: Vec<_> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == teardown::OWNER) {
        teardown::own(&words[1..]);
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let tests: Vec<(&str, Test)> = [
        security::TESTS,
        seccomp::TESTS,
        files::TESTS,
        request::TESTS,
        teardown::TESTS,
        boot::TESTS,
        cost::TESTS,
        cost::TIME_TESTS,
    ]
    .concat();
    let runtimes = Runtime::all();
    let here = runtimes
        .iter()
        .flat_map(|runtime| tests.iter().map(|(name, test)| trial(runtime, name, *test)));
    let trials = here.chain(v2_guest::trials(&runtimes, &tests)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test with one runtime; one that cannot run here is shown as ignored, with the reason as its kind.
fn trial(runtime: &Runtime, name: &str, test: Test) -> Trial {
    let needs_a_vm = boot::TESTS.iter().any(|(vm, _)| *vm == name);
    let missing = runtime
        .missing()
        .or_else(|| security::missing(name))
        .or_else(|| needs_a_vm.then(boot::missing).flatten());
    let runtime = runtime.clone();
    let name = format!("{}::{name}", runtime.name());
    let trial = Trial::test(name, move || {
        host::in_this_thread(|| test(&runtime)).map_err(Failed::from)
    });
    match missing {
        Some(why) => trial
            .with_kind(format!("SKIPPED: {why}"))
            .with_ignored_flag(true),
        None => trial,
    }
}
