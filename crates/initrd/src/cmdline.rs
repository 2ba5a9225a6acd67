//! The words of the kernel's command line that concern the root image.

use std::path::PathBuf;

/// What the kernel's command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cmdline {
    /// `root=`: a device path such as `/dev/vda`.
    pub(crate) root: PathBuf,
    /// `rootfstype=`, comma separated there; default: what our images use.
    pub(crate) fstypes: Vec<String>,
    /// `rootflags=`: data for mount(2); default empty.
    pub(crate) rootflags: String,
    /// The last of `ro` and `rw`; default false.
    pub(crate) writable: bool,
    /// `init=`; default `/sbin/init`.
    pub(crate) init: PathBuf,
}

/// Why the command line cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CmdlineError {
    #[error("Cannot read /proc/cmdline")]
    Read(#[source] std::io::Error),
    #[error("The kernel command line names no root device: add root=/dev/vda (it is {0:?})")]
    NoRoot(String),
    #[error("Root device {0:?} is not a path: only root=/dev/... is supported with this initrd")]
    NotAPath(String),
}

impl Cmdline {
    /// Reads `/proc/cmdline`.
    pub(crate) fn read() -> Result<Self, CmdlineError> {
        let text = std::fs::read_to_string("/proc/cmdline").map_err(CmdlineError::Read)?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, CmdlineError> {
        let mut root = None;
        let mut cmdline = Self {
            root: PathBuf::new(),
            fstypes: ["erofs", "squashfs", "ext4"].map(str::to_owned).to_vec(),
            rootflags: String::new(),
            writable: false,
            init: PathBuf::from("/sbin/init"),
        };
        // As for the kernel: words after "--" belong to init, the last of equal keys wins.
        for word in text.split_ascii_whitespace().take_while(|w| *w != "--") {
            match word.split_once('=') {
                Some(("root", value)) => root = Some(value),
                Some(("rootfstype", value)) => {
                    cmdline.fstypes = value.split(',').map(str::to_owned).collect();
                }
                Some(("rootflags", value)) => value.clone_into(&mut cmdline.rootflags),
                Some(("init", value)) => cmdline.init = PathBuf::from(value),
                None if word == "ro" => cmdline.writable = false,
                None if word == "rw" => cmdline.writable = true,
                _ => {}
            }
        }
        let root = root.ok_or_else(|| CmdlineError::NoRoot(text.trim().to_owned()))?;
        if !root.starts_with('/') {
            return Err(CmdlineError::NotAPath(root.to_owned()));
        }
        cmdline.root = PathBuf::from(root);
        Ok(cmdline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults() {
        let cmdline = Cmdline::parse("console=ttyS0 root=/dev/vda ro quiet\n").unwrap();
        assert_eq!(cmdline.root, PathBuf::from("/dev/vda"));
        assert_eq!(cmdline.fstypes, ["erofs", "squashfs", "ext4"]);
        assert_eq!(cmdline.init, PathBuf::from("/sbin/init"));
        assert!(!cmdline.writable);
    }

    #[test]
    fn last_word_wins_and_init_arguments_are_not_ours() {
        let cmdline = Cmdline::parse(
            "root=/dev/vdb root=/dev/vda ro rw rootfstype=xfs,ext4 rootflags=noload init=/bin/x -- root=/dev/z ro",
        )
        .unwrap();
        assert_eq!(cmdline.root, PathBuf::from("/dev/vda"));
        assert_eq!(cmdline.fstypes, ["xfs", "ext4"]);
        assert_eq!(cmdline.rootflags, "noload");
        assert_eq!(cmdline.init, PathBuf::from("/bin/x"));
        assert!(cmdline.writable);
    }

    #[test]
    fn a_root_that_is_missing_or_not_a_path_is_refused() {
        assert!(matches!(
            Cmdline::parse("quiet"),
            Err(CmdlineError::NoRoot(_))
        ));
        assert!(matches!(
            Cmdline::parse("root=PARTUUID=1-2"),
            Err(CmdlineError::NotAPath(_))
        ));
    }
}
