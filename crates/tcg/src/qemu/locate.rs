use std::env;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::QemuError;

/// Environment variable that names another QEMU than the one on PATH.
pub const QEMU_VARIABLE: &str = "FIRECRACKER_TCG_QEMU";

const PROGRAM: &str = "qemu-system-x86_64";

/// Searched when the environment has no PATH, as in a bare jail.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Finds the QEMU to run.
///
/// # Errors
/// There is none, or the variable does not name one.
pub fn find() -> Result<PathBuf, QemuError> {
    if let Some(path) = env::var_os(QEMU_VARIABLE).filter(|value| !value.is_empty()) {
        let path = PathBuf::from(path);
        return if is_program(&path) {
            Ok(path)
        } else {
            Err(QemuError::NotExecutable {
                variable: QEMU_VARIABLE,
                path,
            })
        };
    }
    search(&env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()))
}

fn search(path: &OsStr) -> Result<PathBuf, QemuError> {
    path.as_bytes()
        .split(|&byte| byte == b':')
        .filter(|directory| !directory.is_empty())
        .map(|directory| Path::new(OsStr::from_bytes(directory)).join(PROGRAM))
        .find(|candidate| is_program(candidate))
        .ok_or(QemuError::NotInstalled)
}

fn is_program(path: &Path) -> bool {
    path.is_file() && access(path, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_executable_on_the_path() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert!(matches!(
            search(path.as_os_str()),
            Err(QemuError::NotInstalled)
        ));
        let program = path.join(PROGRAM);
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let list = format!("/nonexistent::{}", path.display());
        assert_eq!(search(OsStr::new(&list)).unwrap(), program);
    }
}
