//! Running the programs that make filesystems in files.

use std::env;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Lines of a program's output that an error quotes.
const QUOTED_LINES: usize = 5;
/// Longest file name in bytes that any mkfs.erofs stores: 1.5 loses the last byte of a longer one.
const EROFS_NAME: usize = 254;

/// Finds a program: a path as it is; a bare name looked up in PATH and where distributions put programs
/// for administrators. `package` is what to install if there is none.
///
/// # Errors
/// When a bare name is found nowhere.
pub fn find(program: &Path, package: &'static str) -> Result<PathBuf, MkfsError> {
    if program.components().count() > 1 {
        return Ok(program.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        // containerd may run with a PATH without the administrator's programs.
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| MkfsError::NotFound {
            program: program.into(),
            package,
        })
}

/// The command that writes the directory `content` to the existing file `image` as EROFS (erofs-utils 1.5
/// or newer): owners, modes, times, extended attributes and devices as they are, nothing that differs
/// between two runs. `keep_holes` stores files with holes as such, at the price of an index that costs
/// readers some speed.
pub fn erofs(program: &Path, keep_holes: bool, image: &Path, content: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .arg("--quiet")
        .arg("--preserve-mtime")
        .arg("-U00000000-0000-0000-0000-000000000000");
    if keep_holes {
        // Only chunked files can have holes.
        command.arg("--chunksize=4096");
    }
    command.arg(image).arg(content);
    command
}

/// The command that makes an ext4 filesystem with the content of the directory `content` in the existing
/// file `image` (e2fsprogs 1.47 or newer), which has its size and reads as zeros. `features` as for
/// mkfs.ext4's `-O`.
pub fn ext4(program: &Path, features: &str, image: &Path, content: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-q", "-F", "-m", "0", "-b", "4096", "-O", features])
        // A new file reads as zeros: neither mkfs nor, later, a guest's kernel needs to clear the inode tables.
        .args([
            "-E",
            "lazy_itable_init=1,assume_storage_prezeroed=1,nodiscard",
        ])
        .arg("-d")
        .arg(content)
        .arg(image);
    command
}

/// Makes the directory `from` visible at the directory `to`, which exists, to the program of `command` only.
///
/// # Errors
/// When a path has a zero byte. That mounting fails is told when the command is run.
pub fn bind_for(command: &mut Command, from: &Path, to: &Path) -> io::Result<()> {
    let from = CString::new(from.as_os_str().as_bytes())?;
    let to = CString::new(to.as_os_str().as_bytes())?;
    let enter = move || {
        // SAFETY: after fork there is one thread only, whose file descriptors stay as they are.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change(c"/", private)?;
        Ok(mount_bind(from.as_c_str(), to.as_c_str())?)
    };
    // SAFETY: between fork and exec only unshare(2) and mount(2) are called, with arguments that exist
    // already: async-signal-safe.
    unsafe {
        command.pre_exec(enter);
    }
    Ok(())
}

/// Runs a command that [`erofs`] made; `content` is where this process sees the directory.
///
/// # Errors
/// As [`run`]'s; and when a file's name is longer than the program can store.
pub fn run_erofs(command: &mut Command, content: &Path) -> Result<(), MkfsError> {
    let unreadable = |error| MkfsError::Content(content.into(), error);
    let long = long_name(content).map_err(unreadable)?;
    let refused = |long: LongName| {
        let below = long.path.strip_prefix(content).unwrap_or(&long.path);
        MkfsError::LongName(below.to_owned())
    };
    if let Some(long) = long.as_ref().filter(|long| long.doubled) {
        // Such a program finds the other file twice, and says nothing.
        return Err(refused(long.clone()));
    }
    run(command).map_err(|error| match (long, error) {
        (Some(long), MkfsError::Failed { .. }) => refused(long),
        (_, error) => error,
    })
}

/// A file whose name is longer than [`EROFS_NAME`].
#[derive(Debug, Clone)]
struct LongName {
    path: PathBuf,
    /// Whether what is left of the name is the name of a file beside it.
    doubled: bool,
}

/// The file below `root` with too long a name that makes the most trouble.
fn long_name(root: &Path) -> io::Result<Option<LongName>> {
    let mut long = None;
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let entries = match fs::read_dir(&dir) {
            // Removed since it was listed: a plain directory may change.
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir != root => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            }
            let name = entry.file_name();
            if let Some(left) = name.as_bytes().get(..EROFS_NAME)
                && name.len() > EROFS_NAME
            {
                let path = entry.path();
                let beside = dir.join(OsStr::from_bytes(left));
                let doubled = fs::symlink_metadata(beside).is_ok();
                if doubled {
                    return Ok(Some(LongName { path, doubled }));
                }
                long = Some(LongName { path, doubled });
            }
        }
    }
    Ok(long)
}

/// Runs a program to its end; it does not outlive the calling thread.
///
/// # Errors
/// When it cannot be executed or fails; the error quotes what it said.
pub fn run(command: &mut Command) -> Result<(), MkfsError> {
    command.stdin(Stdio::null());
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    let end = command
        .output()
        .map_err(|error| MkfsError::Program(command.get_program().into(), error))?;
    if end.status.success() {
        return Ok(());
    }
    Err(MkfsError::Failed {
        program: command.get_program().into(),
        status: end.status,
        output: last_lines(&[end.stdout, end.stderr].concat()),
    })
}

/// The end of a program's output, for an error.
fn last_lines(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(QUOTED_LINES)..].join("; ")
}

/// Why a program made no filesystem.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MkfsError {
    /// There is no such program.
    #[error("The program {program:?} is not in PATH; install {package}")]
    NotFound {
        /// Its name.
        program: PathBuf,
        /// The package that usually has it.
        package: &'static str,
    },
    /// What is to be stored cannot be looked at.
    #[error("The content of {0:?} cannot be listed")]
    Content(PathBuf, #[source] io::Error),
    /// A file whose name mkfs.erofs does not store; its path below the directory to be stored.
    #[error(
        "The name of {0:?} has more than {EROFS_NAME} bytes, which the installed mkfs.erofs does not store: \
         make it shorter, or install newer erofs-utils"
    )]
    LongName(PathBuf),
    /// The program cannot be executed.
    #[error("The program {0:?} cannot be run")]
    Program(PathBuf, #[source] io::Error),
    /// The program failed.
    #[error(
        "{program:?} ended with {status} (erofs-utils 1.5, e2fsprogs 1.47 or newer are needed): {output}"
    )]
    Failed {
        /// Its path.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// The last lines it wrote.
        output: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_looked_up() {
        let found = |name: &str| find(Path::new(name), "some-package");
        assert!(found("sh").unwrap().is_absolute());
        assert_eq!(found("./sh").unwrap(), Path::new("./sh"));
        let error = found("no-such-program").unwrap_err().to_string();
        assert!(error.contains("install some-package"), "{error}");
    }

    #[test]
    fn a_name_that_is_too_long_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("dir");
        fs::create_dir(&deep).unwrap();
        let long = deep.join("x".repeat(EROFS_NAME + 1));
        fs::write(&long, "").unwrap();
        let error = |program: &str| {
            let ended = run_erofs(&mut Command::new(program), dir.path());
            ended.err().map(|error| error.to_string())
        };
        // A program that can is not stopped; what another one says is not the reason.
        assert_eq!(error("true"), None);
        let failed = error("false").unwrap();
        assert!(failed.contains("newer erofs-utils"), "{failed}");
        let below = long.strip_prefix(dir.path()).unwrap();
        assert!(failed.contains(&format!("{below:?}")), "{failed}");

        fs::write(deep.join("x".repeat(EROFS_NAME)), "").unwrap();
        assert_eq!(error("true"), Some(failed));
        fs::remove_file(&long).unwrap();
        assert_eq!(error("true"), None);
        assert!(error("false").unwrap().contains("exit status"));
    }

    #[test]
    fn errors_quote_the_end_of_the_output() {
        assert_eq!(last_lines(b"a\n\nb\nc\nd\ne\n  f\n"), "b; c; d; e; f");
        assert_eq!(last_lines(b""), "");
        let error =
            run(Command::new("sh").args(["-c", "echo out; echo why >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().ends_with("out; why"), "{error}");
    }
}
