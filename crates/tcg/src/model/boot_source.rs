use serde::{Deserialize, Serialize};

/// `PUT /boot-source`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BootSourceConfig {
    /// Host path of the kernel.
    pub kernel_image_path: String,
    /// Host path of the initial ramdisk.
    pub initrd_path: Option<String>,
    /// Kernel arguments; [`crate::boot_args::DEFAULT`] when absent.
    pub boot_args: Option<String>,
}
