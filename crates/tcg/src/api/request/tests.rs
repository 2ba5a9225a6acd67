use super::*;

fn fault(method: &str, path: &str, body: &str) -> String {
    parse(method, path, body.as_bytes())
        .unwrap_err()
        .to_string()
}

#[test]
fn paths_and_methods() {
    assert!(matches!(
        parse("GET", "/", b""),
        Ok(Action::GetInstanceInfo)
    ));
    assert!(matches!(
        parse("GET", "//version/", b""),
        Ok(Action::GetVersion)
    ));
    assert!(matches!(
        parse("GET", "/vm/config", b""),
        Ok(Action::GetVmConfig)
    ));
    assert_eq!(
        fault("GET", "/nothing", ""),
        "Invalid request method and/or path: GET nothing."
    );
    assert_eq!(
        fault("DELETE", "/drives/a", ""),
        "Invalid request method and/or path: DELETE drives."
    );
    assert_eq!(
        fault("PUT", "/nothing", "{}"),
        "Invalid request method and/or path: PUT nothing."
    );
    assert_eq!(fault("GET", "/", "{}"), "GET request cannot have a body.");
    assert_eq!(fault("PUT", "/actions", ""), "Empty PUT request.");
    assert_eq!(fault("PATCH", "/vm", ""), "Empty PATCH request.");
    assert_eq!(
        fault("PATCH", "/machine-config", "{}"),
        "Empty PATCH request."
    );
}

#[test]
fn ids() {
    let body = r#"{"drive_id":"a","is_root_device":false}"#;
    assert_eq!(fault("PUT", "/drives", body), "The ID cannot be empty.");
    assert_eq!(
        fault("PUT", "/drives/a-b", body),
        "API Resource IDs can only contain alphanumeric characters and underscores."
    );
    assert_eq!(
        fault("PUT", "/drives/b", body),
        "The id from the path does not match the id from the body!"
    );
    assert!(matches!(
        parse("PUT", "/drives/a", body.as_bytes()),
        Ok(Action::PutDrive(_))
    ));
}

#[test]
fn bodies_are_strict() {
    let start = "An error occurred when deserializing the json body of a request: ";
    assert_eq!(
        fault("PUT", "/vsock", r#"{"guest_cid":3,"uds_path":"v","x":1}"#),
        format!(
            "{start}unknown field `x`, expected one of `vsock_id`, `guest_cid`, `uds_path` at line 1 column 33."
        )
    );
    assert!(fault("PUT", "/actions", r#"{"action_type":"Fly"}"#).starts_with(start));
    assert!(fault("PUT", "/logger", r#"{"level":"loud"}"#).contains("Invalid LevelFilter"));
    assert!(parse("PUT", "/logger", br#"{"level":"WARNING"}"#).is_ok());
    assert!(fault("PUT", "/machine-config", r#"{"vcpu_count":1}"#).contains("mem_size_mib"));
    assert!(fault("PUT", "/boot-source", "{").starts_with(start));
    assert_eq!(
        fault("PATCH", "/machine-config", r#"{"cpu_template":"T9"}"#),
        format!(
            "{start}unknown variant `T9`, expected one of `C3`, `T2`, `T2S`, `None`, `T2CL`, `T2A` at line 1 \
             column 20."
        )
    );
}

#[test]
fn deprecated_fields() {
    let deprecated =
        |method, path, body: &str| parse(method, path, body.as_bytes()).unwrap().deprecated();
    let vsock = r#"{"vsock_id":"v","guest_cid":3,"uds_path":"v"}"#;
    assert_eq!(
        deprecated("PUT", "/vsock", vsock),
        Some("vsock_id field is deprecated.")
    );
    let vsock = r#"{"guest_cid":3,"uds_path":"v"}"#;
    assert_eq!(deprecated("PUT", "/vsock", vsock), None);
    for (template, field) in [
        (r#""None""#, Some("cpu_template field is deprecated.")),
        (r#""T2""#, Some("cpu_template field is deprecated.")),
        ("null", None),
    ] {
        let body = format!(r#"{{"vcpu_count":1,"mem_size_mib":1,"cpu_template":{template}}}"#);
        for method in ["PUT", "PATCH"] {
            assert_eq!(deprecated(method, "/machine-config", &body), field);
        }
    }
}
