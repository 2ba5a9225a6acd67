//! Whole files, read as the runtime reads them.

use std::net::Ipv4Addr;
use std::path::Path;

use fc_config::{Config, ConfigError, Level, Loaded, NetworkSource};

fn load(text: &str) -> Result<Loaded, ConfigError> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("runtime.json");
    std::fs::write(&path, text).expect("the file");
    Config::load_from(&path)
}

/// The message of the error that `text` gives, from the file's line on.
fn error(text: &str) -> String {
    let message = load(text).expect_err("an error").to_string();
    let start = message
        .find("runtime.json:")
        .expect("the file's name in the message");
    message[start + "runtime.json:".len()..].to_owned()
}

#[test]
fn nothing_set_means_the_defaults() {
    for text in [
        "{}",
        r#"{"kernel_args": null, "jailer": null, "log_levels": null}"#,
    ] {
        let loaded = load(text).expect("valid");
        assert_eq!(loaded.config, Config::default());
        assert!(loaded.warnings.is_empty());
    }
    let config = Config::default();
    assert_eq!(
        config.kernel_args,
        "console=ttyS0 noapic reboot=k panic=1 pci=off nomodules rw"
    );
    assert_eq!(
        config.root_drive,
        Path::new("/var/lib/firecracker-containerd/runtime/default-rootfs.img")
    );
    assert_eq!(config.firecracker_binary_path, None);
}

#[test]
fn the_originals_file_is_understood() {
    let loaded = load(
        r#"{
          "Firecracker_Binary_Path": "/usr/local/bin/firecracker",
          "kernel_image_path": "/k", "root_drive": "/r", "cpu_template": "C3",
          "LOG_LEVELS": ["debug", "firecracker:error"],
          "jailer": {"runc_binary_path": "/usr/bin/crun"},
          "smt_enabled": true,
          "default_network_interfaces": [
            {"CNIConfig": {"NetworkName": "fcnet", "InterfaceName": "veth0", "Args": [{"Key": "a", "Value": "b"}]}},
            {"AllowMMDS": true, "OutRateLimiter": {"Bandwidth": {"RefillTime": 100, "Capacity": 1000}},
             "StaticConfig": {"HostDevName": "tap0", "MacAddress": "06:00:ac:10:00:02",
                "IPConfig": {"PrimaryAddr": "192.0.2.2/24", "GatewayAddr": "192.0.2.1", "Nameservers": ["192.0.2.53"]}}}
          ]
        }"#,
    )
    .expect("valid");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let config = loaded.config;
    assert_eq!(
        config.firecracker_binary_path.as_deref(),
        Some(Path::new("/usr/local/bin/firecracker"))
    );
    assert_eq!(config.jailer.runtime(), Path::new("/usr/bin/crun"));
    assert_eq!(config.log_levels.firecracker(), Some(Level::Error));
    assert!(config.smt_enabled);
    let [cni, fixed] = &config.default_network_interfaces[..] else {
        panic!("two interfaces")
    };
    assert!(matches!(&cni.source, NetworkSource::Cni(cni) if cni.args[0].value == "b"));
    let NetworkSource::Static(source) = &fixed.source else {
        panic!("a static interface")
    };
    let ip = source.ip_config.as_ref().expect("an address");
    assert_eq!(
        (ip.primary_addr, ip.prefix_length),
        (Ipv4Addr::new(192, 0, 2, 2), 24)
    );
    let bucket = fixed
        .out_rate_limiter
        .as_ref()
        .and_then(|limit| limit.bandwidth.as_ref());
    assert_eq!(bucket.map(|bucket| bucket.capacity), Some(1000));
}

#[test]
fn unknown_keys_are_warnings() {
    let loaded =
        load("{\n \"ht_enabled\": true,\n \"kernel_arg\": \"\",\n \"jailer\": {\"x\": {}}\n}")
            .expect("valid");
    let mut warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    warnings.sort();
    let ends = [
        ":2:16: unknown key ht_enabled is ignored. Use smt_enabled",
        ":3:16: unknown key kernel_arg is ignored. Did you mean kernel_args?",
        ":4:18: unknown key jailer.x is ignored",
    ];
    assert_eq!(warnings.len(), ends.len());
    for (warning, end) in warnings.iter().zip(ends) {
        assert!(warning.ends_with(end), "{warning}");
    }
}

#[test]
fn mistakes_are_located() {
    for (text, message) in [
        (
            "",
            "1:1: not valid JSON, before the first key: EOF while parsing a value",
        ),
        (
            "{\n \"kernel_args\": \"x\"\n \"root_drive\": 1}",
            "3:2: not valid JSON, in or after key kernel_args: expected `,` or `}`",
        ),
        (
            "{\"vcpu_count\": tru}",
            "1:19: not valid JSON, in or after key vcpu_count: expected ident",
        ),
        (
            "{\n  \"vcpu_count\": \"2\"}",
            "2:17: vcpu_count: invalid type: string \"2\", expected u32",
        ),
        (
            "{\"vcpu_count\": 33}",
            "1:16: vcpu_count: 33 is not between 1 and 32",
        ),
        (
            "{\"mem_size_mib\": -1}",
            "1:18: mem_size_mib: invalid value: integer `-1`, expected u32",
        ),
        (
            "{\"mem_size_mib\": 64}",
            "1:1: mem_size_mib (64) is less than min_mem_size_mib (72), the least that boots the guest",
        ),
        (
            "{\"jailer\": {\"runc_binary_path\": 5}}",
            "1:33: jailer.runc_binary_path: invalid type: integer `5`, expected path string",
        ),
        (
            "{\"jailer\": []}",
            "1:12: jailer: invalid type: sequence, expected an object",
        ),
        (
            "{\"root_drive\": \"root.img\"}",
            "1:16: root_drive: \"root.img\" is not an absolute path",
        ),
        (
            "{\"log_levels\": [\"loud\"]}",
            "1:16: log_levels: log level \"loud\" is an invalid log level",
        ),
        (
            "{\"default_network_interfaces\": [{}]}",
            "1:33: default_network_interfaces[0]: needs exactly one of CNIConfig and StaticConfig",
        ),
        (
            "{\"default_network_interfaces\": [{\"StaticConfig\": {\"HostDevName\": \"t\", \"IPConfig\": {\"PrimaryAddr\": \"1.2.3.4\"}}}]}",
            "1:99: default_network_interfaces[0].StaticConfig.IPConfig.PrimaryAddr: \"1.2.3.4\" is not an IPv4 address with a prefix such as 192.0.2.2/24",
        ),
    ] {
        assert_eq!(error(text), message, "{text}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load_from(Path::new("/nonexistent/runtime.json")).expect_err("no file");
    let message = error.to_string();
    assert!(
        message.contains("/nonexistent/runtime.json") && message.contains(fc_config::PATH_ENV),
        "{message}"
    );
}

#[test]
fn an_initrd_belongs_to_its_kernel() {
    let config = load(r#"{"kernel_image_path": "/k", "initrd_path": "/i"}"#)
        .expect("valid")
        .config;
    assert_eq!(config.initrd_for(Path::new("/k")), Some(Path::new("/i")));
    assert_eq!(config.initrd_for(Path::new("/other")), None);
}

/// Whatever is done to a file, it is read or refused with a place in it.
#[test]
fn any_text_is_read_or_refused() {
    let valid = r#"{"vcpu_count": 2, "jailer": {"runc_binary_path": "runc"}, "log_levels": ["info"],
        "default_network_interfaces": [{"StaticConfig": {"HostDevName": "tap0", "MacAddress": "06:00:ac:10:00:02",
        "IPConfig": {"PrimaryAddr": "192.0.2.2/24", "Nameservers": ["192.0.2.53"]}}}]}"#;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("runtime.json");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % 1_000_003).expect("a small number") % below
    };
    let (mut read, mut refused) = (0, 0);
    for _ in 0..1_500 {
        let mut text = valid.as_bytes().to_vec();
        for _ in 0..=random(3) {
            let at = random(text.len());
            match random(4) {
                0 => drop(text.remove(at)),
                1 => text.insert(at, b"{}[]\",:0-n\\ "[random(12)]),
                2 => text[at] = b"{}[]\",:0-n\\x"[random(12)],
                _ => text.truncate(at.max(1)),
            }
        }
        std::fs::write(&path, &text).expect("the file");
        match Config::load_from(&path) {
            Ok(_) => read += 1,
            Err(ConfigError::Syntax { place, .. } | ConfigError::Value { place, .. }) => {
                let lines = text.split(|&byte| byte == b'\n').count();
                assert!(
                    (1..=lines).contains(&place.line) && place.column >= 1,
                    "{place}"
                );
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(read > 50 && refused > 50, "{read} read, {refused} refused");
}
