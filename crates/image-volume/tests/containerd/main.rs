//! Against real, private containerds: the machine's, and newer ones if they were fetched to `build/`.

mod daemon;
mod images;
mod registry;

use std::error::Error;
use std::fs;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use fc_image_volume::{ImageVolumeError, ImageVolumes};
use fc_test_host::{in_namespace, sh};
use fc_volume::{Set, VolumeProvider};

use crate::daemon::daemons;

#[tokio::test]
async fn volumes_of_an_image_become_a_drive() {
    for daemon in daemons() {
        for snapshotter in ["overlayfs", "native"] {
            daemon.unpack(images::NAME, snapshotter);
            let before = daemon.state(snapshotter);
            let options = daemon.options().snapshotter(snapshotter);
            let containerd = daemon.connect().await;
            let mut image = ImageVolumes::from_image(&containerd, images::NAME, &options)
                .await
                .unwrap();
            let destinations: Vec<String> = image
                .volumes()
                .unwrap()
                .into_iter()
                .map(|(_, path)| path)
                .collect();
            assert_eq!(
                destinations,
                ["/missing", "/srv/www", "/trap", "/var/empty"]
            );
            assert_ne!(daemon.state(snapshotter), before);

            let mut set = Set::in_directory(daemon.path("set"));
            set.add_from(&image).unwrap();
            let drive = set.prepare_drive_mount(16 << 20).unwrap();
            let dir = set.prepare_directory().unwrap();
            image.delete().await.unwrap();
            image.delete().await.unwrap();
            assert!(image.volumes().is_err());
            assert_eq!(daemon.state(snapshotter), before);

            // What was prepared last says where the volumes are; they have the same names in both.
            let mounts = set.mounts_of(images::NAME).unwrap();
            assert_eq!(mounts[1]["destination"], "/srv/www");
            let sources = mounts.iter().map(|mount| mount["source"].as_str().unwrap());
            let names: Vec<&Path> = sources
                .map(|source| Path::new(source).strip_prefix(dir.path()).unwrap())
                .collect();
            images::assert_volumes(dir.path(), &names);
            let target = daemon.path("drive");
            fs::create_dir_all(&target).unwrap();
            in_namespace(|| {
                let mount = format!("mount -o loop,ro {} drive", drive.path().display());
                sh(&mount, &daemon.path("."));
                images::assert_volumes(&target, &names);
            });
        }
    }
}

#[tokio::test]
async fn what_cannot_be_had_is_told_and_leaves_nothing() {
    for daemon in daemons() {
        let before = daemon.state("overlayfs");
        let containerd = daemon.connect().await;
        let options = daemon.options();
        let get = async |image: &str| {
            ImageVolumes::from_image(&containerd, image, &options)
                .await
                .unwrap_err()
        };
        let error = get("localhost/none:1").await;
        assert!(
            matches!(error, ImageVolumeError::NoImage { .. }),
            "{error:?}"
        );
        let error = get(images::PLAIN).await;
        assert!(matches!(error, ImageVolumeError::NoVolumes(_)), "{error:?}");
        let error = get(images::FILE).await;
        assert!(matches!(error, ImageVolumeError::Volume(..)), "{error:?}");
        for image in [images::ROOT, images::RELATIVE] {
            let error = get(image).await;
            assert!(
                matches!(error, ImageVolumeError::VolumePath(_)),
                "{error:?}"
            );
        }
        let options = daemon.options().snapshotter("nothing");
        let error = ImageVolumes::from_image(&containerd, images::NAME, &options)
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "containerd has no snapshotter \"nothing\""
        );
        let options = daemon.options().snapshotter("native");
        let error = ImageVolumes::from_image(&containerd, images::NAME, &options)
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("ctr image pull --snapshotter native"),
            "{error:?}"
        );
        let options = daemon.options().directory(daemon.path("nowhere"));
        let error = ImageVolumes::from_image(&containerd, images::NAME, &options)
            .await
            .unwrap_err();
        assert!(
            matches!(error, ImageVolumeError::Directory(..)),
            "{error:?}"
        );
        assert_eq!(daemon.state("overlayfs"), before);
        assert_eq!(daemon.state("native"), "");
    }
}

/// Polls `work` so many times at most, and drops it.
async fn poll_times<F: Future>(times: u32, work: F) -> Option<F::Output> {
    let mut work = pin!(work);
    let mut left = times;
    poll_fn(|context| {
        left -= 1;
        match work.as_mut().poll(context) {
            Poll::Pending if left == 0 => Poll::Ready(None),
            poll => poll.map(Some),
        }
    })
    .await
}

#[tokio::test]
async fn a_dropped_future_leaves_nothing() {
    for daemon in daemons() {
        let containerd = daemon.connect().await;
        let (before, options) = (daemon.state("overlayfs"), daemon.options());
        // The connection's own tasks stay.
        let tasks = || {
            tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks()
        };
        let idle = tasks();
        let mut polls = 0;
        loop {
            polls += 1;
            let work = ImageVolumes::from_image(&containerd, images::NAME, &options);
            // Complete or not, it is dropped.
            let complete = poll_times(polls, work)
                .await
                .is_some_and(|image| image.is_ok());
            let settled = async {
                while tasks() > idle {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), settled)
                .await
                .unwrap();
            assert_eq!(daemon.state("overlayfs"), before, "after {polls} polls");
            if complete {
                break;
            }
        }
        assert!(polls > 3, "{polls} polls");
    }
}

#[tokio::test]
async fn what_a_killed_process_leaves_expires() {
    for daemon in daemons() {
        let before = daemon.state("overlayfs");
        let containerd = daemon.connect().await;
        // Soon over, and longer where a busy machine does not get the image ready in it.
        let mut lifetime = Duration::from_secs(3);
        let image = loop {
            let options = daemon.options().lifetime(lifetime);
            match ImageVolumes::from_image(&containerd, images::NAME, &options).await {
                Ok(image) => break image,
                Err(error) => assert!(lifetime < Duration::from_secs(60), "{error:?}"),
            }
            lifetime *= 2;
        };
        std::mem::forget(image);
        sh("umount -l image.* && rmdir image.*", &daemon.path("mounts"));
        // Expired leases are noticed when garbage is collected.
        let deadline = Instant::now() + Duration::from_secs(60);
        while daemon.state("overlayfs") != before {
            assert!(Instant::now() < deadline, "{}", daemon.state("overlayfs"));
            daemon.collect_garbage();
        }
    }
}

#[tokio::test]
async fn an_image_is_pulled_if_that_was_asked_for() {
    for daemon in daemons() {
        let registry = registry::Registry::start(images::NAME);
        let name = registry.image();
        let containerd = daemon.connect().await;
        let options = daemon.options().pull();
        let pulled = ImageVolumes::from_image(&containerd, &name, &options).await;
        if daemon.version().starts_with("1.") {
            // 1.6 has no transfer service; that of 1.7 asks no registry without TLS, which this one lacks.
            let why = if daemon.version().starts_with("1.6") {
                "unknown service"
            } else {
                "failed to resolve image"
            };
            let error = pulled.unwrap_err();
            assert!(error.to_string().contains("1.7 or newer"), "{error}");
            let source = error.source().unwrap().to_string();
            assert!(source.contains(why), "{source}");
            continue;
        }
        let mut image = pulled.unwrap();
        assert_eq!(image.volumes().unwrap().len(), 4);
        image.delete().await.unwrap();
    }
}
