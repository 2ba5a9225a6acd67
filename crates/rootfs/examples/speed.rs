//! How long it takes to make an image of 100 MB, to use it again, and to make a disk. Needs root.
//!
//! `cargo run --release -p fc-rootfs --example speed [DIRECTORY]`: the directory is where layers, cache and
//! disks are put, by default the system's for temporary files.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use fc_rootfs::{ContainerFiles, Mount, Prepared, Rootfs, Settings};

const FILES: usize = 2000;
const ROUNDS: usize = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parent = std::env::args_os()
        .nth(1)
        .unwrap_or_else(|| std::env::temp_dir().into());
    let dir = tempfile::tempdir_in(parent)?;
    let layers = [layer(&dir.path().join("2"))?, layer(&dir.path().join("1"))?].join(":");
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let rootfs = Rootfs::new(Settings::new(dir.path().join("cache")));
    let mut times = Vec::new();
    for round in 0..=ROUNDS {
        let snapshot = dir.path().join(format!("s{round}"));
        for name in ["fs", "work"] {
            fs::create_dir_all(snapshot.join(name))?;
        }
        let options = [
            format!("lowerdir={layers}"),
            format!("upperdir={}", snapshot.join("fs").display()),
            format!("workdir={}", snapshot.join("work").display()),
        ];
        let mount = Mount {
            fstype: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: options.into(),
        };
        let files = ContainerFiles {
            disk: dir.path().join(format!("{round}.disk")),
            disk_size: 10 << 30,
            image: dir.path().join(format!("{round}.image")),
        };
        let begin = Instant::now();
        let prepared = runtime.block_on(rootfs.prepare(&[mount], &files))?;
        times.push(begin.elapsed());
        if round == 0
            && let Prepared::Layers { image, .. } = &prepared
        {
            let length = fs::metadata(image.path())?.len();
            println!("image of {} MB in {} files", length / 1_000_000, FILES * 2);
        }
    }
    let first = times.remove(0);
    times.sort();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    println!(
        "first container (image made, disk formatted): {:.0} ms",
        milliseconds(first)
    );
    println!(
        "later ones (image found, 10 GiB disk made): median {:.1} ms, worst of {ROUNDS} {:.1} ms",
        milliseconds(times[ROUNDS / 2]),
        milliseconds(times[ROUNDS - 1])
    );
    Ok(())
}

/// 50 MB in files of one size, half of it repetitive.
fn layer(dir: &Path) -> std::io::Result<String> {
    let mut random = vec![0; 50_000_000 / FILES / 2];
    let text = b"the same again ".repeat(random.len() / 15 + 1);
    for number in 0..FILES {
        let sub = dir.join(format!(
            "{}-{}",
            number / 100,
            dir.file_name().map_or(0, |n| n.len())
        ));
        fs::create_dir_all(&sub)?;
        std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut random)?;
        let name = format!("{}-{number}", dir.file_name().unwrap_or_default().display());
        let mut file = File::create(sub.join(name))?;
        file.write_all(&random)?;
        file.write_all(&text[..random.len()])?;
    }
    Ok(dir.display().to_string())
}
