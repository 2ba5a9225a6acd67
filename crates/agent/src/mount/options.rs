//! Mount options as text: which are flags of mount(2), which go to the file system.

use nix::mount::MsFlags;

/// Options taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// For mount(2).
    pub flags: MsFlags,
    /// For the file system, comma separated; none when there are none.
    pub data: Option<String>,
}

impl Options {
    /// Takes `options` apart; one element may hold several, separated by commas. A later option
    /// overrides an earlier one. `loop` (the host's way to mount a file; here it is a device) and
    /// notes for other programs (`x-...`) are dropped.
    #[must_use]
    pub fn parse<S: AsRef<str>>(options: &[S]) -> Self {
        let mut flags = MsFlags::empty();
        let mut data = Vec::new();
        for option in options.iter().flat_map(|option| option.as_ref().split(',')) {
            if let Some((set, clear)) = flag(option) {
                flags = (flags - clear) | set;
            } else if !is_note(option) {
                data.push(option);
            }
        }
        let data = (!data.is_empty()).then(|| data.join(","));
        Self { flags, data }
    }
}

fn is_note(option: &str) -> bool {
    matches!(
        option,
        "" | "defaults" | "loop" | "auto" | "noauto" | "nofail" | "_netdev"
    ) || option.starts_with("x-")
        || option.starts_with("X-")
}

/// What an option sets and clears.
fn flag(option: &str) -> Option<(MsFlags, MsFlags)> {
    let none = MsFlags::empty();
    let atime = MsFlags::MS_NOATIME | MsFlags::MS_RELATIME | MsFlags::MS_STRICTATIME;
    Some(match option {
        "ro" => (MsFlags::MS_RDONLY, none),
        "rw" => (none, MsFlags::MS_RDONLY),
        "nosuid" => (MsFlags::MS_NOSUID, none),
        "suid" => (none, MsFlags::MS_NOSUID),
        "nodev" => (MsFlags::MS_NODEV, none),
        "dev" => (none, MsFlags::MS_NODEV),
        "noexec" => (MsFlags::MS_NOEXEC, none),
        "exec" => (none, MsFlags::MS_NOEXEC),
        "sync" => (MsFlags::MS_SYNCHRONOUS, none),
        "async" => (none, MsFlags::MS_SYNCHRONOUS),
        "dirsync" => (MsFlags::MS_DIRSYNC, none),
        "noatime" => (MsFlags::MS_NOATIME, atime),
        "relatime" => (MsFlags::MS_RELATIME, atime),
        "strictatime" => (MsFlags::MS_STRICTATIME, atime),
        "atime" | "norelatime" | "nostrictatime" => (none, atime),
        "nodiratime" => (MsFlags::MS_NODIRATIME, none),
        "diratime" => (none, MsFlags::MS_NODIRATIME),
        "lazytime" => (MsFlags::MS_LAZYTIME, none),
        "silent" => (MsFlags::MS_SILENT, none),
        "bind" => (MsFlags::MS_BIND, none),
        "rbind" => (MsFlags::MS_BIND | MsFlags::MS_REC, none),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_data_are_separated() {
        let options = Options::parse(&["ro", "nosuid,nodev", "loop", "errors=remount-ro", "x-y"]);
        assert_eq!(
            options.flags,
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV
        );
        assert_eq!(options.data.as_deref(), Some("errors=remount-ro"));
    }

    #[test]
    fn the_last_option_wins() {
        let options = Options::parse(&["ro", "noatime", "rw", "relatime"]);
        assert_eq!(options.flags, MsFlags::MS_RELATIME);
        assert_eq!(options.data, None);
    }

    #[test]
    fn no_options() {
        let options = Options::parse::<&str>(&[]);
        assert_eq!(options.flags, MsFlags::empty());
        assert_eq!(options.data, None);
    }
}
