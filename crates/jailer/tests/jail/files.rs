//! How the host's files get into a jail, before the VMM starts and while it runs.

use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use fc_jailer::{ExposePolicy, Jailer, Role, Start, User};

use crate::Test;
use crate::host::{GID, Host, Runtime, UID, block_on, open};
use crate::security::end;
use crate::stand_in::Orders;

pub const TESTS: &[(&str, Test)] = &[
    (
        "files::everything_a_vm_boots_from",
        everything_a_vm_boots_from,
    ),
    ("files::copies_are_the_vm_s_own", copies_are_the_vm_s_own),
    (
        "files::a_copy_that_there_is_no_room_for",
        a_copy_that_there_is_no_room_for,
    ),
    ("files::exposed_while_it_runs", exposed_while_it_runs),
    ("files::without_idmapped_mounts", without_idmapped_mounts),
    ("files::block_devices", block_devices),
    ("files::refused", refused),
    (
        "files::drives_that_nobody_may_use",
        drives_that_nobody_may_use,
    ),
];

fn file(path: &Path, content: &str, mode: u32) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn fifo(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

/// Unusual places: a link, a name that another file has too, another file system, and nobody's but root's.
fn everything_a_vm_boots_from(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let base = host.base.path();
        let other = tempfile::tempdir_in("/dev/shm").unwrap();
        let there = base.join("a b#c");
        fs::create_dir(&there).unwrap();
        file(&there.join("image"), "kernel", 0o600);
        file(&base.join("image"), "initrd", 0o400);
        symlink("a b#c/image", base.join("link")).unwrap();
        let root_drive = other.path().join("image");
        file(&root_drive, "root", 0o600);
        let log = other.path().join("any-name");
        fifo(&log);

        let jail = host.prepare().await;
        let kernel = jail.show(Role::Kernel, &base.join("link")).await.unwrap();
        let initrd = jail.show(Role::Initrd, &base.join("image")).await.unwrap();
        let root = jail.show_root(&open(&root_drive), false).unwrap();
        let log_name = jail.show_fifo("fc-logs.fifo", &log).await.unwrap();
        file(&jail.root().join("ctrstub0"), "stub", 0o600);
        jail.share("ctrstub0").unwrap();
        let stub = jail.root().join("ctrstub0").metadata().unwrap();
        assert_eq!((stub.uid(), stub.gid()), (UID, GID));
        let vmm = jail.start(Start::default()).await.unwrap();
        let mut orders = Orders::connect(jail.root());
        let configuration = host.dir.join("config.json").metadata().unwrap();
        assert_eq!(
            (configuration.mode() & 0o777, configuration.uid()),
            (0o400, 0)
        );

        for (name, content) in [(&kernel, "kernel"), (&initrd, "initrd"), (&root, "root")] {
            assert_eq!(orders.give(&format!("read {name}")).unwrap(), content);
        }
        assert!(orders.give(&format!("open-rw {kernel}")).is_err());
        orders.give(&format!("write {root} changed")).unwrap();
        orders.give("write ctrstub0 changed").unwrap();
        assert_eq!(fs::read(&root_drive).unwrap(), b"changed");
        orders.give(&format!("open-rw {log_name}")).unwrap();
        // No file has another owner for it.
        for path in [&root_drive, &log, &there.join("image")] {
            let metadata = path.metadata().unwrap();
            assert_eq!(
                (metadata.uid(), metadata.gid()),
                (0, 0),
                "{}",
                path.display()
            );
        }
        end(jail, vmm, &host).await;
    });
}

fn copies_are_the_vm_s_own(runtime: &Runtime) {
    block_on(async {
        let mut host = Host::new(runtime);
        host.request.policy = ExposePolicy::Copy;
        let image = host.base.path().join("image");
        file(&image, "root", 0o600);
        let sparse = fs::OpenOptions::new().write(true).open(&image).unwrap();
        sparse.set_len(256 << 20).unwrap();
        let jail = host.prepare().await;
        let copy = jail.drive_file(open(&image), false).unwrap();
        let name = jail.show_root(copy.file(), false).unwrap();
        copy.complete().await.unwrap();
        // A copy leaves the file free for others.
        let mount = jail.drive_file(open(&image), true).unwrap();
        let mount = mount.complete().await.unwrap();
        let copied = mount.file().metadata().unwrap();
        assert_eq!(copied.mode() & 0o777, 0o400);
        assert_eq!((copied.uid(), copied.len()), (UID, 256 << 20));
        assert!(copied.blocks() * 512 < 1 << 20, "the copy is sparse too");
        let vmm = jail.start(Start::default()).await.unwrap();
        let mut orders = Orders::connect(jail.root());
        orders.give(&format!("write {name} changed")).unwrap();
        let mut start = [0; 4];
        io::Read::read_exact(&mut fs::File::open(&image).unwrap(), &mut start).unwrap();
        assert_eq!(&start, b"root", "the original stays as it is");
        end(jail, vmm, &host).await;
    });
}

/// Known when the VMM runs already, and only to who waits for the copy.
fn a_copy_that_there_is_no_room_for(runtime: &Runtime) {
    block_on(async {
        let mut host = Host::new(runtime);
        host.request.policy = ExposePolicy::Copy;
        let image = host.base.path().join("image");
        fs::write(&image, vec![1; 2 << 20]).unwrap();
        let jail = host.prepare().await;
        let copies = host.dir.join("copies");
        let tmpfs = ["-t", "tmpfs", "-o", "size=1m", "none"];
        let mounted = Command::new("mount").args(tmpfs).arg(&copies).status();
        assert!(mounted.unwrap().success());
        let copy = jail.drive_file(open(&image), false).unwrap();
        jail.show_root(copy.file(), false).unwrap();
        let vmm = jail.start(Start::default()).await.unwrap();
        let error = copy.complete().await.unwrap_err();
        let message = format!("{error}: {}", error.source().unwrap());
        assert!(message.contains(image.to_str().unwrap()), "{message}");
        assert!(message.contains("No space left"), "{message}");
        let unmounted = Command::new("umount").arg("-l").arg(&copies).status();
        assert!(unmounted.unwrap().success());
        end(jail, vmm, &host).await;
    });
}

fn exposed_while_it_runs(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let (jail, vmm, mut orders) = host.start().await;
        let exposer = jail.exposer();
        let (one, other) = (host.base.path().join("one"), host.base.path().join("two"));
        file(&one, "one", 0o600);
        file(&other, "two", 0o600);
        let (first, second) = (open(&one), open(&other));
        // Others in their places: not those that were opened.
        for path in [&one, &other] {
            fs::rename(path, path.with_extension("moved")).unwrap();
            file(path, "swapped", 0o600);
        }
        for round in 0..3 {
            let name = exposer
                .expose("ctrstub0.attached", &first, false)
                .await
                .unwrap();
            assert_eq!(name, "drives/ctrstub0.attached");
            assert_eq!(
                orders.give(&format!("read {name}")).unwrap(),
                "one",
                "round {round}"
            );
            orders.give(&format!("open-rw {name}")).unwrap();
            // Once more; for reading only from then on; and another file under the same name.
            for read_only in [false, true] {
                exposer
                    .expose("ctrstub0.attached", &first, read_only)
                    .await
                    .unwrap();
                let opened = orders.give(&format!("open-rw {name}"));
                assert_eq!(opened.is_err(), read_only, "{opened:?}");
            }
            exposer
                .expose("ctrstub0.attached", &second, true)
                .await
                .unwrap();
            assert_eq!(orders.give(&format!("read {name}")).unwrap(), "two");
            assert!(
                orders.give(&format!("open-rw {name}")).is_err(),
                "for reading only"
            );
            exposer.withdraw("ctrstub0.attached").await.unwrap();
            exposer.withdraw("ctrstub0.attached").await.unwrap();
            assert_eq!(orders.give("list /drives").unwrap(), "");
        }
        for name in ["", "..", "a/b", "/etc"] {
            let error = exposer.expose(name, &first, true).await.unwrap_err();
            assert!(
                error.to_string().contains("is not the plain name"),
                "{error}"
            );
        }
        // A file that is nowhere any more cannot be mounted, and nothing else is in its stead.
        fs::remove_file(other.with_extension("moved")).unwrap();
        exposer.expose("gone", &second, true).await.unwrap_err();
        exposer.withdraw("gone").await.unwrap();
        assert_eq!(orders.give("list /drives").unwrap(), "");
        exposer.expose("left", &first, false).await.unwrap();
        assert_eq!(first.file().metadata().unwrap().uid(), 0);
        end(jail, vmm, &host).await;
    });
}

/// A second VM of the same host.
fn second(first: &Host) -> Host {
    let dir = first.dir.with_file_name(format!("ns#{}-b", first.vm_id));
    fs::create_dir(&dir).unwrap();
    let mut second = Host::of(&dir, &first.runc, &first.vmm);
    second.request.user = User::new(UID + 1, GID + 1).unwrap();
    second
}

/// A file system that knows no id-mapped mounts: the owner changes, and comes back.
fn without_idmapped_mounts(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let place = host.base.path().join("ramfs");
        fs::create_dir(&place).unwrap();
        let mount = |arguments: &[&str]| {
            let status = Command::new(arguments[0])
                .args(&arguments[1..])
                .arg(&place)
                .status();
            assert!(status.unwrap().success());
        };
        mount(&["mount", "-t", "ramfs", "none"]);
        let (one, other) = (place.join("one"), place.join("other"));
        file(&one, "one", 0o600);
        file(&other, "other", 0o600);
        chown(&one, Some(7), Some(8)).unwrap();
        let link = place.join("link");
        symlink("one", &link).unwrap();
        let owner = |path: &Path| {
            let metadata = path.metadata().unwrap();
            (metadata.uid(), metadata.gid())
        };
        let (jail, vmm, mut orders) = host.start().await;
        let exposer = jail.exposer();
        // Whoever has it may lend it on: the lock is not what keeps two jails apart here.
        let lent = open(&link);
        let name = exposer.expose("a", &lent, false).await.unwrap();
        exposer.expose("b", &open(&other), false).await.unwrap();
        orders.give(&format!("open-rw {name}")).unwrap();
        assert_eq!(owner(&one), (UID, GID));

        // Another jail beside it, with a user of its own.
        let second = second(&host);
        let (second_jail, second_vmm, mut second_orders) = second.start().await;
        let second_exposer = second_jail.exposer();
        let error = second_exposer.expose("a", &lent, false).await.unwrap_err();
        let message = error.to_string();
        assert!(message.contains("cannot be lent to two jails"), "{message}");
        assert!(message.contains(host.dir.to_str().unwrap()), "{message}");
        // Neither the refusal nor what follows it takes the file from the first one.
        second_exposer.withdraw("a").await.unwrap();
        assert_eq!(owner(&one), (UID, GID));
        // Moving it away does not keep it from its owner.
        fs::rename(&one, place.join("moved")).unwrap();
        exposer.withdraw("a").await.unwrap();
        fs::rename(place.join("moved"), &one).unwrap();
        assert_eq!(owner(&one), (7, 8));
        let name = second_exposer.expose("a", &lent, false).await.unwrap();
        second_orders.give(&format!("open-rw {name}")).unwrap();
        assert_eq!(owner(&one), (UID + 1, GID + 1));

        // By the undo, too.
        for (jail, vmm) in [(jail, vmm), (second_jail, second_vmm)] {
            vmm.kill();
            vmm.exited().await;
            assert!(jail.close().await.is_empty());
        }
        drop(lent);
        assert_eq!(owner(&one), (7, 8));
        assert_eq!(owner(&other), (0, 0));
        // A process that another test is just starting may have a file of it open.
        mount(&["umount", "-l"]);
        second.assert_clean();
        host.assert_clean();
    });
}

/// A block device, gone at the end whether or not the test passed.
pub struct Loop(PathBuf);

impl Loop {
    pub fn new(image: &Path) -> Self {
        let mut attach = Command::new("losetup");
        let attached = attach.args(["--find", "--show"]).arg(image).output();
        let device = String::from_utf8(attached.unwrap().stdout).unwrap();
        Self(device.trim().into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
        if !detached.is_ok_and(|status| status.success()) {
            eprintln!("{} stays", self.0.display());
        }
    }
}

/// Never read, never copied: a node for the same device, under both policies.
fn block_devices(runtime: &Runtime) {
    block_on(async {
        let mut host = Host::new(runtime);
        host.request.policy = ExposePolicy::Copy;
        let image = host.base.path().join("image");
        file(&image, "disk", 0o600);
        let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
        file.set_len(1 << 20).unwrap();
        let attached = Loop::new(&image);
        let device = attached.path();
        let jail = host.prepare().await;
        let drive = jail.drive_file(open(device), false).unwrap();
        let drive = drive.complete().await.unwrap();
        assert_eq!(drive.path(), device);
        let root = jail.show_root(&drive, true).unwrap();
        let vmm = jail.start(Start::default()).await.unwrap();
        let mut orders = Orders::connect(jail.root());
        assert!(
            orders
                .give(&format!("read {root}"))
                .unwrap()
                .starts_with("disk")
        );
        // Nor can it let itself.
        assert_eq!(orders.give(&format!("chmod {root}")), Err(libc::EPERM));
        assert_eq!(orders.give(&format!("open-rw {root}")), Err(libc::EACCES));
        let exposer = jail.exposer();
        for _ in 0..2 {
            let name = exposer
                .expose("ctrstub0.attached", &drive, false)
                .await
                .unwrap();
            exposer
                .expose("ctrstub0.attached", &drive, false)
                .await
                .unwrap();
            orders.give(&format!("open-rw {name}")).unwrap();
            exposer.withdraw("ctrstub0.attached").await.unwrap();
        }
        end(jail, vmm, &host).await;
    });
}

/// What cannot be shown is said at once, and nothing of it stays.
fn refused(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let jail = host.prepare().await;
        for path in ["/nonexistent", "/etc", "/dev/null"] {
            let error = jail.show(Role::Kernel, Path::new(path)).await.unwrap_err();
            assert!(
                error.is_invalid_request() && error.to_string().contains(path),
                "{error}"
            );
        }
        let nobody_s = host.base.path().join("nobody-s");
        file(&nobody_s, "", 0o000);
        let error = jail.show(Role::Kernel, &nobody_s).await.unwrap_err();
        assert!(error.to_string().contains("0000"), "{error}");
        // The VMM may write to a FIFO, and so to what would be in its place.
        let error = jail.show_fifo("fc-logs.fifo", &nobody_s).await.unwrap_err();
        assert!(
            error.to_string().ends_with("nobody-s is no FIFO"),
            "{error}"
        );
        assert!(jail.close().await.is_empty());
        host.assert_clean();
    });
}

/// A drive is refused before there is a VM, unless a copy of it will do.
fn drives_that_nobody_may_use(runtime: &Runtime) {
    block_on(async {
        for policy in [ExposePolicy::Bind, ExposePolicy::Copy] {
            let mut host = Host::new(runtime);
            host.request.policy = policy;
            let jail = host.prepare().await;
            let path = host.base.path().join("image");
            for (mode, read_only, usable) in [
                (0o000, true, false),
                (0o000, false, false),
                (0o066, true, true),
                (0o400, true, true),
                (0o400, false, false),
                (0o600, false, true),
            ] {
                file(&path, "", mode);
                let checked = jail.check_drive(&open(&path), read_only);
                let expected = usable || policy == ExposePolicy::Copy;
                assert_eq!(
                    checked.is_ok(),
                    expected,
                    "{policy:?} {mode:o}: {checked:?}"
                );
                if let Err(error) = checked {
                    let said = error.to_string();
                    assert!(
                        error.is_invalid_request() && said.contains(&format!("{mode:04o}")),
                        "{said}"
                    );
                }
            }
            assert!(jail.close().await.is_empty());
            host.assert_clean();
        }
    });
}
