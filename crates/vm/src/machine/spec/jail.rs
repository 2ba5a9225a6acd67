//! The jail that a request asks for.

use fc_jailer::{CpusetList, CpusetListError, ExposePolicy, JailRequest, User};
use fc_proto::control::{DriveExposePolicy, JailerConfig};

use super::{SpecError, absolute};

pub(super) fn jail(jail: &JailerConfig) -> Result<JailRequest, SpecError> {
    let policy = match jail.DriveExposePolicy.enum_value() {
        Ok(DriveExposePolicy::COPY) => ExposePolicy::Copy,
        Ok(DriveExposePolicy::BIND) => ExposePolicy::Bind,
        Err(number) => {
            return Err(SpecError::Value {
                field: "JailerConfig.DriveExposePolicy".to_owned(),
                problem: format!("{number} is neither COPY (0) nor BIND (1)"),
            });
        }
    };
    Ok(JailRequest {
        user: User::new(jail.UID, jail.GID).map_err(|error| SpecError::Value {
            field: "JailerConfig".to_owned(),
            problem: error.to_string(),
        })?,
        net_ns: absolute("JailerConfig.NetNS", &jail.NetNS)?,
        cpus: cpuset("JailerConfig.CPUs", &jail.CPUs)?,
        mems: cpuset("JailerConfig.Mems", &jail.Mems)?,
        cgroup_path: jail.CgroupPath.clone(),
        policy,
    })
}

fn cpuset(field: &str, list: &str) -> Result<CpusetList, SpecError> {
    list.parse()
        .map_err(|error: CpusetListError| SpecError::Value {
            field: field.to_owned(),
            problem: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_field_is_taken_and_what_cannot_be_is_refused() {
        let asked = JailerConfig {
            NetNS: "/run/netns/a".into(),
            CPUs: "0".into(),
            Mems: "0-1".into(),
            UID: 1000,
            GID: 1001,
            CgroupPath: "/group".into(),
            DriveExposePolicy: DriveExposePolicy::BIND.into(),
            ..JailerConfig::default()
        };
        let taken = jail(&asked).unwrap();
        assert_eq!((taken.user.uid(), taken.user.gid()), (1000, 1001));
        assert_eq!(taken.net_ns.as_deref(), Some(Path::new("/run/netns/a")));
        assert_eq!((taken.cpus.as_str(), taken.mems.as_str()), ("0", "0-1"));
        assert_eq!(taken.cgroup_path, "/group");
        assert_eq!(taken.policy, ExposePolicy::Bind);
        let refused = |change: &dyn Fn(&mut JailerConfig)| {
            let mut asked = asked.clone();
            change(&mut asked);
            jail(&asked).unwrap_err().to_string()
        };
        let error = refused(&|jail| jail.UID = 0);
        assert!(error.contains("attempting to run as 0:1001"), "{error}");
        let error = refused(&|jail| jail.CPUs = "0,first".into());
        assert!(
            error.starts_with("JailerConfig.CPUs: \"first\" is"),
            "{error}"
        );
        let error = refused(&|jail| jail.Mems = "3-1".into());
        assert!(
            error.starts_with("JailerConfig.Mems: \"3-1\" is"),
            "{error}"
        );
    }
}
