//! Why a guest died, read from its console.

/// What the console says about a guest that ended before its agent answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The kernel found no root device or could not mount it.
    NoRootDevice(String),
    /// The root file system has no usable init, that is, no agent.
    NoInit(String),
    /// The guest has too little memory.
    OutOfMemory(String),
    /// Our initrd gave up; its own words.
    Initrd(String),
    /// The agent gave up, or init (the agent) died.
    Agent(String),
    /// Another kernel panic.
    Panic(String),
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoRootDevice(line) => write!(
                f,
                "the guest kernel cannot mount its root device; is the root image intact? ({line})"
            ),
            Self::NoInit(line) => write!(
                f,
                "the root image has no agent that the kernel can start as init ({line})"
            ),
            Self::OutOfMemory(line) => {
                write!(f, "the guest ran out of memory; give it more ({line})")
            }
            Self::Initrd(line) => write!(f, "the initrd gave up: {line}"),
            Self::Agent(line) => write!(f, "the agent in the guest died: {line}"),
            Self::Panic(line) => write!(f, "the guest kernel panicked: {line}"),
        }
    }
}

/// Prefix of our initrd's messages on the console.
const INITRD: &str = "firecracker-initrd: ";
/// Prefix of our agent's messages on the console.
const AGENT: &str = "firecracker-agent: ";
/// How the kernel's message of a panic begins.
pub const PANIC: &str = "Kernel panic - not syncing: ";

/// Reads the cause of a guest's end from its last console lines; `None` when they tell nothing.
#[must_use]
pub fn diagnose(console: &[String]) -> Option<Cause> {
    let find = |words: &[&str]| {
        let line = console
            .iter()
            .find(|l| words.iter().any(|word| l.contains(word)))?;
        Some(strip_timestamp(line).to_owned())
    };
    if let Some(line) = find(&["System is deadlocked on memory", "Out of memory"]) {
        return Some(Cause::OutOfMemory(line));
    }
    if find(&["Initramfs unpacking failed: write error"]).is_some() {
        return Some(Cause::OutOfMemory(
            "the initrd does not fit into the guest's memory".to_owned(),
        ));
    }
    if let Some(line) = last_after(console, INITRD) {
        return Some(Cause::Initrd(line));
    }
    if let Some(line) = find(&["Unable to mount root fs", "Cannot open root device"]) {
        return Some(Cause::NoRootDevice(line));
    }
    if let Some(line) = find(&["No working init found", "Requested init"]) {
        return Some(Cause::NoInit(line));
    }
    if let Some(line) = last_after(console, AGENT) {
        return Some(Cause::Agent(line));
    }
    if let Some(line) = find(&["Attempted to kill init"]) {
        return Some(Cause::Agent(line));
    }
    last_after(console, PANIC).map(Cause::Panic)
}

/// What follows `prefix` in the last line that has it.
fn last_after(console: &[String], prefix: &str) -> Option<String> {
    let line = console.iter().rev().find_map(|l| l.split_once(prefix))?;
    Some(line.1.trim().to_owned())
}

/// A kernel message without `[    1.234567] `.
fn strip_timestamp(line: &str) -> &str {
    let line = line.trim();
    match line.strip_prefix('[').and_then(|l| l.split_once("] ")) {
        Some((_, message)) => message,
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(lines: &str) -> Option<Cause> {
        diagnose(&lines.lines().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn kernel_messages() {
        assert!(matches!(
            cause(
                "[    1.0] VFS: Cannot open root device \"vda\" or unknown-block(0,0): error -6\n\
                 [    1.1] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"
            ),
            Some(Cause::NoRootDevice(line)) if line.starts_with("VFS: Cannot open")
        ));
        assert!(matches!(
            cause(
                "Kernel panic - not syncing: No working init found.  Try passing init= option to kernel."
            ),
            Some(Cause::NoInit(_))
        ));
        assert!(matches!(
            cause("[ 2.0] Kernel panic - not syncing: System is deadlocked on memory"),
            Some(Cause::OutOfMemory(_))
        ));
        assert!(matches!(
            cause("[ 2.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100"),
            Some(Cause::Agent(_))
        ));
        assert_eq!(
            cause("[ 2.0] Kernel panic - not syncing: stack-protector: corrupted"),
            Some(Cause::Panic("stack-protector: corrupted".to_owned()))
        );
        assert_eq!(cause("[ 0.1] Linux version 6.1"), None);
    }

    #[test]
    fn our_own_messages_win_over_the_panic_that_follows() {
        assert_eq!(
            cause(
                "firecracker-initrd: The root device /dev/vda did not appear\n\
                 [ 2.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100"
            ),
            Some(Cause::Initrd(
                "The root device /dev/vda did not appear".to_owned()
            ))
        );
    }
}
