use super::*;

fn drive(id: &str, root: bool) -> DriveConfig {
    DriveConfig {
        drive_id: id.into(),
        is_root_device: root,
        is_read_only: Some(true),
        path_on_host: Some("/dev/null".into()),
        ..DriveConfig::default()
    }
}

fn ids(resources: &Resources) -> Vec<&str> {
    resources
        .drives()
        .iter()
        .map(|drive| drive.config.drive_id.as_str())
        .collect()
}

#[test]
fn the_root_drive_comes_first() {
    let mut resources = Resources::default();
    resources.set_drive(drive("a", false)).unwrap();
    resources.set_drive(drive("b", false)).unwrap();
    assert!(resources.root().is_none());
    resources.set_drive(drive("r", true)).unwrap();
    assert_eq!(ids(&resources), ["r", "a", "b"]);
    assert!(matches!(
        resources.set_drive(drive("b", true)),
        Err(DriveFault::RootAlreadyAdded)
    ));
    resources.set_drive(drive("r", true)).unwrap();
    resources.set_drive(drive("a", false)).unwrap();
    assert_eq!(ids(&resources), ["r", "a", "b"]);
    assert_eq!(
        resources.root(),
        Some(Root {
            partuuid: None,
            read_only: true
        })
    );
}

#[test]
fn the_root_drive_can_be_demoted_and_replaced() {
    let mut resources = Resources::default();
    resources.set_drive(drive("r", true)).unwrap();
    resources.set_drive(drive("a", false)).unwrap();
    resources.set_drive(drive("r", false)).unwrap();
    resources.set_drive(drive("a", true)).unwrap();
    assert_eq!(ids(&resources), ["a", "r"]);
}

#[test]
fn a_kernel_is_needed() {
    let mut resources = Resources::default();
    assert!(matches!(
        resources.kernel(),
        Err(StartFault::MissingKernelConfig)
    ));
    let config = |path: &str| BootSourceConfig {
        kernel_image_path: path.into(),
        ..BootSourceConfig::default()
    };
    assert_eq!(
        resources
            .set_boot_source(config("/nonexistent"))
            .unwrap_err()
            .to_string(),
        "The kernel file cannot be opened: No such file or directory (os error 2)"
    );
    resources.set_boot_source(config("/dev/null")).unwrap();
    assert!(matches!(resources.kernel(), Err(StartFault::Kernel { .. })));
}
