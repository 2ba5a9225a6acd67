//! `firecracker-bench rootfs`: an image of 100 MB made, used again, and the writable disks on top. No VM takes part.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use fc_rootfs::{ContainerFiles, Mount, Prepared, Rootfs, Settings};
use fc_testbed::measure::median;

use super::RootfsArgs;
use super::host::{BenchError, io_error, runtime};

/// Files of each of the two layers.
const FILES: usize = 2000;
/// Bytes of each of the two layers.
const LAYER: usize = 50_000_000;
/// Size of the writable disk in bytes.
const DISK: u64 = 10 << 30;

pub fn run(args: &RootfsArgs) -> Result<(), BenchError> {
    let dir = tempfile::tempdir_in(&args.dir).map_err(io_error(&args.dir))?;
    let layers = ["upper", "lower"].map(|name| layer(&dir.path().join(name)));
    let [upper, lower] = layers.map(|layer| layer.map_err(io_error(dir.path())));
    let layers = format!("{}:{}", upper?.display(), lower?.display());
    let runtime = runtime(dir.path())?;
    let settings = Settings::new(dir.path().join("cache"));
    let rootfs = Rootfs::new(settings);
    let prepare = |number: u32, writable| -> Result<(f64, Prepared), BenchError> {
        let mount = snapshot(dir.path(), number, &layers, writable);
        let mount = mount.map_err(io_error(dir.path()))?;
        let files = ContainerFiles {
            disk: dir.path().join(format!("{number}.disk")),
            disk_size: DISK,
            image: dir.path().join(format!("{number}.image")),
        };
        let begin = Instant::now();
        let prepared = runtime.block_on(rootfs.prepare(&[mount], &files))?;
        Ok((begin.elapsed().as_secs_f64() * 1e3, prepared))
    };
    let (made, first) = prepare(0, false)?;
    println!("Root file systems (ms)");
    println!("  {:<44} {made:>9.2}", "image of 100 MB made");
    if let Prepared::Layers { image, .. } = &first {
        let size = fs::metadata(image.path()).map_err(io_error(image.path()))?;
        println!("  {:<44} {:>9.1}", "its size (MB)", size.len() as f64 / 1e6);
    }
    // The first one formats what the others are copied from.
    let (formatted, _) = prepare(1, true)?;
    println!(
        "  {:<44} {formatted:>9.2}",
        "image found, first disk of 10 GiB formatted"
    );
    for (what, writable) in [
        ("image found, no disk", false),
        ("image found, disk of 10 GiB copied", true),
    ] {
        let times: Result<Vec<f64>, BenchError> = (0..args.repeat.max(1))
            .map(|number| Ok(prepare(2 + number, writable)?.0))
            .collect();
        let times = times?;
        let worst = times.iter().copied().fold(0.0, f64::max);
        let time = median(times.into_iter());
        println!(
            "  {what:<44} {time:>9.2}, worst {worst:.2} of {}",
            args.repeat.max(1)
        );
    }
    Ok(())
}

/// What the overlayfs snapshotter says of a new container's snapshot.
fn snapshot(dir: &Path, number: u32, layers: &str, writable: bool) -> io::Result<Mount> {
    let mut options = vec![format!("lowerdir={layers}")];
    if writable {
        for (name, option) in [("fs", "upperdir"), ("work", "workdir")] {
            let path = dir.join(format!("s{number}")).join(name);
            fs::create_dir_all(&path)?;
            options.push(format!("{option}={}", path.display()));
        }
    }
    Ok(Mount {
        fstype: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options,
    })
}

/// A layer in files of one size, half of each repetitive.
fn layer(dir: &Path) -> io::Result<PathBuf> {
    let mut random = vec![0; LAYER / FILES / 2];
    let text = b"the same again ".repeat(random.len() / 15 + 1);
    let layer = dir.file_name().unwrap_or_default().display().to_string();
    for number in 0..FILES {
        let sub = dir.join(format!("{layer}-{}", number / 100));
        fs::create_dir_all(&sub)?;
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let mut file = File::create(sub.join(number.to_string()))?;
        file.write_all(&random)?;
        file.write_all(&text[..random.len()])?;
    }
    Ok(dir.to_owned())
}
