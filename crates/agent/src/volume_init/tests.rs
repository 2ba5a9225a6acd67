use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

fn input(dir: &Path, volumes: &[&str]) -> Input {
    Input {
        from: dir.join("from"),
        to: dir.join("to/deep"),
        volumes: Some(volumes.iter().map(PathBuf::from).collect()),
    }
}

fn failure(input: &Input) -> String {
    chain(&copy_all(input).unwrap_err())
}

#[test]
fn directories_are_copied_with_all_attributes() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from/srv/www");
    fs::create_dir_all(from.join("inner")).unwrap();
    fs::write(from.join("inner/file"), "content").unwrap();
    fs::hard_link(from.join("inner/file"), from.join("hard")).unwrap();
    symlink("/nowhere", from.join("link")).unwrap();
    nix::unistd::mkfifo(&from.join("fifo"), Mode::S_IRUSR).unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    mode(&from.join("inner/file"), 0o4751).unwrap();
    mode(&from.join("inner"), 0o1777).unwrap();
    mode(&from, 0o751).unwrap();
    // Through a link that leaves the root by its text, but not as the root sees it.
    symlink("/srv", dir.path().join("from/way")).unwrap();
    copy_all(&input(dir.path(), &["way/www", "/srv/../srv/www/"])).unwrap();
    for copy in ["to/deep/way/www", "to/deep/srv/www"] {
        let to = dir.path().join(copy);
        for name in ["", "inner", "inner/file", "hard", "link", "fifo"] {
            let [old, new] =
                [&from, &to].map(|root| fs::symlink_metadata(root.join(name)).unwrap());
            let shown =
                |m: &fs::Metadata| (m.mode(), m.uid(), m.mtime(), m.mtime_nsec(), m.nlink());
            assert_eq!(shown(&old), shown(&new), "{name}");
        }
        assert_eq!(fs::read_to_string(to.join("hard")).unwrap(), "content");
        assert_eq!(
            fs::read_link(to.join("link")).unwrap(),
            Path::new("/nowhere")
        );
        let above = fs::metadata(to.parent().unwrap()).unwrap();
        assert_eq!(above.mode() & 0o777, 0o700);
    }
}

#[test]
fn nothing_is_written_or_read_outside_of_the_roots() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["from/a", "to/deep", "outside/a"] {
        fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("outside/a/secret"), "x").unwrap();
    // Out of the source: there is no such directory inside.
    symlink("../outside", dir.path().join("from/out")).unwrap();
    let text = failure(&input(dir.path(), &["out/a"]));
    assert!(text.contains("out/a") && text.contains("No such"), "{text}");
    // Out of the destination, by what an earlier volume put there.
    symlink(dir.path().join("outside"), dir.path().join("to/deep/b")).unwrap();
    fs::create_dir_all(dir.path().join("from/b/a")).unwrap();
    let text = failure(&input(dir.path(), &["b/a"]));
    assert!(text.contains("Cannot make"), "{text}");
    assert_eq!(
        fs::read_dir(dir.path().join("outside/a")).unwrap().count(),
        1
    );
}

#[test]
fn what_cannot_be_copied_is_told() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("from")).unwrap();
    fs::write(dir.path().join("from/file"), "x").unwrap();
    for (volume, part) in [
        ("missing", "No such"),
        ("file", "Not a dir"),
        ("/..", "names no directory"),
    ] {
        let text = failure(&input(dir.path(), &[volume]));
        assert!(text.contains(part), "{volume}: {text}");
    }
    let relative = Input {
        to: "to".into(),
        ..input(dir.path(), &[])
    };
    assert!(failure(&relative).contains("not an absolute path"));
    // As a Go client sends an empty list.
    let input: Input =
        serde_json::from_str(r#"{"From":"/","To":"/hostvolumes/x","Volumes":null}"#).unwrap();
    assert!(copy_all(&input).is_ok());
}

#[test]
fn the_name_is_what_it_is_called_by() {
    assert!(is_called(OsStr::new("/hostbin/volume-init")) && is_called(OsStr::new(NAME)));
    assert!(!is_called(OsStr::new("/sbin/init")));
}
