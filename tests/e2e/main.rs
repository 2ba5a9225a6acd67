//! End-to-end tests: stock containerd, the installed shim, real VMs.
//!
//! They use public interfaces only: `ctr`, the configuration file, files the
//! documentation names. What a test needs and the machine lacks makes it
//! `ignored`, with the reason in its name's kind, never passed.
//!
//! Environment (set by `make test`): `FC_BIN_DIR` our binaries, `FC_GUEST_DIR`
//! output of `firecracker-image`, `FC_CONTAINERD_NEWER` directory with a
//! containerd newer than the machine's.

mod control;
mod ctl;
mod daemon;
mod drive_locks;
mod drives;
mod drives_load;
mod drives_vm;
mod errors;
mod exec;
mod fixture;
mod fs_image;
mod image_volumes;
mod jail;
mod liar;
mod lifecycle;
mod own_mounts;
mod quarantine;
mod reconnect;
mod rootfs;
mod run;
mod shared_vm;
mod tap;
mod task_api;
mod volumes;
mod write_back;

use std::sync::Arc;

use libtest_mimic::{Arguments, Conclusion, Trial};

use fixture::{Flavor, Instance, Setup};

/// A test against a running instance with the default configuration.
type OnInstance = fn(&Instance);
/// A test that starts instances of its own.
type OnSetup = fn(&Setup, &Flavor);

fn main() {
    let mut args = Arguments::from_args();
    // Two cores: more VMs at once only make each of them slower.
    args.test_threads.get_or_insert(2);
    let setup = match Setup::find() {
        Ok(setup) => Arc::new(setup),
        Err(missing) => return report_skipped(&args, &missing),
    };
    let flavors = setup.flavors();
    let mut trials = Vec::new();
    let instances = fixture::Shared::default();
    for (i, flavor) in flavors.iter().enumerate() {
        let everywhere = run::SMOKE.iter().chain(exec::SMOKE).chain(rootfs::SMOKE);
        let first_only = run::TESTS
            .iter()
            .chain(exec::TESTS)
            .chain(rootfs::TESTS)
            .chain(own_mounts::TESTS)
            .chain(shared_vm::TESTS)
            .chain(drives::TESTS)
            .chain(drives_load::TESTS)
            .chain(liar::TESTS)
            .chain(volumes::TESTS);
        let chosen: Vec<&(&str, OnInstance)> = if i == 0 {
            everywhere.chain(first_only).collect()
        } else {
            everywhere.collect()
        };
        for (name, test) in chosen {
            let (setup, flavor) = (Arc::clone(&setup), flavor.clone());
            let (instances, test) = (instances.clone(), *test);
            trials.push(trial(name, &flavor.name.clone(), move || {
                test(&instances.get(&setup, &flavor));
            }));
        }
        let own = errors::TESTS
            .iter()
            .chain(lifecycle::TESTS)
            .chain(control::TESTS)
            .chain(reconnect::TESTS)
            .chain(ctl::TESTS)
            .chain(rootfs::OWN)
            .chain(drives::OWN)
            .chain(drive_locks::OWN)
            .chain(quarantine::OWN)
            .chain(image_volumes::OWN)
            .chain(jail::OWN)
            .filter(|_| i == 0)
            .chain(rootfs::NEWER.iter().filter(|_| flavor.prefix.is_some()))
            .chain(rootfs::NEWER_2_1.iter().filter(|_| has_erofs(flavor)));
        for (name, test) in own {
            let (setup, flavor, test) = (Arc::clone(&setup), flavor.clone(), *test);
            trials.push(trial(name, &flavor.name.clone(), move || {
                test(&setup, &flavor)
            }));
        }
    }
    if flavors.iter().all(|flavor| flavor.prefix.is_none()) {
        for (name, _) in rootfs::NEWER {
            trials.push(skipped(name, "no newer containerd"));
        }
    }
    if !flavors.iter().any(has_erofs) {
        for (name, _) in rootfs::NEWER_2_1 {
            trials.push(skipped(name, "no containerd 2.1 or newer"));
        }
    }
    let conclusion = libtest_mimic::run(&args, trials);
    drop(instances.end());
    let left = setup.leftovers();
    // Its directory goes with it; what follows ends the process.
    drop(setup);
    if left.is_empty() || args.list {
        conclusion.exit();
    }
    println!("left behind by the tests:\n  {}", left.join("\n  "));
    Conclusion {
        num_failed: conclusion.num_failed + 1,
        ..conclusion
    }
    .exit();
}

/// Whether the containerd has the erofs snapshotter: from 2.1 on.
fn has_erofs(flavor: &Flavor) -> bool {
    let version = flavor.name.split_whitespace().nth(1).unwrap_or_default();
    let mut numbers = version.split('.').map(str::parse);
    let (major, minor): (Option<u32>, Option<u32>) = (
        numbers.next().and_then(Result::ok),
        numbers.next().and_then(Result::ok),
    );
    (major, minor) >= (Some(2), Some(1))
}

/// Tests that need programs not every machine has.
const NEEDS: &[(&str, &[&str])] = &[
    ("rootfs::of_any_mounts", &fs_image::MAKERS),
    ("drives::mounts_of_any_type_at_any_path", &fs_image::MAKERS),
];

fn trial(name: &str, kind: &str, test: impl FnOnce() + Send + 'static) -> Trial {
    let needed = NEEDS.iter().find(|(test, _)| *test == name);
    let mut needed = needed.iter().flat_map(|(_, programs)| programs.iter());
    // Started without arguments they say what they want, and end.
    let missing = |program: &&&str| std::process::Command::new(program).output().is_err();
    if let Some(program) = needed.find(missing) {
        return skipped(name, &format!("{program} is not installed"));
    }
    Trial::test(name, move || {
        test();
        Ok(())
    })
    .with_kind(kind)
}

fn skipped(name: &str, why: &str) -> Trial {
    Trial::test(name, || Ok(()))
        .with_kind(format!("SKIPPED: {why}"))
        .with_ignored_flag(true)
}

fn report_skipped(args: &Arguments, missing: &str) {
    let names = run::SMOKE
        .iter()
        .chain(run::TESTS)
        .chain(exec::SMOKE)
        .chain(exec::TESTS)
        .chain(rootfs::SMOKE)
        .chain(rootfs::TESTS)
        .chain(own_mounts::TESTS)
        .chain(shared_vm::TESTS)
        .chain(volumes::TESTS)
        .chain(drives::TESTS)
        .chain(drives_load::TESTS)
        .chain(liar::TESTS)
        .map(|(name, _)| name)
        .chain(errors::TESTS.iter().map(|(name, _)| name))
        .chain(lifecycle::TESTS.iter().map(|(name, _)| name))
        .chain(control::TESTS.iter().map(|(name, _)| name))
        .chain(reconnect::TESTS.iter().map(|(name, _)| name))
        .chain(ctl::TESTS.iter().map(|(name, _)| name))
        .chain(rootfs::OWN.iter().map(|(name, _)| name))
        .chain(drives::OWN.iter().map(|(name, _)| name))
        .chain(drive_locks::OWN.iter().map(|(name, _)| name))
        .chain(quarantine::OWN.iter().map(|(name, _)| name))
        .chain(image_volumes::OWN.iter().map(|(name, _)| name))
        .chain(jail::OWN.iter().map(|(name, _)| name))
        .chain(rootfs::NEWER_2_1.iter().map(|(name, _)| name))
        .chain(rootfs::NEWER.iter().map(|(name, _)| name));
    let trials = names.map(|name| skipped(name, missing)).collect();
    libtest_mimic::run(args, trials).exit();
}
