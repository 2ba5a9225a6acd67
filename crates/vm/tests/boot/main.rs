//! Boots real VMs from requests. Needs root, a VMM (`FIRECRACKER_BIN`, or firecracker-tcg in `FC_BIN_DIR`) and a
//! guest (`FC_GUEST_DIR`); `make test` sets them.

mod host;
mod jail;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fc_drives::{Attach, Kind};
use fc_host_file::{Access, HostFile};
use fc_proto::control::{
    CreateVMRequest, FirecrackerBalloonDevice, FirecrackerDriveMount, FirecrackerNetworkInterface,
    FirecrackerRateLimiter, FirecrackerRootDrive, FirecrackerTokenBucket,
    StaticNetworkConfiguration,
};
use fc_proto::protobuf::MessageField;
use fc_vm::machine::{Class, Connection, Progress, StopError, WaitsFor};
use host::{BOUND, Host, mount, request};

/// A tap that goes with the test.
struct Tap(String);

impl Tap {
    fn new() -> Self {
        let name = format!("fcvm{}", std::process::id());
        let made = Command::new("ip")
            .args(["tuntap", "add", "mode", "tap", "name", &name])
            .status();
        assert!(made.unwrap().success());
        Self(name)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).status();
    }
}

fn limit() -> MessageField<FirecrackerRateLimiter> {
    MessageField::some(FirecrackerRateLimiter {
        Bandwidth: MessageField::some(FirecrackerTokenBucket {
            RefillTime: 100,
            Capacity: 100 << 20,
            ..FirecrackerTokenBucket::default()
        }),
        ..FirecrackerRateLimiter::default()
    })
}

#[tokio::test]
async fn every_field_takes_effect() {
    let Some(host) = Host::find() else { return };
    let tap = Tap::new();
    let log = host.base.path().join("log-fifo");
    let request = CreateVMRequest {
        KernelArgs: format!("{} zz.last=1 aa.first=2", host.config.kernel_args),
        RootDrive: MessageField::some(FirecrackerRootDrive {
            HostPath: host.config.root_drive.display().to_string(),
            CacheType: "Writeback".into(),
            RateLimiter: limit(),
            ..FirecrackerRootDrive::default()
        }),
        DriveMounts: vec![
            FirecrackerDriveMount {
                Options: vec!["noatime".into()],
                IsWritable: true,
                CacheType: "Writeback".into(),
                RateLimiter: limit(),
                ..mount(host.image("rw.img"), "/run/rw")
            },
            mount(host.image("ro.img"), "/run/ro"),
        ],
        NetworkInterfaces: vec![FirecrackerNetworkInterface {
            InRateLimiter: limit(),
            StaticConfig: MessageField::some(StaticNetworkConfiguration {
                HostDevName: tap.0.clone(),
                MacAddress: "06:00:ac:10:00:02".into(),
                ..StaticNetworkConfiguration::default()
            }),
            ..FirecrackerNetworkInterface::default()
        }],
        BalloonDevice: MessageField::some(FirecrackerBalloonDevice {
            AmountMib: 8,
            DeflateOnOom: true,
            StatsPollingIntervals: 1,
            ..FirecrackerBalloonDevice::default()
        }),
        ContainerCount: 2,
        VolumeSlots: 1,
        LogFifoPath: log.display().to_string(),
        ..request()
    };
    let progress = Progress::default();
    let dir = host.dir(&request.VMID);
    let machine = host.boot(&dir, &request, &progress).await;
    let machine = machine.unwrap();

    let config = machine.vmm().vm_config().await.unwrap();
    let drives: Vec<_> = config["drives"]
        .as_array()
        .unwrap()
        .iter()
        .map(|drive| {
            (
                drive["is_read_only"].as_bool().unwrap(),
                drive["cache_type"].as_str().unwrap(),
            )
        })
        .collect();
    // The root device, containers, drive mounts, images (two for each container), volumes.
    let mut expected = vec![(true, "Writeback"), (false, "Unsafe"), (false, "Unsafe")];
    expected.extend([(false, "Writeback"), (true, "Unsafe")]);
    expected.extend([(true, "Unsafe"); 4]);
    expected.push((false, "Unsafe"));
    assert_eq!(drives, expected, "{config:#}");
    assert_eq!(
        config["drives"][3]["rate_limiter"]["bandwidth"]["size"],
        100 << 20
    );
    assert_eq!(config["machine-config"]["mem_size_mib"], 192);
    assert_eq!(config["balloon"]["amount_mib"], 8);
    let args = config["boot-source"]["boot_args"].as_str().unwrap();
    assert!(args.ends_with("zz.last=1 aa.first=2"), "{args}");
    let interface = &config["network-interfaces"][0];
    assert_eq!(interface["iface_id"], "1");
    assert_eq!(interface["host_dev_name"], tap.0.as_str());
    assert_eq!(interface["guest_mac"], "06:00:ac:10:00:02");
    assert_eq!(
        interface["rx_rate_limiter"]["bandwidth"]["refill_time"],
        100
    );

    for (index, name) in [(3, "drivemntstub0"), (4, "drivemntstub1")] {
        let path = config["drives"][index]["path_on_host"].as_str().unwrap();
        assert_eq!(path, format!("{name}.attached"));
    }

    assert_eq!(progress.vmm().unwrap().pid, machine.vmm_pid());
    let own: Duration = progress
        .spans()
        .iter()
        .filter(|span| span.waits_for == WaitsFor::Nobody)
        .map(|span| span.duration)
        .sum();
    println!("our own part: {own:?}; {:#?}", progress.spans());

    machine.stop(BOUND).await.unwrap();
    drop(machine);
    dir.undo();
    assert!(!log.exists());
}

#[tokio::test]
async fn a_drive_mount_that_fails_fails_the_boot_and_leaves_nothing() {
    let Some(host) = Host::find() else { return };
    let garbage = host.base.path().join("garbage.img");
    std::fs::write(&garbage, vec![0x5a; 1 << 20]).unwrap();
    let request = CreateVMRequest {
        DriveMounts: vec![
            mount(host.image("good.img"), "/run/good"),
            mount(garbage.display().to_string(), "/run/bad"),
        ],
        ..request()
    };
    let progress = Progress::default();
    let dir = host.dir(&request.VMID);
    let machine = host.boot(&dir, &request, &progress).await;
    let error = machine.err().unwrap();
    assert_eq!(error.class(), Class::Precondition);
    let text = fc_errors::chain(&error);
    assert!(
        text.starts_with("DriveMounts[1]") && text.contains("garbage.img"),
        "{text}"
    );
    let vmm = progress.vmm().unwrap().pid;
    assert!(!Path::new(&format!("/proc/{vmm}")).exists());
    dir.undo();
}

#[tokio::test]
async fn more_drives_than_the_vmm_has_room_for_are_told_by_their_fields() {
    let Some(host) = Host::find() else { return };
    let request = CreateVMRequest {
        ContainerCount: 100,
        ..request()
    };
    let dir = host.dir(&request.VMID);
    let refused = host.boot(&dir, &request, &Progress::default()).await;
    let error = refused.err().unwrap();
    assert_eq!(error.class(), Class::Invalid);
    let text = fc_errors::chain(&error);
    assert!(text.starts_with("A VM with 1"), "{text}");
    assert!(text.contains("ContainerCount"), "{text}");
    dir.undo();
}

#[tokio::test]
async fn the_emulator_boots_without_the_configured_template_and_refuses_a_requested_one() {
    let Some(mut host) = Host::find() else { return };
    let vmm = host.config.firecracker_binary_path.as_deref();
    if vmm.and_then(Path::file_name) != Some("firecracker-tcg".as_ref()) {
        println!("SKIPPED: the VMM is not firecracker-tcg");
        return;
    }
    host.intel = true;
    host.config.cpu_template = "T2".into();
    let mut request = request();
    let dir = host.dir(&request.VMID);
    let machine = host.boot(&dir, &request, &Progress::default()).await;
    let machine = machine.unwrap();
    machine.stop(BOUND).await.unwrap();
    drop(machine);
    dir.undo();

    request.MachineCfg.as_mut().unwrap().CPUTemplate = "T2".into();
    let dir = host.dir(&request.VMID);
    let refused = host.boot(&dir, &request, &Progress::default()).await;
    let error = refused.err().unwrap();
    assert_eq!(error.class(), Class::Invalid);
    let text = fc_errors::chain(&error);
    assert!(text.starts_with("MachineCfg"), "{text}");
    dir.undo();
}

#[tokio::test]
async fn a_paused_vm_is_killed_when_it_is_stopped() {
    let Some(host) = Host::find() else { return };
    let request = request();
    let dir = host.dir(&request.VMID);
    let machine = host.boot(&dir, &request, &Progress::default()).await;
    let machine = machine.unwrap();
    machine.vmm().pause().await.unwrap();
    let stopped = machine.stop(BOUND).await;
    assert!(matches!(stopped, Err(StopError::Paused)), "{stopped:?}");
    assert!(machine.end().is_some());
    drop(machine);
    dir.undo();
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again() {
    let Some(host) = Host::find() else { return };
    let request = request();
    let dir = host.dir(&request.VMID);
    let machine = host.boot(&dir, &request, &Progress::default()).await;
    let machine = machine.unwrap();
    let guest = machine.guest().clone();
    let mut connection = guest.connection();
    for number in 2..5 {
        let waiting = {
            let guest = guest.clone();
            let wait = fc_proto::guest::NextEventRequest::default();
            tokio::spawn(async move { guest.agent().next_event(guest.context(), &wait).await })
        };
        tokio::task::yield_now().await;
        guest.break_connection();
        assert!(waiting.await.unwrap().is_err());
        assert!(guest.connected().await);
        let up = connection.wait_for(|c| *c == Connection::Up(number)).await;
        drop(up.unwrap());
        // Through the new connection, by one who has known the guest since before it.
        let attach = Attach {
            file: HostFile::open(host.image("disk.img").as_ref(), Access::Write).unwrap(),
            destination: "/container/c/disk".into(),
            fstype: "ext4".into(),
            options: Vec::new(),
            owner: format!("c{number}"),
        };
        machine
            .drives()
            .attach(Kind::Writable, attach)
            .await
            .unwrap();
        machine
            .drives()
            .detach_owner(&format!("c{number}"))
            .await
            .unwrap();
    }
    machine.stop(BOUND).await.unwrap();
    connection
        .wait_for(|c| *c == Connection::Gone)
        .await
        .unwrap();
    assert!(!guest.connected().await);
    drop(machine);
    dir.undo();
}
