use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

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

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
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
    flock(&other, exclusive).unwrap();
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
