//! Which VMM to start.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::kvm::{self, Kvm};

const FIRECRACKER: &str = "firecracker";
const FIRECRACKER_TCG: &str = "firecracker-tcg";

/// The VMM to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmChoice {
    /// The program.
    pub path: PathBuf,
    /// Why this one: a line for people.
    pub reason: String,
    /// How to get the faster one: a line for people. `None` if this is it, or was asked for.
    pub hint: Option<String>,
}

/// Why there is no VMM to start.
#[derive(Debug, thiserror::Error)]
pub enum ChooseError {
    /// The configured program is not there.
    #[error(
        "The VMM {} of the configuration key firecracker_binary_path cannot be used",
        path.display()
    )]
    Configured {
        /// The program.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Nothing is configured, and neither VMM was found.
    #[error(
        "No VMM found: neither {FIRECRACKER_TCG} beside this program or on PATH, nor {FIRECRACKER} on PATH \
         with a KVM for it ({kvm}); install one or set the configuration key firecracker_binary_path"
    )]
    None {
        /// What KVM is good for here.
        kvm: Kvm,
    },
}

/// Chooses the VMM: the configured one; else `firecracker` on `PATH` if KVM runs ordinary guests; else
/// `firecracker-tcg` beside this program or on `PATH`. Blocks for milliseconds, if KVM is to be tried.
///
/// # Errors
/// [`ChooseError`].
pub fn choose(configured: Option<&Path>) -> Result<VmmChoice, ChooseError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own_directory = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(PathBuf::from));
    choose_from(configured, &path, own_directory.as_deref(), kvm::probe)
}

fn choose_from(
    configured: Option<&Path>,
    search: &OsStr,
    own_directory: Option<&Path>,
    probe: impl FnOnce() -> Kvm,
) -> Result<VmmChoice, ChooseError> {
    if let Some(path) = configured {
        return from_configuration(path, search);
    }
    let kvm = probe();
    let firecracker = find(FIRECRACKER, search);
    if let (Kvm::Hardware, Some(path)) = (&kvm, &firecracker) {
        return Ok(VmmChoice {
            reason: format!("{} is on PATH, and {kvm}", path.display()),
            path: path.clone(),
            hint: None,
        });
    }
    let beside = own_directory.map(|dir| dir.join(FIRECRACKER_TCG));
    let beside = beside.filter(|path| executable(path).is_ok());
    let Some(path) = beside.or_else(|| find(FIRECRACKER_TCG, search)) else {
        return Err(ChooseError::None { kvm });
    };
    let (reason, hint) = match kvm {
        Kvm::Hardware => (
            "no firecracker on PATH".to_owned(),
            "KVM runs ordinary guests here: install firecracker on PATH for full speed".to_owned(),
        ),
        kvm => {
            let hint = match kvm {
                Kvm::Denied { .. } => {
                    "let this user open /dev/kvm, and use firecracker, for full speed"
                }
                _ => "full speed needs a host with hardware virtualization and firecracker on PATH",
            };
            (kvm.to_string(), hint.to_owned())
        }
    };
    Ok(VmmChoice {
        reason: format!("{} (software emulation), because {reason}", path.display()),
        path,
        hint: Some(hint),
    })
}

fn from_configuration(path: &Path, search: &OsStr) -> Result<VmmChoice, ChooseError> {
    let found = if path.components().count() == 1 && !path.is_absolute() {
        find(path, search).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    } else {
        executable(path).map(|()| path.to_owned())
    };
    match found {
        Ok(found) => Ok(VmmChoice {
            reason: format!(
                "{} is configured (firecracker_binary_path)",
                found.display()
            ),
            path: found,
            hint: None,
        }),
        Err(source) => Err(ChooseError::Configured {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The first executable file called `name` in the directories of `search`.
fn find(name: impl AsRef<Path>, search: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(search)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(&name))
        .find(|path| executable(path).is_ok())
}

fn executable(path: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "not an executable file",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;

    fn program(dir: &Path, name: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, "").expect("a file");
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("its mode");
        path
    }

    fn paravirtual() -> Kvm {
        Kvm::Paravirtual {
            why: "for this test".to_owned(),
        }
    }

    #[test]
    fn the_best_vmm_that_runs_is_chosen() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let [path, own] = [dirs[0].path(), dirs[1].path()];
        let choose = |kvm: Kvm| choose_from(None, path.as_os_str(), Some(own), || kvm);

        let error = choose(paravirtual()).expect_err("no VMM at all");
        assert!(error.to_string().contains("paravirtual"), "{error}");

        let firecracker = program(path, "firecracker", 0o755);
        assert_eq!(
            choose(Kvm::Hardware).expect("firecracker").path,
            firecracker
        );
        choose(paravirtual()).expect_err("firecracker without a KVM for it");

        let on_path = program(path, "firecracker-tcg", 0o755);
        let choice = choose(paravirtual()).expect("firecracker-tcg");
        assert_eq!(choice.path, on_path);
        assert!(
            choice.reason.contains("for this test") && choice.hint.is_some(),
            "{choice:?}"
        );
        let beside = program(own, "firecracker-tcg", 0o755);
        assert_eq!(choose(Kvm::Absent).expect("its own").path, beside);
        assert_eq!(
            choose(Kvm::Hardware).expect("firecracker").path,
            firecracker
        );
    }

    #[test]
    fn the_configured_vmm_wins() {
        let dir = tempfile::tempdir().expect("a directory");
        let mine = program(dir.path(), "mine", 0o755);
        let search = dir.path().as_os_str();
        let choose = |path: &Path| {
            choose_from(Some(path), search, None, || {
                unreachable!("nothing to find out")
            })
        };
        assert_eq!(choose(&mine).expect("by its path").path, mine);
        assert_eq!(choose(Path::new("mine")).expect("by its name").path, mine);
        let text = program(dir.path(), "text", 0o644);
        for path in [
            text.as_path(),
            Path::new("text"),
            Path::new("/nonexistent"),
            dir.path(),
        ] {
            let error = choose(path).expect_err("not a program");
            assert!(
                error.to_string().contains("firecracker_binary_path"),
                "{error}"
            );
        }
    }
}
