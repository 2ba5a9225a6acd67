//! The filter of system calls: what it forbids fails because of the filter, and without it in another way.

use std::fs;

use fc_jailer::Start;

use crate::Test;
use crate::host::{Host, Runtime, TEMPLATE, block_on};
use crate::security::end;
use crate::stand_in::Orders;

pub const TESTS: &[(&str, Test)] = &[
    ("seccomp::what_the_filter_forbids", what_the_filter_forbids),
    ("seccomp::without_the_filter", without_the_filter),
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

/// The same jail with the filter taken out of the template: it is the filter that answered above.
fn without_the_filter(runtime: &Runtime) {
    block_on(async {
        let mut host = Host::new(runtime);
        let mut template = template();
        let linux = template["linux"].as_object_mut().unwrap();
        assert!(linux.remove("seccomp").is_some());
        host.template = host.base.path().join("without-seccomp.json");
        fs::write(&host.template, template.to_string()).unwrap();
        let jail = host.prepare().await;
        let vmm = fc_jailer::Jailer::start(&jail, Start::default())
            .await
            .unwrap();
        let mut orders = Orders::connect(fc_jailer::Jailer::root(&jail));
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
