//! Turns Firecracker's kernel arguments into ones that QEMU's microvm boots with.
//!
//! Firecracker itself appends words (`pci=off`, the root device); those are appended here in the same
//! order. What differs from Firecracker is listed in [`BootArgs::changes`], for the log:
//!
//! - `noapic` is removed: without the IO-APIC the virtio-mmio devices of microvm have no interrupt.
//! - `tsc_early_khz=<host TSC>` and `tsc=reliable` are added: with ACPI on, microvm has no timer that the
//!   kernel could calibrate its TSC against, and the boot would hang.
//! - `cryptomgr.notests` is added: the kernel's tests of its own cryptography take a fifth of an emulated
//!   boot's processor time.
//! - `noreplace-smp` is added: the kernel otherwise rewrites its own code for a single processor, which takes
//!   a tenth of what is left of that time, for locked instructions that cost an emulator of one processor nothing.
//! - `possible_cpus=1` is added for a single processor: the second one that the machine has room for never comes.
//! - `nosoftlockup` and `rcupdate.rcu_cpu_stall_suppress=1` are added: the guest's time goes on while it is paused,
//!   which its watchdogs would take for a lockup. Firecracker tells its guests of a pause through kvmclock.
//!
//! `reboot=k` stays as it is: the machine has an i8042 controller, as Firecracker's has.

/// Kernel arguments used when a boot source names none (API description, `BootSource.boot_args`).
pub const DEFAULT: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";

/// Longest command line in bytes, the terminating NUL included.
pub const MAX_SIZE: usize = 2048;

/// The drive that holds the root file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root<'a> {
    /// Partition to mount; `None` means the whole first drive, `/dev/vda`.
    pub partuuid: Option<&'a str>,
    /// Whether the drive is attached read-only.
    pub read_only: bool,
}

/// The command line for the guest, and what was done to it.
#[derive(Debug, PartialEq, Eq)]
pub struct BootArgs {
    /// What the kernel gets.
    pub cmdline: String,
    /// One sentence for each deviation from what Firecracker would have passed.
    pub changes: Vec<String>,
}

/// Why a command line is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootArgsError {
    /// Longer than Firecracker accepts, before anything is added.
    #[error("Invalid cmdline capacity provided.")]
    Capacity,
    /// Longer than the kernel accepts, with what is added.
    #[error("Command line too large: {0} bytes, at most {max} are allowed.", max = MAX_SIZE - 1)]
    TooLarge(usize),
    /// It ends in the middle for a kernel.
    #[error("Null terminator detected in the command line structure.")]
    Nul,
}

/// Checks what Firecracker checks when a boot source is configured: the length, and no character.
///
/// # Errors
/// Too long.
pub fn check(args: &str) -> Result<(), BootArgsError> {
    if args.len() >= MAX_SIZE {
        return Err(BootArgsError::Capacity);
    }
    Ok(())
}

/// Makes the guest's command line from the user's arguments. The order of the words that stay is kept;
/// words are added before `--`, after which everything belongs to init. `tsc_khz` is the host's, `vcpus` how many
/// processors the guest has.
///
/// # Errors
/// The result is longer than [`MAX_SIZE`], or has a NUL.
pub fn rewrite(
    args: &str,
    root: Option<Root<'_>>,
    tsc_khz: u64,
    vcpus: u8,
) -> Result<BootArgs, BootArgsError> {
    let mut words: Vec<String> = args.split_ascii_whitespace().map(str::to_owned).collect();
    let for_init = match words.iter().position(|word| word == "--") {
        Some(at) => words.split_off(at),
        None => Vec::new(),
    };
    let mut changes = Vec::new();

    let before = words.len();
    words.retain(|word| word != "noapic");
    if words.len() != before {
        changes.push("removed noapic: virtio devices need the IO-APIC here".to_owned());
    }

    words.push("pci=off".to_owned());
    if let Some(root) = root {
        words.push(match root.partuuid {
            Some(partuuid) => format!("root=PARTUUID={partuuid}"),
            None => "root=/dev/vda".to_owned(),
        });
        words.push(if root.read_only { "ro" } else { "rw" }.to_owned());
    }

    let no_timer = "there is no timer to calibrate the TSC against";
    let pause = "a pause is no lockup";
    let slow = "what it turns off is slow under emulation";
    let absent = "a second processor never comes";
    let single = (vcpus == 1).then(|| ("possible_cpus=", "1".to_owned(), absent));
    let all = [
        ("tsc_early_khz=", tsc_khz.to_string(), no_timer),
        ("tsc=", "reliable".to_owned(), no_timer),
        ("cryptomgr.notests", String::new(), slow),
        ("noreplace-smp", String::new(), slow),
        ("nosoftlockup", String::new(), pause),
        ("rcupdate.rcu_cpu_stall_suppress=", "1".to_owned(), pause),
    ];
    for (key, value, why) in all.into_iter().chain(single) {
        if words.iter().any(|word| word.starts_with(key)) {
            continue;
        }
        let word = format!("{key}{value}");
        changes.push(format!("added {word}: {why}"));
        words.push(word);
    }

    words.extend(for_init);
    let cmdline = words.join(" ");
    if cmdline.contains('\0') {
        return Err(BootArgsError::Nul);
    }
    if cmdline.len() >= MAX_SIZE {
        return Err(BootArgsError::TooLarge(cmdline.len()));
    }
    Ok(BootArgs { cmdline, changes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cmdline(args: &str, root: Option<Root<'_>>) -> String {
        rewrite(args, root, 2_600_000, 2).unwrap().cmdline
    }

    #[test]
    fn the_originals_default_arguments() {
        let root = Root {
            partuuid: None,
            read_only: true,
        };
        let made = rewrite(
            "console=ttyS0 noapic reboot=k panic=1 pci=off nomodules rw",
            Some(root),
            2_596_152,
            1,
        )
        .unwrap();
        assert_eq!(
            made.cmdline,
            "console=ttyS0 reboot=k panic=1 pci=off nomodules rw pci=off root=/dev/vda ro \
             tsc_early_khz=2596152 tsc=reliable cryptomgr.notests noreplace-smp \
             nosoftlockup rcupdate.rcu_cpu_stall_suppress=1 possible_cpus=1"
        );
        assert_eq!(made.changes.len(), 8);
    }

    #[test]
    fn partuuid_and_write() {
        let root = Root {
            partuuid: Some("0eaa91a0-01"),
            read_only: false,
        };
        assert_eq!(
            cmdline("a", Some(root)),
            "a pci=off root=PARTUUID=0eaa91a0-01 rw tsc_early_khz=2600000 tsc=reliable \
             cryptomgr.notests noreplace-smp nosoftlockup rcupdate.rcu_cpu_stall_suppress=1"
        );
    }

    #[test]
    fn the_users_own_words_win_and_init_keeps_its_own() {
        assert_eq!(
            cmdline(
                "tsc=unstable  tsc_early_khz=1 cryptomgr.notests=0 -- noapic x",
                None
            ),
            "tsc=unstable tsc_early_khz=1 cryptomgr.notests=0 pci=off noreplace-smp nosoftlockup \
             rcupdate.rcu_cpu_stall_suppress=1 -- noapic x"
        );
    }

    #[test]
    fn only_the_whole_word_goes() {
        assert!(cmdline("noapicx xnoapic", None).starts_with("noapicx xnoapic "));
    }

    #[test]
    fn limits() {
        assert_eq!(check("a\tb ä \0"), Ok(()));
        assert_eq!(check(&"a".repeat(2048)), Err(BootArgsError::Capacity));
        assert_eq!(check(&"a".repeat(2047)), Ok(()));
        assert_eq!(rewrite("a\0b", None, 1, 1), Err(BootArgsError::Nul));
        assert!(rewrite(&"a".repeat(2047), None, 1, 1).is_err());
    }
}
