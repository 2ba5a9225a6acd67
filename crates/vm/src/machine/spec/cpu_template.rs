//! The CPU template of a VM, and whose wish it is.

/// One of Firecracker's CPU templates, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuTemplate {
    /// The request names it: a VMM that does not have it refuses the VM.
    Requested(String),
    /// It is the configuration's for VMs whose request names none. A VMM without templates starts them all the same.
    Default(String),
}

impl CpuTemplate {
    /// The template of a VM; `requested` and `default` are empty for none.
    ///
    /// Only Intel's CPUs have templates. On any other host a wish for one is no error: the original's clients
    /// send the same request everywhere.
    pub(super) fn choose(requested: &str, default: &str, intel: bool) -> Option<Self> {
        let template = match (requested, default) {
            ("", "") => return None,
            ("", default) => Self::Default(default.to_owned()),
            (requested, _) => Self::Requested(requested.to_owned()),
        };
        if !intel {
            tracing::warn!(
                template = template.name(),
                "CPU templates are for Intel's CPUs only: the VM gets none"
            );
        }
        intel.then_some(template)
    }

    /// What a VMM is asked for: by one that emulates a CPU of its own, nothing that only the configuration wants.
    pub(in crate::machine) fn for_vmm(&self, emulates: bool) -> Option<&str> {
        match self {
            Self::Default(template) if emulates => {
                tracing::info!(
                    template,
                    "The VMM emulates a CPU of its own: the VM does not get the configured CPU template"
                );
                None
            }
            Self::Default(_) | Self::Requested(_) => Some(self.name()),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Requested(name) | Self::Default(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(requested: &str, default: &str, intel: bool, emulates: bool) -> Option<String> {
        let template = CpuTemplate::choose(requested, default, intel)?;
        template.for_vmm(emulates).map(str::to_owned)
    }

    #[test]
    fn the_emulator_gets_only_what_a_request_names() {
        assert_eq!(sent("", "T2", true, true), None);
        assert_eq!(sent("", "T2", true, false).as_deref(), Some("T2"));
        assert_eq!(sent("T2S", "T2", true, true).as_deref(), Some("T2S"));
        assert_eq!(sent("T2S", "", true, false).as_deref(), Some("T2S"));
        assert_eq!(sent("", "", true, false), None);
    }

    #[test]
    fn no_other_cpu_has_templates() {
        assert_eq!(sent("T2", "T2", false, false), None);
        assert_eq!(sent("", "T2", false, true), None);
    }
}
