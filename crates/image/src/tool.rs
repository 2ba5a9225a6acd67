//! Running the system's programs, with errors that say what is missing and where to get it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program could not be found, run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not on PATH.
    #[error("{tool} is not installed; it comes with the package {package}")]
    Missing {
        /// The program's name.
        tool: String,
        /// Debian package that has it.
        package: &'static str,
    },
    /// Found, but it does not start.
    #[error("{tool} cannot be run")]
    Spawn {
        /// The program.
        tool: String,
        /// Why.
        source: io::Error,
    },
    /// Ended with another status than 0.
    #[error("{tool} failed ({status}): {stderr}")]
    Failed {
        /// The program.
        tool: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it wrote to stderr, trimmed.
        stderr: String,
    },
}

/// Finds `tool` on PATH, or says that `package` has it. Names with a slash are taken as they are.
pub fn find(tool: &str, package: &'static str) -> Result<PathBuf, Error> {
    let missing = || Error::Missing {
        tool: tool.to_owned(),
        package,
    };
    if tool.contains('/') {
        let path = PathBuf::from(tool);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(missing())
        };
    }
    // sbin is often not in a user's PATH, but mkfs lives there.
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(tool))
        .find(|candidate| is_executable(candidate))
        .ok_or_else(missing)
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Runs a command to its end and returns its standard output.
pub fn run(command: &mut Command) -> Result<String, Error> {
    let tool = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned();
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Spawn {
            tool: tool.clone(),
            source,
        })?;
    if !output.status.success() {
        return Err(Error::Failed {
            tool,
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_program_names_its_package() {
        let error = find("no-such-program-here", "some-package").unwrap_err();
        assert_eq!(
            error.to_string(),
            "no-such-program-here is not installed; it comes with the package some-package"
        );
    }

    #[test]
    fn failure_carries_what_the_program_said() {
        let error = run(Command::new("sh").args(["-c", "echo the cause >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().ends_with("the cause"), "{error}");
        assert!(error.to_string().starts_with("sh failed"), "{error}");
    }
}
