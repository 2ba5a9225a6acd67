//! What a VM's drives promise: slots for ever, data that stays right, images that stay as they are.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fc_proto::control::FirecrackerDriveMount;
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::vm::{ReadRequest, StatusResponse, Stream, VmClient};
use fc_test_host::in_namespace;
use fc_testbed::measure::drive_times;

use crate::drives_vm::{Controlled, vm};
use crate::fixture::{Flavor, Instance, Setup, finish};
use crate::fs_image;
use crate::shared_vm::{on_control_socket, stop_vm};
use crate::{OnInstance, OnSetup};

/// Run with the machine's containerd.
pub const TESTS: &[(&str, OnInstance)] =
    &[("drives::shared_images_cannot_be_written", images_stay)];
/// The same, with instances of their own.
pub const OWN: &[(&str, OnSetup)] = &[
    ("drives::one_slot_is_used_again_and_again", one_slot),
    ("drives::mounts_of_any_type_at_any_path", mounts),
    ("drives::mounts_that_cannot_be_are_refused", refused_mounts),
    (
        "drives::a_pulled_plug_leaves_a_journal_that_replays",
        pulled_plug,
    ),
];

/// How often a slot is reused; `make soak` sets more.
const ROUNDS_ENV: &str = "FC_SOAK_ROUNDS";
const ROUNDS: usize = 20;
/// A round after which nothing more may pile up.
const SETTLED: usize = 5;

/// One slot, one container after another in it, each with a disk as fresh as the first's.
fn one_slot(setup: &Setup, flavor: &Flavor) {
    let on = Instance::with_config(setup, flavor, |config| {
        config.insert("default_container_count".to_owned(), 1.into());
        // For the figures below.
        config.insert("log_levels".to_owned(), vec!["debug"].into());
    });
    let shared = ["--annotation", "aws.firecracker.vm.id=reused"];
    let mut before = None;
    let (mut log, mut known) = (Vec::new(), 0);
    let rounds = std::env::var(ROUNDS_ENV).map_or(ROUNDS, |n| n.parse().expect("a number"));
    for round in 0..rounds {
        let id = format!("round-{round}");
        let script = format!(
            "test -e /mark && exit 9; cat /etc/second-layer; echo {round} > /mark; \
             head -c 300000 /dev/urandom > /noise; sync; cat /mark"
        );
        let done = on.run(&shared, &id, &["/bin/sh", "-c", &script]);
        assert_eq!(done.expect(0).text(), format!("second\n{round}\n"));
        // Each time: the shim keeps the end of its log only.
        read_log(&on, "reused", &mut log, &mut known);
        // By then whatever is made once is there.
        if round == SETTLED {
            before = Some(Footprint::of(&on, "reused"));
        }
    }
    assert_eq!(on.vm_dirs().len(), 1, "one VM for all");
    let after = Footprint::of(&on, "reused");
    let before = before.expect("more rounds than that");
    println!("after round {SETTLED}:  {before:?}\nafter round {rounds}: {after:?}");
    after.expect_no_more_than(&before);
    for times in drive_times(&log) {
        println!("{times}");
        assert!(!times.all.is_empty(), "the shim logs its drives");
    }
    stop_vm(&on, "reused");
}

/// What a VM takes of the host.
#[derive(Debug)]
struct Footprint {
    /// Descriptors of its shim and of its VMM.
    descriptors: [usize; 2],
    /// Mounts that its shim sees.
    mounts: usize,
    /// Loop devices of the instance's files.
    loops: usize,
    /// Memory of its shim.
    resident_kib: u64,
}

impl Footprint {
    fn of(on: &Instance, vm: &str) -> Self {
        let status = status(on, vm);
        let (shim, vmm) = (status.shim_pid, status.vmm_pid);
        let lines = |name: &str| {
            let text = std::fs::read_to_string(format!("/proc/{shim}/{name}")).expect("the shim");
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let resident = lines("status")
            .into_iter()
            .find(|l| l.starts_with("VmRSS:"));
        let resident = resident.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        let ours = on.layout.dir.display().to_string();
        let loops = std::fs::read_dir("/sys/block").expect("devices").flatten();
        let backing = loops
            .filter_map(|dev| std::fs::read_to_string(dev.path().join("loop/backing_file")).ok());
        Self {
            descriptors: [shim, vmm].map(|pid| {
                let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
                open.count()
            }),
            mounts: lines("mounts")
                .iter()
                .filter(|line| line.contains(&ours))
                .count(),
            loops: backing.filter(|file| file.contains(&ours)).count(),
            resident_kib: resident.expect("a size"),
        }
    }

    /// Nothing has piled up since `before`: that would show with each round. A few descriptors of calls that have just
    /// ended may still be open, and the shim keeps a part of its log, 4 MiB at most.
    #[track_caller]
    fn expect_no_more_than(&self, before: &Self) {
        for (now, then) in self.descriptors.iter().zip(&before.descriptors) {
            assert!(*now <= then + 4, "{before:?}, now {self:?}");
        }
        assert!(
            self.mounts <= before.mounts && self.loops <= before.loops,
            "{before:?}, now {self:?}"
        );
        assert!(
            self.resident_kib <= before.resident_kib + (4 << 10),
            "{before:?}, now {self:?}"
        );
    }
}

/// What the VM's shim says about it.
pub fn status(on: &Instance, id: &str) -> StatusResponse {
    on_control_socket(on, id, async |client, context| {
        let vm = VmClient::new(client);
        vm.status(context(), &Empty::default())
            .await
            .expect("Status")
    })
}

/// Adds what the VM's shim has logged after the line with number `known`.
fn read_log(on: &Instance, id: &str, log: &mut Vec<String>, known: &mut u64) {
    on_control_socket(on, id, async |client, context| {
        let vm = VmClient::new(client);
        let mut request = ReadRequest::new();
        request.stream = Stream::SHIM_LOG.into();
        loop {
            request.after = *known;
            let read = vm.read(context(), &request).await.expect("Read");
            if read.lines.is_empty() {
                return;
            }
            *known = read.last;
            log.extend(read.lines);
        }
    });
}

/// Root in the guest writes to every read-only device: none takes it, and no image changes.
fn images_stay(on: &Instance) {
    on.run(&[], "before", &["/bin/true"]).expect(0);
    let dir = std::fs::read_dir(on.layout.dir.join("image-cache")).expect("image cache");
    let files = dir.flatten().map(|entry| entry.path());
    // Those there are now: other tests, which run at the same time, add some.
    let images: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|x| x == "erofs"))
        .collect();
    assert!(!images.is_empty());
    let sums = || {
        let mut sum = Command::new("sha256sum");
        sum.args(&images);
        finish(sum).expect(0).text()
    };
    let before = sums();
    // Its size tells an attached image from a stub; the root image is among them.
    let script = "attached=0; for d in /sys/class/block/vd*; do n=${d##*/}; \
         test $(cat $d/ro) = 1 && test $(cat $d/size) -gt 1 || continue; attached=$((attached+1)); \
         mknod /tmp/$n b $(tr : ' ' < $d/dev) || exit 3; \
         blockdev --setrw /tmp/$n; \
         dd if=/dev/zero of=/tmp/$n bs=512 count=8 conv=fsync,notrunc 2>&1 && exit 4; \
         dd if=/tmp/$n of=/dev/null bs=512 count=8 2>/dev/null || exit 5; done; echo devices $attached";
    let done = on.run(&["--privileged"], "attacker", &["/bin/sh", "-c", script]);
    let done = done.expect(0);
    let text = done.text();
    let devices = text.lines().last().and_then(|l| l.strip_prefix("devices "));
    let devices: usize = devices.and_then(|n| n.parse().ok()).expect("a count");
    assert!(devices >= 2, "root image and the container's: {text}");
    assert_eq!(sums(), before);
}

/// A drive mount.
pub fn mount(host: &Path, guest: &str, fstype: &str, writable: bool) -> FirecrackerDriveMount {
    FirecrackerDriveMount {
        HostPath: host.display().to_string(),
        VMPath: guest.to_owned(),
        FilesystemType: fstype.to_owned(),
        IsWritable: writable,
        ..FirecrackerDriveMount::default()
    }
}

/// A file system image with `/hello` in it.
fn image(dir: &Path, fstype: &str) -> PathBuf {
    let source = dir.join(format!("{fstype}-source"));
    std::fs::create_dir_all(&source).expect("a directory");
    std::fs::write(source.join("hello"), format!("hello from {fstype}\n")).expect("a file");
    let image = dir.join(fstype);
    fs_image::make(fstype, &source, &image);
    image
}

/// Binds a directory of the guest into a container.
fn bind(guest: &str, to: &str, access: &str) -> String {
    format!("type=bind,src={guest},dst={to},options=rbind:{access}")
}

/// Every type, at paths that the root image has and has not, seen by a container.
fn mounts(setup: &Setup, flavor: &Flavor) {
    let controlled = Controlled::start(setup, flavor);
    let dir = setup.fresh_dir();
    let writable = fs_image::WRITABLE.map(|fstype| (fstype, "rw"));
    let types = writable
        .into_iter()
        .chain(fs_image::READ_ONLY.map(|fstype| (fstype, "ro")));
    let (mut drives, mut binds, mut shown) = (Vec::new(), Vec::new(), Vec::new());
    for (fstype, access) in types {
        let place = match fstype {
            "ext4" => "/vmv/data".to_owned(),
            "erofs" => "/volumes/deep/er".to_owned(),
            _ => format!("/srv/{fstype}/here"),
        };
        let image = image(&dir, fstype);
        drives.push(mount(&image, &place, fstype, access == "rw"));
        binds.push(bind(&place, &format!("/m/{fstype}"), "rw"));
        shown.push(format!(
            " /m/{fstype} {fstype} {access}\nhello from {fstype}\n"
        ));
    }
    // Its file system has the id of the one that it is a copy of.
    let copy = dir.join("xfs-copy");
    let mut cp = Command::new("cp");
    cp.arg("--sparse=always").arg(dir.join("xfs")).arg(&copy);
    finish(cp).expect(0);
    drives.push(mount(&copy, "/srv/xfs/copy", "xfs", false));
    drives[0].Options = vec!["noatime".to_owned()];
    controlled.create(&vm("mounts", drives)).expect("CreateVM");
    let mut options = vec!["--annotation", "aws.firecracker.vm.id=mounts"];
    for bind in &binds {
        options.extend(["--mount", bind]);
    }
    let script = "for fs in ext4 xfs btrfs erofs squashfs; do \
                  grep -o \" /m/$fs [a-z0-9]* r[ow]\" /proc/mounts; cat /m/$fs/hello; \
                  echo written 2>/dev/null >/m/$fs/new; done; sync";
    let done = controlled.on.run(&options, "c", &["/bin/sh", "-c", script]);
    assert_eq!(done.expect(0).text(), shown.concat());
    controlled.stop("mounts");
    for fstype in fs_image::WRITABLE {
        fs_image::check(fstype, &dir.join(fstype));
    }
    let new = fs_image::read_ext4(&dir.join("ext4"), "/new");
    assert_eq!(new, b"written\n");
}

/// CreateVM names what is wrong and leaves nothing.
fn refused_mounts(setup: &Setup, flavor: &Flavor) {
    let controlled = Controlled::start(setup, flavor);
    let dir = setup.fresh_dir();
    let ext4 = image(&dir, "ext4");
    for (mount, words) in [
        (mount(&ext4, "/proc/x", "ext4", true), ["/proc/x", "system"]),
        (
            mount(&ext4, "/vmv/../usr", "ext4", true),
            ["/usr", "system"],
        ),
        (
            mount(&ext4, "/vmv", "nosuchfs", true),
            ["nosuchfs", "DriveMounts[0]"],
        ),
        (mount(&ext4, "/vmv", "erofs", true), ["erofs", "/vmv"]),
    ] {
        let error = controlled.create(&vm("refused", vec![mount]));
        let error = error.expect_err("CreateVM fails").to_string();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error}");
        }
        assert_eq!(controlled.on.vm_dirs(), Vec::<PathBuf>::new());
    }
    fs_image::check("ext4", &ext4);
}

/// The VMM is killed while a container writes. What was synced is there after the journal's replay.
fn pulled_plug(setup: &Setup, flavor: &Flavor) {
    let controlled = Controlled::start(setup, flavor);
    let on = &controlled.on;
    let dir = setup.fresh_dir();
    let ext4 = image(&dir, "ext4");
    let drive = mount(&ext4, "/vmv", "ext4", true);
    controlled
        .create(&vm("plug", vec![drive]))
        .expect("CreateVM");
    let bind = bind("/vmv", "/m", "rw");
    let options = [
        "--annotation",
        "aws.firecracker.vm.id=plug",
        "--mount",
        &bind,
    ];
    let script = "n=0; while :; do n=$((n+1)); mkdir -p /m/d$((n % 7)); \
         echo $n > /m/d$((n % 7))/$n; echo $n >> /m/log; head -c 50000 /dev/urandom > /m/junk; sync; echo $n; done";
    let mut writer = on.run_command(&options, "writer", &["/bin/sh", "-c", script]);
    let mut writer = writer.stdout(Stdio::piped()).spawn().expect("ctr");
    let mut output = BufReader::new(writer.stdout.take().expect("piped"));
    let mut synced = 0;
    while synced < 5 {
        let mut line = String::new();
        assert_ne!(
            output.read_line(&mut line).expect("a line"),
            0,
            "the writer ended"
        );
        synced = line.trim().parse().expect("a number");
    }
    // A task's process on the host is the VMM.
    let tasks = on.ctr(&["task", "ls"]).expect(0).text();
    let task = tasks.lines().find(|line| line.starts_with("writer"));
    let pid = task
        .and_then(|line| line.split_whitespace().nth(1))
        .expect("a pid");
    let pid = rustix::process::Pid::from_raw(pid.parse().expect("a number")).expect("not 0");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("the rest");
    let last = rest
        .lines()
        .filter_map(|line| line.parse().ok())
        .next_back();
    let synced: u64 = last.unwrap_or(synced);
    let _ = writer.wait();
    on.remove("writer");

    assert!(needs_recovery(&ext4), "the file system was in use");
    let point = dir.join("mounted");
    std::fs::create_dir(&point).expect("a directory");
    // Where no process that another test starts takes the mount along into a namespace of its own.
    let (log, all_there) = in_namespace(|| {
        let mut mounted = Command::new("mount");
        mounted.args(["-o", "loop"]).arg(&ext4).arg(&point);
        finish(mounted).expect(0);
        let log = std::fs::read_to_string(point.join("log"));
        let all_there = (1..=synced).all(|n| {
            let file = point.join(format!("d{}/{n}", n % 7));
            std::fs::read_to_string(file).is_ok_and(|text| text == format!("{n}\n"))
        });
        // Such a process may have a file of it open, until its program runs.
        let mut unmounted = Command::new("timeout");
        let until = "until umount \"$0\"; do sleep 0.1; done";
        unmounted.args(["60", "sh", "-c", until]).arg(&point);
        finish(unmounted).expect(0);
        (log, all_there)
    });
    let log = log.expect("the log");
    let lines: Vec<u64> = log.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(
        lines.len() as u64 >= synced,
        "{synced} were synced, {} are there",
        lines.len()
    );
    assert!(all_there, "a synced file is missing");
    // Replayed it is; as it is now, it is clean.
    assert!(!needs_recovery(&ext4));
    fs_image::check("ext4", &ext4);
}

/// Whether the journal of an ext4 image has something to replay.
fn needs_recovery(image: &Path) -> bool {
    let mut dumpe2fs = Command::new("dumpe2fs");
    dumpe2fs.arg("-h").arg(image);
    finish(dumpe2fs).expect(0).text().contains("needs_recovery")
}
