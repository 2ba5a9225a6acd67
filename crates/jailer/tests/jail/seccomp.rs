//! The filter of system calls: what it forbids fails because of the filter, and without it in another way.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use fc_jailer::{Jailer, Role, Start};

use crate::Test;
use crate::files::Loop;
use crate::host::{Host, Runtime, TEMPLATE, block_on, open};
use crate::security::end;
use crate::stand_in::Orders;

pub const TESTS: &[(&str, Test)] = &[
    ("seccomp::what_the_filter_forbids", what_the_filter_forbids),
    ("seccomp::without_the_filter", without_the_filter),
    ("seccomp::files_of_the_host", files_of_the_host),
];

/// Calls that nothing but the filter forbids, and that every kernel has.
const UNPRIVILEGED: &[&str] = &["clone3", "process_vm_readv 1"];

/// Calls that every kernel has, and that the lack of privileges forbids as well.
const PRIVILEGED: &[&str] = &[
    "setuid",
    "setgid",
    "chown /",
    "reboot",
    "open_by_handle",
    "ptrace 1",
    "mknod /node",
    "mknod-char /node",
    "mount none /drives",
    "bind-mount / /drives",
    "remount-rw /drives",
    "umount /proc",
    "chroot /",
    "setns /proc/self/ns/net",
];

/// Calls that a kernel may have been built without. It then answers as the filter does.
const OPTIONAL: &[&str] = &["bpf", "perf", "io_uring", "keyctl", "userfaultfd"];

/// The error that the filter of the template answers with.
pub fn refusal() -> i32 {
    let number = template()["linux"]["seccomp"]["defaultErrnoRet"].as_i64();
    i32::try_from(number.expect("the template has a number")).unwrap()
}

fn template() -> serde_json::Value {
    serde_json::from_slice(&fs::read(TEMPLATE).unwrap()).unwrap()
}

/// [`PRIVILEGED`], and the making of namespaces.
fn privileged() -> impl Iterator<Item = String> {
    let flags = [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWPID,
    ];
    let unshares = flags.into_iter().map(|flag| format!("unshare {flag}"));
    let others = PRIVILEGED.iter().map(|order| (*order).to_owned());
    others.chain(unshares)
}

fn mode(orders: &mut Orders) -> String {
    let status = orders.give("ids").unwrap();
    let line = status.split('|').find(|line| line.starts_with("Seccomp:"));
    line.expect("the kernel tells")["Seccomp:".len()..]
        .trim()
        .to_owned()
}

fn what_the_filter_forbids(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let (jail, vmm, mut orders) = host.start().await;
        assert_eq!(mode(&mut orders), "2");
        let alone = [UNPRIVILEGED, OPTIONAL].concat();
        for order in alone.into_iter().map(str::to_owned).chain(privileged()) {
            assert_eq!(orders.give(&order), Err(refusal()), "{order}");
        }
        end(jail, vmm, &host).await;
    });
}

/// A host whose template has no filter.
fn unfiltered(runtime: &Runtime) -> Host {
    let mut host = Host::new(runtime);
    let mut template = template();
    let linux = template["linux"].as_object_mut().unwrap();
    assert!(linux.remove("seccomp").is_some());
    host.template = host.base.path().join("without-seccomp.json");
    fs::write(&host.template, template.to_string()).unwrap();
    host
}

/// What the VMM, as the owner of a file in its jail, could do to it outside: with the filter it cannot, and without it
/// could.
fn files_of_the_host(runtime: &Runtime) {
    block_on(async {
        for filtered in [true, false] {
            let host = if filtered {
                Host::new(runtime)
            } else {
                unfiltered(runtime)
            };
            let file = |name: &str| {
                let path = host.base.path().join(name);
                fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                path
            };
            let (kernel, image) = (file("kernel"), file("image"));
            let device = Loop::new(&file("disk"));
            let jail = host.prepare().await;
            let kernel = jail.show(Role::Kernel, &kernel).await.unwrap();
            let vmm = jail.start(Start::default()).await.unwrap();
            let mut orders = Orders::connect(jail.root());
            let exposer = jail.exposer();
            let drive = exposer.expose("image", &open(&image), false).await;
            let block = exposer.expose("disk", &open(device.path()), false).await;
            let (drive, block) = (drive.unwrap(), block.unwrap());
            for order in [
                format!("set-user-id {drive}"),
                format!("lease {kernel}"),
                format!("fallocate {drive} {} 4194304", libc::FALLOC_FL_KEEP_SIZE),
                format!("reserve {drive} 8388608"),
                format!("skip-block {block}"),
            ] {
                let expected = if filtered {
                    Err(refusal())
                } else {
                    Ok(String::new())
                };
                assert_eq!(orders.give(&order), expected, "{order}");
            }
            let metadata = image.metadata().unwrap();
            let grown = metadata.blocks() * 512 > metadata.len();
            assert_eq!(
                (metadata.mode() & 0o7777 == 0o600, grown),
                (filtered, !filtered)
            );
            if filtered {
                // What is left: a hole, and zeroes, within the file; not what moves its end.
                let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                orders.give(&format!("fallocate {drive} 0 4096")).unwrap();
                orders
                    .give(&format!("fallocate {drive} {punch} 4096"))
                    .unwrap();
                let others = [
                    libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                    libc::FALLOC_FL_INSERT_RANGE,
                    libc::FALLOC_FL_COLLAPSE_RANGE,
                ];
                for mode in others {
                    let order = format!("fallocate {drive} {mode} 4096");
                    assert_eq!(orders.give(&order), Err(refusal()), "{order}");
                }
            }
            end(jail, vmm, &host).await;
        }
    });
}

/// The same jail with the filter taken out of the template: it is the filter that answered above.
fn without_the_filter(runtime: &Runtime) {
    block_on(async {
        let host = unfiltered(runtime);
        let jail = host.prepare().await;
        let vmm = jail.start(Start::default()).await.unwrap();
        let mut orders = Orders::connect(jail.root());
        assert_eq!(mode(&mut orders), "0");
        for order in UNPRIVILEGED {
            let answer = orders.give(order);
            assert!(answer.is_ok(), "{order}: {answer:?}");
        }
        for order in privileged() {
            let error = orders.give(&order).expect_err(&order);
            assert_ne!(error, refusal(), "{order}");
        }
        for order in OPTIONAL {
            let answer = orders.give(order);
            if answer == Err(refusal()) {
                println!("{order}: this kernel has no such call, or answers as the filter does");
            }
        }
        end(jail, vmm, &host).await;
    });
}
