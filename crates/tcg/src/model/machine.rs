use serde::{Deserialize, Serialize};

/// Most processors a VM can have.
const MAX_VCPUS: u8 = 32;

/// Pages that back the guest's memory on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum HugePages {
    /// Ordinary pages.
    #[default]
    None,
    /// 2 MiB pages from hugetlbfs.
    #[serde(rename = "2M")]
    TwoMib,
}

/// A set of processor features of Firecracker's, all for hardware virtualization; in the order in which it lists
/// them to those who ask for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[allow(missing_docs)]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    /// Asks for nothing.
    None,
    T2CL,
    T2A,
}

/// `PUT /machine-config` and the answer to `GET`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// 1 to 32; with `smt`, 1 or even.
    pub vcpu_count: u8,
    /// Guest memory in MiB.
    pub mem_size_mib: usize,
    /// Whether pairs of processors are threads of one core.
    #[serde(default)]
    pub smt: bool,
    /// Deprecated. Only [`CpuTemplate::None`] can be had: the emulated processor has its own fixed set of features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// For incremental snapshots; not offered.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Default [`HugePages::None`].
    #[serde(default)]
    pub huge_pages: HugePages,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

/// `PATCH /machine-config`: absent fields keep their value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct MachineConfigUpdate {
    pub vcpu_count: Option<u8>,
    pub mem_size_mib: Option<usize>,
    pub smt: Option<bool>,
    pub cpu_template: Option<CpuTemplate>,
    pub track_dirty_pages: Option<bool>,
    pub huge_pages: Option<HugePages>,
}

impl From<MachineConfig> for MachineConfigUpdate {
    fn from(config: MachineConfig) -> Self {
        Self {
            vcpu_count: Some(config.vcpu_count),
            mem_size_mib: Some(config.mem_size_mib),
            smt: Some(config.smt),
            cpu_template: config.cpu_template,
            track_dirty_pages: Some(config.track_dirty_pages),
            huge_pages: Some(config.huge_pages),
        }
    }
}

/// Why a machine configuration is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum MachineConfigError {
    #[error("The memory size (MiB) is either 0, or not a multiple of the configured page size.")]
    InvalidMemorySize,
    #[error(
        "The number of vCPUs must be greater than 0, less than {MAX_VCPUS} and must be 1 or an even number if SMT is enabled."
    )]
    InvalidVcpuCount,
    #[error("The memory size (MiB) is smaller than the previously set balloon device target size.")]
    IncompatibleBalloonSize,
    #[error("The CPU template {0:?} needs hardware virtualization: leave it out.")]
    CpuTemplate(CpuTemplate),
    #[error("Dirty page tracking serves snapshots, which firecracker-tcg does not offer.")]
    TrackDirtyPages,
}

impl MachineConfig {
    /// `self` with the fields of `update` in place of its own.
    ///
    /// # Errors
    /// The result breaks a limit or needs what is not offered.
    pub fn updated(&self, update: &MachineConfigUpdate) -> Result<Self, MachineConfigError> {
        let config = Self {
            vcpu_count: update.vcpu_count.unwrap_or(self.vcpu_count),
            mem_size_mib: update.mem_size_mib.unwrap_or(self.mem_size_mib),
            smt: update.smt.unwrap_or(self.smt),
            cpu_template: None,
            track_dirty_pages: update.track_dirty_pages.unwrap_or(self.track_dirty_pages),
            huge_pages: update.huge_pages.unwrap_or(self.huge_pages),
        };
        let vcpus = config.vcpu_count;
        if vcpus == 0 || vcpus > MAX_VCPUS || (config.smt && vcpus > 1 && vcpus % 2 == 1) {
            return Err(MachineConfigError::InvalidVcpuCount);
        }
        let page_mib = match config.huge_pages {
            HugePages::None => 1,
            HugePages::TwoMib => 2,
        };
        if config.mem_size_mib == 0 || !config.mem_size_mib.is_multiple_of(page_mib) {
            return Err(MachineConfigError::InvalidMemorySize);
        }
        match update.cpu_template {
            None | Some(CpuTemplate::None) => {}
            Some(template) => return Err(MachineConfigError::CpuTemplate(template)),
        }
        if config.track_dirty_pages {
            return Err(MachineConfigError::TrackDirtyPages);
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(json: &str) -> Result<MachineConfig, MachineConfigError> {
        MachineConfig::default().updated(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn limits() {
        use MachineConfigError::*;
        assert_eq!(update(r#"{"vcpu_count":0}"#), Err(InvalidVcpuCount));
        assert_eq!(update(r#"{"vcpu_count":33}"#), Err(InvalidVcpuCount));
        assert_eq!(
            update(r#"{"vcpu_count":3,"smt":true}"#),
            Err(InvalidVcpuCount)
        );
        assert!(update(r#"{"vcpu_count":3}"#).is_ok());
        assert!(update(r#"{"vcpu_count":32,"smt":true}"#).is_ok());
        assert_eq!(update(r#"{"mem_size_mib":0}"#), Err(InvalidMemorySize));
        assert_eq!(
            update(r#"{"mem_size_mib":129,"huge_pages":"2M"}"#),
            Err(InvalidMemorySize)
        );
        assert_eq!(
            update(r#"{"cpu_template":"T2"}"#).unwrap_err().to_string(),
            "The CPU template T2 needs hardware virtualization: leave it out."
        );
        assert!(update(r#"{"cpu_template":"None"}"#).is_ok());
        assert_eq!(
            update(r#"{"track_dirty_pages":true}"#),
            Err(TrackDirtyPages)
        );
    }

    #[test]
    fn an_update_keeps_the_rest() {
        let config = update(r#"{"mem_size_mib":256}"#).unwrap();
        assert_eq!(
            config,
            MachineConfig {
                mem_size_mib: 256,
                ..MachineConfig::default()
            }
        );
    }
}
