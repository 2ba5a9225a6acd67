use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use fc_test_host::names;

use super::*;

fn any(_: &File) -> io::Result<bool> {
    Ok(true)
}

fn make(cache: &Cache, name: &str, content: &str) -> File {
    cache
        .entry::<CacheError>(name, any, |path| {
            fs::write(path, content).map_err(|error| CacheError::Io("write", path.into(), error))
        })
        .unwrap()
}

/// Waits until nobody has the entry at `path`: a process that another test is just starting has a copy of its file
/// until its program runs.
fn wait_until_unused(path: &Path) {
    let file = File::open(path).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    // Not left to closing it, for the same reason.
    flock(&file, FlockOperation::Unlock).unwrap();
}

#[test]
fn concurrent_makers_make_an_entry_once() {
    let dir = tempfile::tempdir().unwrap();
    let builds = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let cache = Cache::open(dir.path()).unwrap();
                let file = cache
                    .entry::<CacheError>("a", any, |path| {
                        builds.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                        fs::write(path, "content").unwrap();
                        Ok(())
                    })
                    .unwrap();
                assert_eq!(file.metadata().unwrap().len(), 7);
            });
        }
    });
    assert_eq!(builds.into_inner(), 1);
    assert_eq!(names(dir.path()), ["a", "merge"]);
}

#[test]
fn an_altered_entry_is_made_again_and_its_user_keeps_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let first = make(&cache, "a", "content");
    assert_eq!(
        make(&cache, "a", "never written").metadata().unwrap().len(),
        7
    );

    let path = dir.path().join("a");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(3)
        .unwrap();
    let second = make(&cache, "a", "another");
    assert_ne!(
        first.metadata().unwrap().ino(),
        second.metadata().unwrap().ino()
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "another");
}

#[test]
fn a_failed_build_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    cache
        .entry("a", any, |path| {
            fs::write(path, "half").unwrap();
            Err(CacheError::Invalid(path.into()))
        })
        .unwrap_err();
    assert_eq!(names(dir.path()), ["merge"]);
}

#[test]
fn leftovers_of_the_killed_go_and_those_of_the_living_stay() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    for dead in ["dead.x1.tmp", "a.x2.tmp", "dead.lock", "early.lock"] {
        fs::write(dir.path().join(dead), "").unwrap();
    }
    fs::create_dir(dir.path().join("dead.x3.tmp")).unwrap();
    fs::write(dir.path().join("alive.x4.tmp"), "").unwrap();
    let alive = Lock::wait(dir.path(), "alive").unwrap();
    make(&cache, "a", "content");
    assert_eq!(
        names(dir.path()),
        ["a", "alive.lock", "alive.x4.tmp", "merge"]
    );
    drop(alive);
}

#[test]
fn a_user_s_lock_keeps_an_entry_from_being_removed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let used = make(&cache, "a", "content");
    let other = File::open(dir.path().join("a")).unwrap();
    let exclusive = FlockOperation::NonBlockingLockExclusive;
    assert_eq!(flock(&other, exclusive), Err(rustix::io::Errno::WOULDBLOCK));
    drop(used);
    // Waits for the copy that a process has which another test is just starting.
    flock(&other, FlockOperation::LockExclusive).unwrap();
    // Somebody is about to remove it: it is made again rather than used.
    make(&cache, "a", "another");
    assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "another");
}

#[test]
fn what_is_no_image_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let build = |path: &Path| {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&[0; 8192], 0).unwrap();
        Ok(())
    };
    let error = cache.image::<CacheError>("00", build).unwrap_err();
    assert!(matches!(error, CacheError::Invalid(_)));
    assert_eq!(names(dir.path()), ["merge"]);
}

/// Makes an entry of 64 KiB that was last used `age` seconds ago.
fn make_used(cache: &Cache, name: &str, age: u64) {
    let file = make(cache, name, &"x".repeat(64 << 10));
    let then = SystemTime::now() - Duration::from_secs(age);
    let times = fs::FileTimes::new().set_accessed(then);
    file.set_times(times).unwrap();
}

/// As [`make_used`], and nobody has it any more.
fn make_unused(cache: &Cache, dir: &Path, name: &str, age: u64) {
    make_used(cache, name, age);
    wait_until_unused(&dir.join(name));
}

#[test]
fn the_longest_unused_go_first_and_what_is_used_stays() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    for (name, age) in [("a", 100), ("b", 400), ("c", 300), ("d", 200)] {
        make_unused(&cache, dir.path(), name, age);
    }
    // Asking for it makes it the youngest; keeping it open makes it stay.
    drop(make(&cache, "b", "never written"));
    wait_until_unused(&dir.path().join("b"));
    let used = make(&cache, "c", "never written");
    make_used(&cache, "c", 300);
    let upkeep = ImageCache::new(dir.path());
    let in_use: Vec<_> = upkeep
        .entries()
        .unwrap()
        .into_iter()
        .map(|entry| (entry.name, entry.in_use))
        .collect();
    let expected = [("a", false), ("b", false), ("c", true), ("d", false)];
    assert_eq!(in_use, expected.map(|(name, used)| (name.to_owned(), used)));

    let limited = Cache::open(dir.path()).unwrap().limited(200 << 10);
    drop(make(&limited, "e", &"x".repeat(64 << 10)));
    assert_eq!(names(dir.path()), ["b", "c", "e", "merge"]);
    wait_until_unused(&dir.path().join("e"));
    let removed = upkeep.prune(0).unwrap();
    assert_eq!(removed.len(), 2);
    assert_eq!(names(dir.path()), ["c", "merge"]);
    assert!(!upkeep.remove("c").unwrap());
    drop(used);
    wait_until_unused(&dir.path().join("c"));
    assert!(upkeep.remove("c").unwrap());
    assert!(upkeep.remove("c").is_err() && upkeep.remove("merge").is_err());
    assert_eq!(ImageCache::new("/nonexistent").entries().unwrap(), []);
}

#[test]
fn what_was_just_made_stays_in_a_cache_that_is_too_small() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap().limited(1);
    drop(make(&cache, "a", "content"));
    wait_until_unused(&dir.path().join("a"));
    drop(make(&cache, "b", "content"));
    assert_eq!(names(dir.path()), ["b", "merge"]);
}

#[test]
fn removing_and_asking_at_once_never_hands_out_a_removed_entry() {
    let dir = tempfile::tempdir().unwrap();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let cache = Cache::open(dir.path()).unwrap();
                for _ in 0..200 {
                    let file = make(&cache, "a", "content");
                    assert!(is_at(&file, &dir.path().join("a")).unwrap());
                }
            });
        }
        scope.spawn(|| {
            let upkeep = ImageCache::new(dir.path());
            for _ in 0..200 {
                upkeep.prune(0).unwrap();
            }
        });
    });
    drop(make(&Cache::open(dir.path()).unwrap(), "a", "content"));
    assert_eq!(names(dir.path()), ["a", "merge"]);
}

#[test]
fn an_alteration_that_hides_is_found_by_the_checksum() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.erofs");
    let mut image = vec![0; 8192];
    image[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
    image[1024 + 12] = 12;
    image[1024 + 36] = 2;
    let cache = Cache::open(dir.path()).unwrap();
    let made = cache.image::<CacheError>("image", |path| {
        fs::write(path, &image).map_err(|error| CacheError::Io("write", path.into(), error))
    });
    drop(made.unwrap());
    let upkeep = ImageCache::new(dir.path());
    let file = File::options().write(true).open(&path).unwrap();
    if rustix::fs::fgetxattr(&file, "trusted.firecracker.image", &mut [0; 128][..]).is_err() {
        println!(
            "SKIPPED: the temporary directory's filesystem takes no trusted attributes, or not from us"
        );
        return;
    }
    assert_eq!(upkeep.verify("image.erofs").unwrap(), Integrity::Intact);
    file.write_all_at(b"altered", 5000).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + STAMP).unwrap();
    assert_eq!(upkeep.verify("image.erofs").unwrap(), Integrity::Altered);
    // Longer than it was, and still a whole image.
    file.write_all_at(b"more", 9000).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + STAMP).unwrap();
    assert!(open_valid(&path, is_whole_image).unwrap().is_none());
}

/// Another process's use counts as much as one's own, and ends with it however it ends.
#[test]
fn a_killed_user_uses_nothing_any_more() {
    let dir = tempfile::tempdir().unwrap();
    drop(make(&Cache::open(dir.path()).unwrap(), "a", "content"));
    let path = dir.path().join("a");
    // Says when it has the lock, then waits to be killed.
    let mut user = std::process::Command::new("flock")
        .arg("--shared")
        .arg(&path)
        .args(["sh", "-c", "echo locked; exec sleep 600"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut output = io::BufReader::new(user.stdout.take().unwrap());
    io::BufRead::read_line(&mut output, &mut said).unwrap();
    assert_eq!(said, "locked\n");
    let upkeep = ImageCache::new(dir.path());
    assert!(upkeep.entries().unwrap()[0].in_use);
    assert_eq!(upkeep.prune(0).unwrap(), []);
    // `flock` waits for `sleep`, which has the lock's descriptor too.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", user.id())).unwrap();
    let sleep = children.trim().parse().unwrap();
    let sleep = rustix::process::Pid::from_raw(sleep).unwrap();
    rustix::process::kill_process(sleep, rustix::process::Signal::KILL).unwrap();
    user.wait().unwrap();
    wait_until_unused(&path);
    assert_eq!(upkeep.prune(0).unwrap().len(), 1);
    assert!(!path.exists());
}
