//! Why there is no jail.

use std::io;
use std::path::PathBuf;

use crate::cgroup::CgroupError;
use crate::cpuset::CpusetList;
use crate::file_mount::ExposeError;
use crate::layout::LayoutError;
use crate::needs::NeedsError;
use crate::netns::NetnsError;
use crate::oci_runtime::RuntimeError;
use crate::record::RecordError;
use crate::spec::TemplateError;

/// Why a jail cannot be made or used. Each says what is wrong by itself; sources say why.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The template is none.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The request's network namespace is none.
    #[error("JailerConfig.NetNS cannot be used")]
    Netns(#[from] NetnsError),
    /// There is no cgroup for it.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// What the VMM needs is not there.
    #[error(transparent)]
    Needs(#[from] NeedsError),
    /// Its directories cannot be made.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Its record cannot be kept.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file cannot be shown.
    #[error(transparent)]
    Expose(#[from] ExposeError),
    /// A file cannot be copied.
    #[error("Cannot copy {} to {} (DriveExposePolicy COPY)", path.display(), to.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// The copy, which is removed.
        to: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file in the jail cannot be used.
    #[error("Cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What the VMM put in the place of its socket is none.
    #[error("The VMM put something at {} that is no socket", path.display())]
    NoSocket {
        /// Where the socket should be.
        path: PathBuf,
    },
    /// The host has not all of the processors or memory nodes.
    #[error("{field}: this host cannot pin a VMM to {:?}", list.as_str())]
    Cpuset {
        /// The request's field.
        field: &'static str,
        /// Its value.
        list: CpusetList,
        /// What the OCI runtime has of the kernel.
        source: Box<RuntimeError>,
    },
    /// A name is a path.
    #[error("{0:?} is not the plain name of a file")]
    Name(String),
}

impl JailError {
    /// Whether the request is at fault, and not the host or its configuration.
    #[must_use]
    pub fn is_invalid_request(&self) -> bool {
        matches!(
            self,
            Self::Netns(_)
                | Self::Cpuset { .. }
                | Self::Cgroup(CgroupError::Path(_))
                | Self::Expose(
                    ExposeError::Open { .. }
                        | ExposeError::UnsupportedMode { .. }
                        | ExposeError::NoFifo(_)
                        | ExposeError::Permissions { .. }
                )
        )
    }
}

/// Why a VMM does not answer.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The VMM did not start, or not as it should.
    #[error(transparent)]
    Vmm(#[from] fc_client::LaunchError),
    /// There is no jail to start it in.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The jail's container did not start.
    #[error("The jail's container cannot be started")]
    Container(#[from] RuntimeError),
}
