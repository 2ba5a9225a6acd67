//! One conformance suite for every VMM that speaks Firecracker's API.
//!
//! A VMM is driven through its command line, its API and its guest's console only, and what is expected is what
//! Firecracker 1.15 does. The environment names the VMMs ([`fc_conformance::subject`]); what a machine or a VMM
//! lacks makes its cases `ignored`, with the reason in the test's kind. Where `firecracker-tcg` is known to
//! differ, or another version of Firecracker to, [`DIFFERENCES`] says so, and that counts as skipped too.

mod before_start;
mod command_line;
mod configuration;
mod devices;
mod drives;
mod ends;
mod http;
mod metadata;
mod output;
mod pause;
mod requests;
mod running;
mod speed;
mod typed;
mod vsock;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fc_conformance::subject::{GuestFiles, Subject};
use libtest_mimic::{Arguments, Trial};

use running::Guest;

/// A case that starts what it needs, without a guest.
type OnBinary = fn(&Path);
/// A case on the running guest that those of its kind share, in their order.
type OnGuest = fn(&mut Guest);
/// A case that boots and ends a guest of its own.
type OnFiles = fn(&Path, &GuestFiles);

/// A case that a VMM is known not to pass.
struct Difference {
    vmm: &'static str,
    /// What its version starts with.
    version: &'static str,
    case: &'static str,
    why: &'static str,
}

/// All of them. What is expected of the cases is what Firecracker 1.15 does.
const DIFFERENCES: &[Difference] = &[
    Difference {
        vmm: "firecracker",
        version: "1.16",
        case: "running::another_drive_is_refused",
        why: "1.16 adds drives to a running VM, if it has PCI",
    },
    Difference {
        vmm: "firecracker",
        version: "1.16.0",
        case: "pause::vsock_works_afterwards",
        why: GATE,
    },
    Difference {
        vmm: "firecracker",
        version: "1.16.1",
        case: "pause::vsock_works_afterwards",
        why: GATE,
    },
];

const GATE: &str = "a plain resume shuts the guest's vsock: it waits for the guest to acknowledge a reset that was never \
                    told (fixed after 1.16.1)";

fn main() {
    let mut args = Arguments::from_args();
    // The cases on the running guest build on each other, and guests under emulation are slow enough alone.
    args.test_threads = Some(1);
    let test_program = std::env::current_exe().expect("a program knows its path");
    let subjects = [Subject::emulated(&test_program), Subject::real()];
    let trials = subjects
        .into_iter()
        .flat_map(|subject| trials(subject, args.list));
    libtest_mimic::run(&args, trials.collect()).exit();
}

fn trials(subject: Subject, list_only: bool) -> Vec<Trial> {
    let binary = subject.binary.clone();
    let guest = subject.binary.clone().and(subject.guest.clone());
    let offers = match &binary {
        Ok(binary) if !list_only => devices::Offers::ask(binary),
        Ok(_) => devices::Offers::unknown("only listed"),
        Err(why) => devices::Offers::unknown(why),
    };
    let shared: Arc<Mutex<Option<Guest>>> = Arc::default();
    let mut trials = Vec::new();

    let without_guest = [
        command_line::CASES,
        http::CASES,
        requests::CASES,
        configuration::CASES,
        before_start::CASES,
        metadata::CASES,
        output::CASES,
        typed::CASES,
    ];
    for (name, case) in without_guest.into_iter().flatten().copied() {
        let needs = binary.clone().map(drop);
        let binary = binary.clone().unwrap_or_default();
        trials.push(trial(&subject, name, needs, move || case(&binary)));
    }
    let before_start = [devices::BEFORE_START, metadata::BEFORE_START];
    for (name, kind, case) in before_start.into_iter().flatten().copied() {
        let binary = binary.clone().unwrap_or_default();
        let needs = offers.of(kind);
        trials.push(trial(&subject, name, needs, move || case(&binary)));
    }

    let on_guest = [running::CASES, drives::CASES, vsock::CASES]
        .into_iter()
        .flatten()
        .map(|(name, case)| (*name, guest.clone().map(drop), *case));
    let on_devices = [devices::RUNNING, metadata::RUNNING];
    let on_devices = on_devices.into_iter().flatten().map(|(name, kind, case)| {
        let needs = guest.clone().map(drop).and(offers.of(*kind));
        (*name, needs, *case)
    });
    let speed = speed::CASES.iter().map(|(name, case)| {
        let promised = match subject.name {
            "firecracker-tcg" => guest.clone().map(drop),
            _ => Err("only firecracker-tcg promises it".into()),
        };
        (*name, promised, *case)
    });
    let last = pause::CASES
        .iter()
        .chain(running::LAST)
        .map(|(name, case)| (*name, guest.clone().map(drop), *case));
    for (name, needs, case) in on_guest.chain(on_devices).chain(speed).chain(last) {
        let (shared, guest) = (Arc::clone(&shared), guest.clone());
        let (binary, offers) = (binary.clone().unwrap_or_default(), offers.clone());
        trials.push(trial(&subject, name, needs, move || {
            // A case that failed leaves the guest to the others.
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let files = guest.unwrap_or_else(|why| panic!("{why}"));
            let guest = shared.get_or_insert_with(|| Guest::boot(&binary, &files, &offers));
            case(guest);
        }));
    }

    let keys = guest.clone().and_then(|guest| guest.keyboard);
    let ends = ends::CASES
        .iter()
        .map(|case| (case, guest.clone().map(drop)));
    let by_keys = ends::BY_KEYS.iter().map(|case| (case, keys.clone()));
    for (&(name, case), needs) in ends.chain(by_keys) {
        let (binary, guest) = (binary.clone().unwrap_or_default(), guest.clone());
        trials.push(trial(&subject, name, needs, move || {
            case(&binary, &guest.unwrap_or_else(|why| panic!("{why}")));
        }));
    }
    trials
}

fn trial(
    subject: &Subject,
    name: &str,
    needs: Result<(), String>,
    case: impl FnOnce() + Send + 'static,
) -> Trial {
    let differs = DIFFERENCES
        .iter()
        .find(|it| {
            it.case == name && it.vmm == subject.name && subject.version.starts_with(it.version)
        })
        .map(|it| format!("it differs: {}", it.why));
    let skip = differs.or(needs.err());
    let kind = match &skip {
        Some(why) => format!("SKIPPED: {}: {why}", subject.name),
        None => subject.name.to_owned(),
    };
    Trial::test(name, move || {
        case();
        Ok(())
    })
    .with_kind(kind)
    .with_ignored_flag(skip.is_some())
}

/// A directory for a VMM, and the path of a file of `size` bytes, all `byte`, in it.
fn file(directory: &Path, name: &str, size: usize, byte: u8) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, vec![byte; size]).expect("a file can be written");
    path
}
