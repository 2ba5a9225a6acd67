//! The same tests on a host that has only cgroup v2, and all capabilities: a VM's guest, booted once for all of them.
//! The guest runs this program and writes its output to a drive; each test there is a test here.

mod image;

use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use fc_client::api::{BootSource, Drive, MachineConfig};
use fc_client::{VmmCommand, VmmEnd};
use libtest_mimic::{Failed, Trial};

use crate::host::{self, Runtime};
use crate::{Test, boot, cost, seccomp};

/// How long the guest may take for all tests. On a machine that does nothing else it is half a minute per runtime.
const BOUND: Duration = Duration::from_secs(1500);
/// Room for the guest's output, in bytes.
const OUTPUT: u64 = 4 << 20;
/// Without PCI and without kernel messages; ends as soon as it panics.
const BOOT_ARGUMENTS: &str = "console=ttyS0 quiet reboot=k panic=-1 pci=off 8250.nr_uarts=1";

/// What the guest's run of this program printed, or why there is nothing.
static OUTPUT_OF_GUEST: LazyLock<Result<String, String>> = LazyLock::new(|| host::block_on(run()));

/// A trial for each test that makes sense in the guest, with each runtime that this host has for it.
pub fn trials(runtimes: &[Runtime], tests: &[(&'static str, Test)]) -> Vec<Trial> {
    let missing = missing();
    let mut trials = Vec::new();
    for runtime in runtimes {
        let tests = tests.iter().filter(|(name, _)| runs_in_guest(name));
        for (name, _) in tests {
            let inner = format!("{}::{name}", runtime.name());
            let missing = missing.clone().or_else(|| runtime.missing());
            let trial = Trial::test(format!("cgroup_v2::{inner}"), move || result(&inner));
            trials.push(match missing {
                Some(why) => trial
                    .with_kind(format!("SKIPPED: {why}"))
                    .with_ignored_flag(true),
                None => trial,
            });
        }
    }
    trials
}

/// Not what boots a VM, is about time, which an emulated processor has another of, or is the same with any cgroups.
fn runs_in_guest(name: &str) -> bool {
    let elsewhere = [boot::TESTS, cost::TESTS, cost::TIME_TESTS, seccomp::TESTS];
    elsewhere.concat().iter().all(|(other, _)| *other != name)
}

/// Why the guest cannot run here.
fn missing() -> Option<String> {
    boot::missing().or_else(|| {
        let kernel = std::env::var_os("FC_TEST_KERNEL_DIR");
        kernel.is_none().then(|| {
            "FC_TEST_KERNEL_DIR does not name an unpacked Debian kernel package".to_owned()
        })
    })
}

/// What became of the guest's test `name`; one that was skipped there has failed.
fn result(name: &str) -> Result<(), Failed> {
    let output = OUTPUT_OF_GUEST.as_ref().map_err(|error| error.clone())?;
    let line = output.lines().find(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("test") && words.any(|word| word == name)
    });
    if line.is_some_and(|line| line.ends_with("... ok")) {
        return Ok(());
    }
    let begin = format!("---- {name} ----");
    let message = output.split_once(&begin).map(|(_, rest)| {
        let end = rest.find("\n----").unwrap_or(rest.len());
        &rest[..end]
    });
    let line = line.unwrap_or("The guest did not run this test");
    // Quoted line by line: it looks like this program's own output, which others count.
    let said = message.unwrap_or(output).lines();
    let quoted: Vec<String> = said.map(|said| format!("guest: {said}")).collect();
    Err(format!("{line}\n{}", quoted.join("\n")).into())
}

/// Boots the guest and waits for its end.
async fn run() -> Result<String, String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let files = image::make(dir.path())?;
    let output = dir.path().join("output");
    let made = fs::File::create(&output).and_then(|file| file.set_len(OUTPUT));
    made.map_err(|error| error.to_string())?;
    let end = boot(dir.path(), &files, &output).await?;
    let text = fs::read_to_string(&output).map_err(|error| error.to_string())?;
    match text.split_once('\0') {
        Some((text, _)) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("The guest printed nothing: {end}")),
    }
}

async fn boot(dir: &Path, files: &image::Files, output: &Path) -> Result<VmmEnd, String> {
    let command = VmmCommand::new(boot::program(), "cgroup-v2", dir);
    let vmm = fc_client::Vmm::launch(command).await;
    let vmm = vmm.map_err(|error| error.to_string())?;
    let text = |path: &Path| path.display().to_string();
    let api = vmm.client();
    let configured = async {
        api.put_machine_config(&MachineConfig::new(2, 1024)).await?;
        api.put_boot_source(&BootSource {
            kernel_image_path: text(&boot::path("FC_GUEST_DIR", "default-vmlinux.bin")),
            initrd_path: Some(text(&files.initrd)),
            boot_args: Some(BOOT_ARGUMENTS.to_owned()),
        })
        .await?;
        let root = Drive {
            is_root_device: true,
            ..Drive::new("root", text(&files.root), false)
        };
        api.put_drive(&root).await?;
        api.put_drive(&Drive::new("output", text(output), false))
            .await?;
        api.put_drive(&Drive::new("shm", text(&files.shm), false))
            .await?;
        api.start_instance().await
    };
    configured.await.map_err(|error| error.to_string())?;
    match tokio::time::timeout(BOUND, vmm.exited()).await {
        Ok(end) => Ok(end),
        Err(_) => Err(format!(
            "The guest did not end within {BOUND:?}; its console: {:?}",
            vmm.console()
        )),
    }
}
