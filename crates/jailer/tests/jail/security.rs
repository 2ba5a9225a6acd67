//! What a VMM that was taken over can reach: see `docs/threat-model.md`, whose list this is.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use fc_jailer::{JailError, Jailer};

use crate::Test;
use crate::host::{GID, Host, Runtime, UID, block_on, open};
use crate::seccomp::refusal;

pub const TESTS: &[(&str, Test)] = &[
    ("security::privileges", privileges),
    ("security::files_outside", files_outside),
    ("security::the_root_directory", the_root_directory),
    ("security::another_vm", another_vm),
    ("security::processes_of_the_host", processes_of_the_host),
    ("security::network", network),
    ("security::devices", devices),
    ("security::exhaustion", exhaustion),
    ("security::drives_do_not_grow", drives_do_not_grow),
    (
        "security::sockets_are_not_replaced",
        sockets_are_not_replaced,
    ),
];

/// Why one of these tests cannot run here.
pub fn missing(test: &str) -> Option<String> {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    if test != "security::drives_do_not_grow" {
        return None;
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = u64::from_str_radix(capabilities.unwrap().trim(), 16).unwrap();
    (capabilities & CAP_SYS_RESOURCE == 0).then(|| "needs CAP_SYS_RESOURCE".to_owned())
}

fn privileges(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let (jail, vmm, mut orders) = host.start().await;
        let status = orders.give("ids").unwrap();
        let field = |name: &str| {
            let line = status.split('|').find(|line| line.starts_with(name));
            let values = line.unwrap_or_else(|| panic!("{name}: {status}"));
            values
                .split_whitespace()
                .skip(1)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(field("Uid:"), format!("{UID} {UID} {UID} {UID}"));
        assert_eq!(field("Gid:"), format!("{GID} {GID} {GID} {GID}"));
        assert_eq!(field("Groups:"), "");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("Seccomp:"), "2");
        for order in [
            "write /proc/sys/kernel/core_pattern |/x",
            "write /proc/sysrq-trigger b",
        ] {
            assert!(orders.give(order).is_err(), "{order}");
        }
        end(jail, vmm, &host).await;
    });
}

fn files_outside(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let secret = host.base.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        let (jail, vmm, mut orders) = host.start().await;
        let secret = secret.to_str().unwrap();
        let beside = "/../secret";
        let state = "/../jail.json";
        for path in [
            secret,
            beside,
            state,
            "/etc/passwd",
            "/etc/shadow",
            "/root",
            "/proc/1/root/../secret",
            "/proc/kcore",
        ] {
            let read = orders.give(&format!("read {path}"));
            assert!(
                read.as_deref().is_err() || read.as_deref() == Ok(""),
                "{path}: {read:?}"
            );
        }
        // Neither this process nor the runtime has left it anything open.
        let descriptors = format!("/proc/{}/fd", vmm.pid());
        for descriptor in fs::read_dir(descriptors).unwrap() {
            let file = fs::read_link(descriptor.unwrap().path()).unwrap();
            let file = file.to_str().unwrap();
            let harmless = ["/dev/null", "pipe:[", "socket:[", "anon_inode:"];
            assert!(harmless.iter().any(|it| file.starts_with(it)), "{file}");
        }
        let names = orders.give("list /").unwrap();
        assert_eq!(
            names,
            "api.socket,dev,drives,etc,firecracker,orders.sock,proc"
        );
        assert_eq!(
            orders.give("list /etc").unwrap(),
            "os-release",
            "what the VMM needs"
        );
        assert_eq!(orders.give("list /drives").unwrap(), "");
        end(jail, vmm, &host).await;
    });
}

fn the_root_directory(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let kernel = host.base.path().join("kernel");
        fs::write(&kernel, "kernel").unwrap();
        let jail = host.prepare().await;
        let kernel_name = jail.show(fc_jailer::Role::Kernel, &kernel).await.unwrap();
        let _listener = UnixListener::bind(jail.root().join("firecracker.vsock_9001")).unwrap();
        jail.share("firecracker.vsock_9001").unwrap();
        let vmm = jail.start(fc_jailer::Start::default()).await.unwrap();
        let mut orders = crate::stand_in::Orders::connect(jail.root());
        assert_eq!(
            orders.give(&format!("read /{kernel_name}")).unwrap(),
            "kernel"
        );
        orders.give("connect /firecracker.vsock_9001").unwrap();
        for name in [
            "firecracker",
            "kernel-image",
            "drives",
            "firecracker.vsock_9001",
            "api.socket",
        ] {
            for order in [
                format!("remove /{name}"),
                format!("rename /{name} /other"),
                format!("rename /orders.sock /{name}"),
                format!("chmod /{name}"),
                format!("write /{name} x"),
            ] {
                assert!(orders.give(&order).is_err(), "{order}");
            }
        }
        for order in [
            "write /drives/x y",
            "write /dev/x y",
            "write /etc/x y",
            "write /usr/x y",
            "chmod /",
        ] {
            assert!(orders.give(order).is_err(), "{order}");
        }
        assert_eq!(fs::read(&kernel).unwrap(), b"kernel");
        end(jail, vmm, &host).await;
    });
}

fn another_vm(runtime: &Runtime) {
    block_on(async {
        // The worst case: both run as the same user.
        let (one, other) = (Host::new(runtime), Host::new(runtime));
        let (jail, vmm, mut orders) = one.start().await;
        let (other_jail, other_vmm, mut other_orders) = other.start().await;
        let api = other_jail.root().join("api.socket");
        let pid = other_vmm.pid();
        for order in [
            format!("connect {}", api.display()),
            format!("read {}", other.dir.join("jail.json").display()),
            format!("list {}", other_jail.root().display()),
            format!("kill {pid}"),
            format!("ptrace {pid}"),
            format!("process_vm_readv {pid}"),
            format!("read /proc/{pid}/mem"),
            format!("list /proc/{pid}/root"),
        ] {
            assert!(orders.give(&order).is_err(), "{order}");
        }
        assert_eq!(
            other_orders.give("pid").unwrap(),
            "1",
            "the other one lives"
        );
        end(jail, vmm, &one).await;
        end(other_jail, other_vmm, &other).await;
    });
}

fn processes_of_the_host(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let (jail, vmm, mut orders) = host.start().await;
        let me = std::process::id();
        let of_proc = orders.give("list /proc").unwrap();
        let pids: Vec<_> = of_proc
            .split(',')
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
            .collect();
        assert_eq!(pids, ["1"], "only its own process is there");
        for order in [
            format!("kill {me}"),
            format!("ptrace {me}"),
            format!("read /proc/{me}/environ"),
            "process_vm_readv 1".to_owned(),
        ] {
            assert!(orders.give(&order).is_err(), "{order}");
        }
        end(jail, vmm, &host).await;
    });
}

fn network(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let name = format!("fc-jail-test-{}", host.vm_id);
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let _listener = UnixListener::bind_addr(&address).unwrap();
        let (jail, vmm, mut orders) = host.start().await;
        let tcp = format!("tcp {}", tcp.local_addr().unwrap());
        // Its own loopback, whether the runtime has set it up or not.
        let loopback = orders.give(&tcp);
        assert!(
            matches!(loopback, Err(libc::ECONNREFUSED | libc::ENETUNREACH)),
            "{loopback:?}"
        );
        let outside = orders.give("tcp 8.8.8.8:53");
        assert_eq!(outside, Err(libc::ENETUNREACH), "it has no network");
        let order = format!("abstract {name}");
        assert_eq!(orders.give(&order), Err(libc::ECONNREFUSED));
        for (family, what) in [
            (libc::AF_PACKET, "packets"),
            (libc::AF_NETLINK, "netlink"),
            (libc::AF_VSOCK, "the host's own vsock"),
            (libc::AF_ALG, "the kernel's crypto"),
            (libc::AF_INET6, "IPv6"),
        ] {
            let order = format!("socket {family} {}", libc::SOCK_DGRAM);
            assert_eq!(orders.give(&order), Err(refusal()), "{what}");
        }
        let raw = format!(
            "socket {} {} {}",
            libc::AF_INET,
            libc::SOCK_RAW,
            libc::IPPROTO_ICMP
        );
        assert_eq!(orders.give(&raw), Err(libc::EPERM));
        end(jail, vmm, &host).await;
    });
}

fn devices(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let (jail, vmm, mut orders) = host.start().await;
        let names = orders.give("list /dev").unwrap();
        for device in names.split(',') {
            let known = [
                "core", "fd", "full", "kvm", "net", "null", "ptmx", "random", "stderr", "stdin",
                "stdout", "tty", "urandom", "zero",
            ];
            assert!(known.contains(&device), "{device}");
        }
        assert_eq!(orders.give("list /dev/net").unwrap(), "tun");
        orders.give("open-rw /dev/null").unwrap();
        for order in [
            "mknod /disk",
            "mknod-char /mem",
            "mknod /dev/disk",
            "write /dev/x y",
        ] {
            assert!(orders.give(order).is_err(), "{order}");
        }
        // The host's memory, which is not there, or masked by /dev/null.
        let memory = orders.give("read /dev/core");
        assert!(memory.as_deref().map_or(true, str::is_empty), "{memory:?}");
        // Not even a node that the host makes there by mistake opens, unless it is a drive.
        let mem = jail.root().join("mem");
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        let number = rustix::fs::makedev(1, 1);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &mem,
            rustix::fs::FileType::CharacterDevice,
            mode,
            number,
        )
        .unwrap();
        let opened = orders.give("open-rw /mem");
        assert!(
            matches!(opened, Err(libc::EPERM | libc::EACCES)),
            "{opened:?}"
        );
        end(jail, vmm, &host).await;
    });
}

fn exhaustion(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let (jail, vmm, mut orders) = host.start().await;
        let written: u64 = orders.give("fill").unwrap().parse().unwrap();
        assert!((1 << 20..=4 << 20).contains(&written), "{written} bytes");
        let forked: u64 = orders.give("forks").unwrap().parse().unwrap();
        assert!((1..256).contains(&forked), "{forked} processes");
        assert_eq!(orders.give("pid").unwrap(), "1", "the jail goes on");
        end(jail, vmm, &host).await;
    });
}

/// The VMM has the image of a drive open, and tries to fill the disk with it.
fn drives_do_not_grow(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let image = |name: &str, length: u64| {
            let path = host.base.path().join(name);
            fs::File::create(&path).unwrap().set_len(length).unwrap();
            path
        };
        let (short, long) = (image("short", 3 << 20), image("long", 8 << 20));
        let (jail, vmm, mut orders) = host.start().await;
        let exposer = jail.exposer();
        let name = exposer.expose("short", &open(&short), false).await.unwrap();
        // Guest memory may be a file: no limit before the guest has started.
        orders.give(&format!("extend {name} {}", 4 << 20)).unwrap();
        jail.seal("orders.sock").unwrap();
        orders.give(&format!("extend {name} {}", 3 << 20)).unwrap();
        let longer = orders.give(&format!("extend {name} {}", 5 << 20));
        assert_eq!(longer, Err(libc::EFBIG));
        let name = exposer.expose("long", &open(&long), false).await.unwrap();
        orders.give(&format!("extend {name} {}", 8 << 20)).unwrap();
        let longer = orders.give(&format!("extend {name} {}", 9 << 20));
        assert_eq!(longer, Err(libc::EFBIG));
        end(jail, vmm, &host).await;
    });
}

fn sockets_are_not_replaced(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let (jail, vmm, mut orders) = host.start().await;
        // Something else where the host expects the VMM's socket: a link to another VM's, had the kernel let it.
        assert!(orders.give("symlink /api.socket /link").is_err());
        orders.give("write /firecracker.vsock x").unwrap();
        let error = jail.seal("firecracker.vsock").unwrap_err();
        assert!(matches!(error, JailError::NoSocket { .. }), "{error}");
        // Too late once it is sealed.
        jail.seal("orders.sock").unwrap();
        assert!(orders.give("remove /orders.sock").is_err());
        assert!(jail.seal("missing").is_err());
        assert!(matches!(jail.seal("../jail.json"), Err(JailError::Name(_))));
        end(jail, vmm, &host).await;
    });
}

pub async fn end(jail: fc_jailer::Runc, vmm: fc_client::Vmm, host: &Host) {
    vmm.kill();
    vmm.exited().await;
    let errors = jail.close().await;
    assert!(errors.is_empty(), "{errors:?}");
    host.assert_clean();
}
