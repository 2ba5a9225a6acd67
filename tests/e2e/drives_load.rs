//! One slot that is swapped from file to file while all others of the VM are written to: every byte stays where it
//! belongs.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fc_proto::vm::StatusResponse;

use crate::OnInstance;
use crate::drives::status;
use crate::fixture::{Instance, finish};
use crate::fs_image;
use crate::shared_vm::stop_vm;
use crate::task_api::{Tasks, mount};

/// Run with the machine's containerd.
pub const TESTS: &[(&str, OnInstance)] = &[(
    "drives::data_stays_right_while_others_come_and_go",
    under_load,
)];

const VM: &str = "loaded";
/// Files that come and go in the one slot, each this often.
const FILES: usize = 3;
const ROUNDS: usize = 2;

/// Writes, reads and compares until SIGTERM, then tells how often it did and what is in `/b`.
const WRITER: &str = "trap 'echo $rounds; md5sum </b; exit 0' TERM; rounds=0; head -c 2000000 /dev/urandom >/a; \
     sum=$(md5sum </a); echo ready; \
     while cp /a /b && sync && cmp /a /b && test \"$(md5sum </b)\" = \"$sum\"; \
     do rounds=$((rounds+1)); done; echo different; exit 1";

fn under_load(on: &Instance) {
    // A disk over a shared image makes the VM, with four slots; two image files fill the next two.
    let annotation = format!("aws.firecracker.vm.id={VM}");
    let options = ["--rm", "--annotation", &annotation];
    let mut first = on.run_command(&options, "writer", &["/bin/sh", "-c", WRITER]);
    let mut first = first.stdout(Stdio::piped()).spawn().expect("ctr");
    let mut output = BufReader::new(first.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("the writer says ready");
    assert_eq!(line, "ready\n");
    let dir = on.layout.dir.join(VM);
    let tasks = Tasks::of(on, VM);
    let writers: Vec<_> = ["writer-1", "writer-2"]
        .into_iter()
        .map(|id| {
            let image = image(&dir, id);
            let rootfs = [mount("ext4", &image, &["rw"])];
            let started = tasks.start(id, &rootfs, &["/bin/sh", "-c", WRITER]);
            let mut started = started.unwrap_or_else(|error| panic!("{id}: {error}"));
            assert_eq!(started.line(), "ready\n");
            (image, started)
        })
        .collect();

    visits(on, &tasks, &dir);

    let count = |text: &str| -> u32 {
        let number = text.lines().next().and_then(|line| line.parse().ok());
        number.unwrap_or_else(|| panic!("no count: {text}"))
    };
    for (image, writer) in writers {
        tasks.kill(&writer, 15);
        let (status, said) = tasks.end(writer);
        assert_eq!(status, 0, "{said}");
        assert!(count(&said) > 0, "it did nothing meanwhile");
        fs_image::check("ext4", &image);
        assert_eq!(said.lines().nth(1), Some(&*md5(&image, "/b")));
    }
    on.ctr(&["task", "kill", "-s", "SIGTERM", "writer"])
        .expect(0);
    let mut said = String::new();
    output.read_to_string(&mut said).expect("its count");
    assert!(first.wait().expect("ctr").success(), "{said}");
    assert!(count(&said) > 0, "it did nothing meanwhile");
    stop_vm(on, VM);
}

/// Container after container in the slot that is left, each with a file of its own.
fn visits(on: &Instance, tasks: &Tasks, dir: &Path) {
    let images: Vec<PathBuf> = (0..FILES)
        .map(|file| image(dir, &format!("file-{file}")))
        .collect();
    // What each file is on the host since it was last let go of.
    let mut sums = vec![String::new(); FILES];
    let mut slots = Vec::new();
    for round in 0..ROUNDS {
        for (file, image) in images.iter().enumerate() {
            // What was there, first: this file's, not that of the one before in the same slot.
            let before: Vec<String> = (0..round)
                .map(|earlier| md5(image, &format!("/out-{earlier}")))
                .collect();
            let script = format!(
                "cat /hello; for earlier in $(seq 1 {round}); do md5sum </out-$((earlier-1)); done; \
                 head -c 1000000 /dev/urandom >/out-{round}; yes tag-of-file-{file} | head -n 20000 >/tags-{round}; \
                 sync; md5sum </out-{round}"
            );
            let id = format!("visitor-{round}-{file}");
            let rootfs = [mount("ext4", image, &["rw"])];
            let started = tasks.start(&id, &rootfs, &["/bin/sh", "-euc", &script]);
            let started = started.unwrap_or_else(|error| panic!("{id}: {error}"));
            slots.extend(slot_of(&status(on, VM), &id));
            let (ended, said) = tasks.end(started);
            assert_eq!(ended, 0, "{said}");
            fs_image::check("ext4", image);
            let mut expected = vec![format!("file-{file}")];
            expected.extend(before);
            expected.push(md5(image, &format!("/out-{round}")));
            assert_eq!(said.lines().collect::<Vec<_>>(), expected);
            let tags = fs_image::read_ext4(image, &format!("/tags-{round}"));
            let tag = format!("tag-of-file-{file}\n");
            assert_eq!(String::from_utf8_lossy(&tags), tag.repeat(20_000));
            sums[file] = fs_image::sha256(image);
        }
    }
    slots.dedup();
    assert_eq!(slots.len(), 1, "one slot for all: {slots:?}");
    for (file, image) in images.iter().enumerate() {
        assert_eq!(
            fs_image::sha256(image),
            sums[file],
            "written to after it was let go of"
        );
        let content = std::fs::read(image).expect("the image");
        for other in (0..FILES).filter(|other| *other != file) {
            let tag = format!("tag-of-file-{other}\n");
            let found = content
                .windows(tag.len())
                .any(|part| part == tag.as_bytes());
            assert!(!found, "file {file} has something of file {other}");
        }
    }
}

fn slot_of(status: &StatusResponse, owner: &str) -> Vec<String> {
    let slots = status.slots.iter().filter(|slot| slot.owner == owner);
    slots.map(|slot| slot.drive_id.clone()).collect()
}

/// An ext4 image whose `/hello` is its name.
fn image(dir: &Path, name: &str) -> PathBuf {
    let (tree, image) = (dir.join(format!("{name}-tree")), dir.join(name));
    fs_image::tree(&tree, &format!("{name}\n"));
    fs_image::make("ext4", &tree, &image);
    image
}

/// What `md5sum` without a name prints of a file in an ext4 image.
fn md5(image: &Path, file: &str) -> String {
    let copy = image.with_extension("copy");
    std::fs::write(&copy, fs_image::read_ext4(image, file)).expect("a copy");
    let mut sum = Command::new("sh");
    sum.args(["-c", "md5sum <\"$0\""]).arg(copy);
    finish(sum).expect(0).text().trim_end().to_owned()
}
