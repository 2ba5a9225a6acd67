//! The files that VMs are made of: kernel, initrd, root image, and the cache of shared images.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use fc_config::Config;
use fc_proto::guest::PROTOCOL;
use fc_proto::image::{FileInfo, INITRD, KERNEL, MANIFEST, Manifest, ROOTFS};
use sha2::{Digest, Sha256};

use super::Finding;

const BUILD: &str = "build it with firecracker-image (`make install` does)";

pub(super) fn check(config: &Config, full: bool) -> Vec<Finding> {
    let kernel = &config.kernel_image_path;
    let mut findings = vec![
        readable("kernel", kernel, "kernel_image_path"),
        readable("root image", &config.root_drive, "root_drive"),
    ];
    if let Some(initrd) = &config.initrd_path {
        findings.push(readable("initrd", initrd, "initrd_path"));
    }
    findings.extend(manifest(config, full));
    findings.extend(crate::cache::check(config, full).into_iter().map(|problem| {
        Finding::problem(
            "image cache",
            problem,
            "remove it with `firecracker-ctl cache prune`, after the containers that use it: it is made anew when it is used next",
        )
    }));
    findings
}

fn readable(check: &'static str, path: &Path, key: &str) -> Finding {
    let read = File::open(path).and_then(|mut file| file.read(&mut [0; 16]));
    match read {
        Ok(0) => Finding::problem(check, format!("{} is empty", path.display()), BUILD),
        Ok(_) => Finding::ok(check, path.display().to_string()),
        Err(error) => Finding::problem(
            check,
            format!("{} cannot be read: {error}", path.display()),
            format!("{BUILD}, or correct {key}"),
        ),
    }
}

/// What lies beside the root image says which agent is in it, and what the files should be.
fn manifest(config: &Config, full: bool) -> Vec<Finding> {
    const CHECK: &str = "guest image";
    let Some(dir) = config.root_drive.parent() else {
        return Vec::new();
    };
    let path = dir.join(MANIFEST);
    let manifest = match std::fs::read(&path).map(|text| serde_json::from_slice::<Manifest>(&text))
    {
        Ok(Ok(manifest)) => manifest,
        Ok(Err(error)) => {
            return vec![Finding::problem(
                CHECK,
                format!("{} cannot be understood: {error}", path.display()),
                BUILD,
            )];
        }
        Err(error) => {
            return vec![Finding::note(
                CHECK,
                format!("{} cannot be read: {error}", path.display()),
                "not one of firecracker-image: whether its agent suits is seen when a VM starts",
            )];
        }
    };
    if manifest.format != Manifest::FORMAT || manifest.protocol != PROTOCOL {
        return vec![Finding::problem(
            CHECK,
            format!(
                "It was built by firecracker-image {} for protocol {}; this runtime speaks {PROTOCOL}",
                manifest.builder, manifest.protocol
            ),
            BUILD,
        )];
    }
    let files = [
        (KERNEL, Some(&config.kernel_image_path)),
        (ROOTFS, Some(&config.root_drive)),
        (INITRD, config.initrd_path.as_ref()),
    ];
    let mut findings: Vec<Finding> = files
        .into_iter()
        // Only files of this directory are in its manifest.
        .filter_map(|(name, path)| Some((manifest.files.get(name)?, path?)))
        .filter(|(_, path)| path.parent() == Some(dir))
        .filter_map(|(info, path)| Some((path, differs(info, path, full)?)))
        .map(|(path, how)| Finding::problem(CHECK, format!("{} {how}", path.display()), BUILD))
        .collect();
    let least = manifest.min_memory_mib;
    if config.mem_size_mib < least {
        findings.push(Finding::problem(
            CHECK,
            format!("It needs {least} MiB; VMs get {}", config.mem_size_mib),
            format!("set mem_size_mib to {least} or more"),
        ));
    }
    if findings.is_empty() {
        let how = if full {
            "checksums match"
        } else {
            "sizes match"
        };
        findings.push(Finding::ok(
            CHECK,
            format!(
                "Linux {}, protocol {PROTOCOL}; {how}",
                manifest.kernel_release
            ),
        ));
    }
    findings
}

fn differs(info: &FileInfo, path: &Path, full: bool) -> Option<String> {
    // One that cannot be read is a finding of its own already.
    let size = std::fs::metadata(path).ok()?.len();
    if size != info.size {
        return Some(format!("has {size} bytes instead of {}", info.size));
    }
    if full && digest(path).ok()? != info.sha256 {
        return Some("is not what was built: its checksum differs".to_owned());
    }
    None
}

fn digest(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(data_encoding::HEXLOWER.encode(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    /// A directory as firecracker-image leaves one, and the configuration for it.
    fn image(dir: &Path) -> Config {
        let mut manifest = Manifest {
            format: Manifest::FORMAT,
            builder: "test".to_owned(),
            protocol: PROTOCOL,
            kernel_release: "6.1".to_owned(),
            min_memory_mib: 88,
            files: Default::default(),
            request: Default::default(),
            inputs: Default::default(),
        };
        for name in [KERNEL, ROOTFS] {
            std::fs::write(dir.join(name), name).expect("a file");
            let info = FileInfo {
                size: name.len() as u64,
                sha256: digest(&dir.join(name)).expect("its digest"),
            };
            manifest.files.insert(name.to_owned(), info);
        }
        let json = serde_json::to_vec(&manifest).expect("JSON");
        std::fs::write(dir.join(MANIFEST), json).expect("a manifest");
        Config {
            kernel_image_path: dir.join(KERNEL),
            root_drive: dir.join(ROOTFS),
            image_cache_dir: dir.join("cache"),
            ..Config::default()
        }
    }

    #[track_caller]
    fn expect(config: &Config, full: bool, text: &str) {
        let findings = check(config, full);
        let mut problems = findings.iter().filter(|f| f.level == Level::Problem);
        assert!(
            problems.any(|f| f.found.contains(text) && !f.advice.is_empty()),
            "{findings:?}"
        );
    }

    #[test]
    fn a_good_image() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = image(dir.path());
        let findings = check(&config, true);
        assert!(
            findings.iter().all(|f| f.level == Level::Ok),
            "{findings:?}"
        );
    }

    #[test]
    fn what_is_wrong_with_an_image() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = image(dir.path());
        // Of the same size: only a full look notices.
        std::fs::write(dir.path().join(KERNEL), "x".repeat(KERNEL.len())).expect("a change");
        assert!(check(&config, false).iter().all(|f| f.level == Level::Ok));
        expect(&config, true, "checksum differs");
        std::fs::write(dir.path().join(KERNEL), "longer than it was").expect("a change");
        expect(&config, false, "instead of");
        std::fs::remove_file(dir.path().join(ROOTFS)).expect("its removal");
        expect(&config, false, "cannot be read");

        let config = Config {
            mem_size_mib: 80,
            ..image(dir.path())
        };
        expect(&config, false, "88 MiB");
        std::fs::write(dir.path().join(MANIFEST), "{").expect("a change");
        expect(&config, false, "cannot be understood");
    }
}
