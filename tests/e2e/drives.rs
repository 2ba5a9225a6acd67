//! What a VM's drives promise: slots for ever, data that stays right, images that stay as they are.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fc_proto::control::FirecrackerDriveMount;
use fc_proto::vm::{ReadRequest, Stream, VmClient};

use crate::drives_vm::{Controlled, vm};
use crate::fixture::{Flavor, Instance, Setup, finish};
use crate::shared_vm::{on_control_socket, stop_vm};
use crate::{OnInstance, OnSetup};

/// Run with the machine's containerd.
pub const TESTS: &[(&str, OnInstance)] = &[
    (
        "drives::data_stays_right_while_others_come_and_go",
        under_load,
    ),
    ("drives::shared_images_cannot_be_written", images_stay),
];
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

/// One slot, one container after another in it, each with a disk as fresh as the first's.
fn one_slot(setup: &Setup, flavor: &Flavor) {
    let on = Instance::with_config(setup, flavor, |config| {
        config.insert("default_container_count".to_owned(), 1.into());
        // For the figures below.
        config.insert("log_levels".to_owned(), vec!["debug"].into());
    });
    let shared = ["--annotation", "aws.firecracker.vm.id=reused"];
    let rounds = std::env::var(ROUNDS_ENV).map_or(ROUNDS, |n| n.parse().expect("a number"));
    for round in 0..rounds {
        let id = format!("round-{round}");
        let script = format!(
            "test -e /mark && exit 9; cat /etc/second-layer; echo {round} > /mark; \
             head -c 300000 /dev/urandom > /noise; sync; cat /mark"
        );
        let done = on.run(&shared, &id, &["/bin/sh", "-c", &script]);
        assert_eq!(done.expect(0).text(), format!("second\n{round}\n"));
    }
    assert_eq!(on.vm_dirs().len(), 1, "one VM for all");
    print_latencies(&shim_log(&on, "reused"));
    stop_vm(&on, "reused");
}

/// What the VM's shim keeps of its log.
fn shim_log(on: &Instance, id: &str) -> Vec<String> {
    on_control_socket(on, id, async |client, context| {
        let vm = VmClient::new(client);
        let mut lines = Vec::new();
        let mut request = ReadRequest::new();
        request.stream = Stream::SHIM_LOG.into();
        loop {
            let read = vm.read(context(), &request).await.expect("Read");
            if read.lines.is_empty() {
                return lines;
            }
            request.after = read.last;
            lines.extend(read.lines);
        }
    })
}

/// Medians of what the shim noted about each drive.
fn print_latencies(log: &[String]) {
    for (what, name) in [
        ("drive attached", "attach and mount"),
        ("drive released", "unmount and release"),
    ] {
        for kind in ["ctrstub", "imgstub"] {
            let lines = log.iter().filter(|l| l.contains(what) && l.contains(kind));
            let mut all: Vec<u64> = lines
                .filter_map(|line| {
                    let number = line.split("us=").nth(1)?;
                    let end = number.find(|c: char| !c.is_ascii_digit());
                    number[..end.unwrap_or(number.len())].parse().ok()
                })
                .collect();
            all.sort_unstable();
            let median = all.get(all.len() / 2).expect("the shim logs its drives");
            println!("{name}, {kind}: median {median} us of {} drives", all.len());
        }
    }
}

/// One container writes and reads all the time; others come and go beside it.
fn under_load(on: &Instance) {
    let shared = ["--annotation", "aws.firecracker.vm.id=loaded"];
    let script = "trap 'echo $rounds; exit 0' TERM; rounds=0; head -c 2000000 /dev/urandom > /a; \
                  sum=$(md5sum < /a); echo ready; \
                  while cp /a /b && sync && cmp /a /b && test \"$(md5sum < /b)\" = \"$sum\"; \
                  do rounds=$((rounds+1)); done; echo different; exit 1";
    let mut all = vec!["--rm"];
    all.extend(shared);
    let mut writer = on.run_command(&all, "writer", &["/bin/sh", "-c", script]);
    let mut writer = writer.stdout(Stdio::piped()).spawn().expect("ctr");
    let mut output = BufReader::new(writer.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("the writer says ready");
    assert_eq!(line, "ready\n");

    let mut md5 = Command::new("md5sum");
    let wanted = finish({
        md5.arg("/bin/busybox");
        md5
    });
    let wanted = wanted.expect(0).text();
    let wanted = wanted.split(' ').next().expect("a sum").to_owned();
    for round in 0..4 {
        let id = format!("visitor-{round}");
        let script = "md5sum < /bin/busybox; head -c 500000 /dev/urandom > /x; cp /x /y; sync; cmp /x /y && echo same";
        let done = on.run(&shared, &id, &["/bin/sh", "-c", script]).expect(0);
        assert_eq!(done.text(), format!("{wanted}  -\nsame\n"));
    }
    on.ctr(&["task", "kill", "-s", "SIGTERM", "writer"])
        .expect(0);
    let mut rest = String::new();
    output
        .read_to_string(&mut rest)
        .expect("the writer's count");
    assert!(writer.wait().expect("ctr").success(), "{rest}");
    let rounds: usize = rest.trim().parse().expect("a count");
    assert!(rounds > 0, "the writer did nothing meanwhile");
    stop_vm(on, "loaded");
}

/// Root in the guest writes to every read-only device: none takes it, and no image changes.
fn images_stay(on: &Instance) {
    let images = || {
        let dir = std::fs::read_dir(on.layout.dir.join("image-cache")).expect("image cache");
        let mut sum = Command::new("sha256sum");
        let files = dir.flatten().map(|entry| entry.path());
        sum.args(files.filter(|path| path.extension().is_some_and(|x| x == "erofs")));
        finish(sum).expect(0).text()
    };
    on.run(&[], "before", &["/bin/true"]).expect(0);
    let before = images();
    assert!(before.contains("erofs"));
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
    assert_eq!(images(), before);
}

fn mount(host: &Path, guest: &str, fstype: &str, writable: bool) -> FirecrackerDriveMount {
    FirecrackerDriveMount {
        HostPath: host.display().to_string(),
        VMPath: guest.to_owned(),
        FilesystemType: fstype.to_owned(),
        IsWritable: writable,
        ..FirecrackerDriveMount::default()
    }
}

/// A file system image with `/hello` in it.
fn image(dir: &Path, fstype: &str) -> Option<PathBuf> {
    let source = dir.join(format!("{fstype}-source"));
    std::fs::create_dir_all(&source).expect("a directory");
    std::fs::write(source.join("hello"), format!("hello from {fstype}\n")).expect("a file");
    let image = dir.join(fstype);
    let mut make = match fstype {
        "ext4" => {
            let file = std::fs::File::create(&image).expect("a file");
            file.set_len(32 << 20).expect("room");
            let mut make = Command::new("mkfs.ext4");
            make.args(["-q", "-F", "-d"]).arg(&source).arg(&image);
            make
        }
        "erofs" => {
            let mut make = Command::new("mkfs.erofs");
            make.arg("--quiet").arg(&image).arg(&source);
            make
        }
        "squashfs" => {
            let mut make = Command::new("mksquashfs");
            make.arg(&source)
                .arg(&image)
                .args(["-quiet", "-no-progress"]);
            make
        }
        _ => {
            let file = std::fs::File::create(&image).expect("a file");
            file.set_len(320 << 20).expect("room");
            let mut make = Command::new(format!("mkfs.{fstype}"));
            make.arg("-q").arg(&image);
            make
        }
    };
    let made = make.stdin(Stdio::null()).output().ok()?;
    assert!(made.status.success(), "{make:?}: {made:?}");
    Some(image)
}

/// Binds a directory of the guest into a container.
fn bind(guest: &str, to: &str, access: &str) -> String {
    format!("type=bind,src={guest},dst={to},options=rbind:{access}")
}

/// Several types, at paths that the root image has and has not, seen by a container.
fn mounts(setup: &Setup, flavor: &Flavor) {
    let controlled = Controlled::start(setup, flavor);
    let dir = setup.fresh_dir();
    let ext4 = image(&dir, "ext4").expect("mkfs.ext4");
    let erofs = image(&dir, "erofs").expect("mkfs.erofs");
    let mut drives = vec![
        mount(&ext4, "/vmv/data", "ext4", true),
        mount(&erofs, "/volumes/deep/er", "erofs", false),
    ];
    drives[0].Options = vec!["noatime".to_owned()];
    let mut binds = vec![
        bind("/vmv/data", "/m/ext4", "rw"),
        bind("/volumes/deep/er", "/m/erofs", "ro"),
    ];
    let mut shown = vec![
        " /m/ext4 ext4 rw\n".to_owned(),
        " /m/erofs erofs ro\n".to_owned(),
    ];
    for fstype in ["xfs", "btrfs", "squashfs"] {
        match image(&dir, fstype) {
            Some(image) => {
                let place = format!("/srv/{fstype}/here");
                let access = if fstype == "squashfs" { "ro" } else { "rw" };
                drives.push(mount(&image, &place, fstype, access == "rw"));
                shown.push(format!(" /m/{fstype} {fstype} {access}\n"));
                binds.push(bind(&place, &format!("/m/{fstype}"), "rw"));
            }
            None => println!("SKIPPED {fstype}: this machine cannot make one"),
        }
    }
    controlled.create(&vm("mounts", drives)).expect("CreateVM");
    let mut options = vec!["--annotation", "aws.firecracker.vm.id=mounts"];
    for bind in &binds {
        options.extend(["--mount", bind]);
    }
    let script = "grep -o ' /m/[a-z0-9]* [a-z0-9]* r[ow]' /proc/mounts | sort; \
         cat /m/ext4/hello /m/erofs/hello; echo written > /m/ext4/new; \
         touch /m/erofs/new 2>/dev/null && echo written to a read-only image; \
         for fs in xfs btrfs; do test ! -e /m/$fs || touch /m/$fs/new || exit 1; done; sync";
    let done = controlled.on.run(&options, "c", &["/bin/sh", "-c", script]);
    let text = done.expect(0).text();
    for line in shown {
        assert!(text.contains(&line), "{line:?} is not in {text}");
    }
    assert!(
        text.ends_with("hello from ext4\nhello from erofs\n"),
        "{text}"
    );
    controlled.stop("mounts");
    let mut debugfs = Command::new("debugfs");
    debugfs.args(["-R", "cat /new"]).arg(&ext4);
    assert_eq!(finish(debugfs).expect(0).text(), "written\n");
    fsck(&ext4);
}

/// The file system is clean, without a repair.
fn fsck(image: &Path) {
    let mut fsck = Command::new("e2fsck");
    fsck.args(["-f", "-n"]).arg(image);
    finish(fsck).expect(0);
}

/// CreateVM names what is wrong and leaves nothing.
fn refused_mounts(setup: &Setup, flavor: &Flavor) {
    let controlled = Controlled::start(setup, flavor);
    let dir = setup.fresh_dir();
    let ext4 = image(&dir, "ext4").expect("mkfs.ext4");
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
    fsck(&ext4);
}

/// The VMM is killed while a container writes. What was synced is there after the journal's replay.
fn pulled_plug(setup: &Setup, flavor: &Flavor) {
    let controlled = Controlled::start(setup, flavor);
    let on = &controlled.on;
    let dir = setup.fresh_dir();
    let ext4 = image(&dir, "ext4").expect("mkfs.ext4");
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

    let point = dir.join("mounted");
    std::fs::create_dir(&point).expect("a directory");
    let mut mounted = Command::new("mount");
    mounted.args(["-o", "loop"]).arg(&ext4).arg(&point);
    finish(mounted).expect(0);
    let log = std::fs::read_to_string(point.join("log"));
    let all_there = (1..=synced).all(|n| {
        let file = point.join(format!("d{}/{n}", n % 7));
        std::fs::read_to_string(file).is_ok_and(|text| text == format!("{n}\n"))
    });
    let mut unmounted = Command::new("umount");
    unmounted.arg(&point);
    finish(unmounted).expect(0);
    let log = log.expect("the log");
    let lines: Vec<u64> = log.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(
        lines.len() as u64 >= synced,
        "{synced} were synced, {} are there",
        lines.len()
    );
    assert!(all_there, "a synced file is missing");
    fsck(&ext4);
}
