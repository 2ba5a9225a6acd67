//! The one place that turns a failure into a status on the wire.

use fc_client::ApiError;
use fc_client::text::lines;
use fc_drives::DriveError;
use fc_errors::chain;
use fc_proto::ttrpc::{self, Code, get_status};
use fc_vm::machine::Class;

use super::{CallError, Refusal, StartError};
use crate::serve::write_back::WriteBackError;

/// Longest text of a status, in bytes.
const MAX_TEXT: usize = 8 << 10;

impl CallError {
    /// The status on the wire.
    pub fn into_rpc(self) -> ttrpc::Error {
        let code = match &self {
            Self::Guest(ttrpc::Error::RpcStatus(status)) => {
                let text = lines(&status.message, MAX_TEXT);
                return ttrpc::Error::RpcStatus(get_status(status.code(), text));
            }
            Self::NoTask(_) | Self::NoExec { .. } | Self::Gone { .. } => Code::NOT_FOUND,
            Self::Exists { .. } | Self::CreatedAlready => Code::ALREADY_EXISTS,
            Self::Invalid(_) | Self::Identifier(_) => Code::INVALID_ARGUMENT,
            Self::Bundle(error) if error.is_annotation() => Code::INVALID_ARGUMENT,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::Start(error) => match &**error {
                StartError::Boot(error) => class_code(error.class()),
                StartError::Memory { .. } => Code::INVALID_ARGUMENT,
                StartError::Stopped => Code::UNAVAILABLE,
            },
            Self::NotCreated => Code::DEADLINE_EXCEEDED,
            Self::NoBalloon => Code::FAILED_PRECONDITION,
            Self::Rootfs { source, .. } if source.is_refusal() => Code::INVALID_ARGUMENT,
            Self::Rootfs { source, .. } if source.is_in_use() => Code::FAILED_PRECONDITION,
            Self::Volume { source, .. } if source.is_refusal() => Code::INVALID_ARGUMENT,
            Self::Volume { source, .. } if source.is_in_use() => Code::FAILED_PRECONDITION,
            Self::Drive { source, .. } => drive_code(source),
            Self::WriteBack {
                source: WriteBackError::Runs,
                ..
            } => Code::FAILED_PRECONDITION,
            Self::Io(error) if error.is_unsupported() => Code::UNIMPLEMENTED,
            Self::Vmm { refusal, error } => vmm_code(*refusal, error),
            Self::Stopping | Self::Guest(_) => Code::UNAVAILABLE,
            Self::Forced { .. }
            | Self::Panicked
            | Self::Bundle(_)
            | Self::Rootfs { .. }
            | Self::Volume { .. }
            | Self::WriteBack { .. }
            | Self::Io(_)
            | Self::Encoding(_) => Code::INTERNAL,
        };
        // Any error may quote what a guest wrote.
        ttrpc::Error::RpcStatus(get_status(code, lines(&chain(&self), MAX_TEXT)))
    }
}

fn class_code(class: Class) -> Code {
    match class {
        Class::Invalid => Code::INVALID_ARGUMENT,
        Class::Unsupported => Code::UNIMPLEMENTED,
        Class::Precondition => Code::FAILED_PRECONDITION,
        Class::Deadline => Code::DEADLINE_EXCEEDED,
        Class::Unavailable => Code::UNAVAILABLE,
        Class::Internal => Code::INTERNAL,
    }
}

fn drive_code(error: &DriveError) -> Code {
    match error {
        DriveError::Exhausted { .. } => Code::FAILED_PRECONDITION,
        DriveError::InUse { .. } | DriveError::DriveMountInUse(_) => Code::ALREADY_EXISTS,
        DriveError::NotAttached { .. } | DriveError::NoSuchDriveMount(_) => Code::NOT_FOUND,
        DriveError::Options(_) | DriveError::TooSmall { .. } => Code::INVALID_ARGUMENT,
        _ => Code::INTERNAL,
    }
}

fn vmm_code(refusal: Refusal, error: &ApiError) -> Code {
    match (error, refusal) {
        (ApiError::Refused { .. }, Refusal::State) => Code::FAILED_PRECONDITION,
        (ApiError::Refused { .. }, Refusal::Argument) => Code::INVALID_ARGUMENT,
        (ApiError::TimedOut { .. }, _) => Code::DEADLINE_EXCEEDED,
        (ApiError::Connect { .. } | ApiError::VmmGone { .. } | ApiError::Transport { .. }, _) => {
            Code::UNAVAILABLE
        }
        _ => Code::INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fc_drives::Step;
    use fc_host_file::{Access, HostFileError};
    use fc_vm::machine::{BootError, Console, SpecError, StopError};

    use super::*;

    fn status(error: CallError) -> (Code, String) {
        match error.into_rpc() {
            ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn codes() {
        assert_eq!(
            status(CallError::NoTask("a".into())),
            (
                Code::NOT_FOUND,
                "Task \"a\" does not exist in this VM".to_owned()
            )
        );
        let guest = ttrpc::Error::RpcStatus(get_status(Code::FAILED_PRECONDITION, "no\u{1b}[2J"));
        assert_eq!(
            status(CallError::Guest(guest)),
            (Code::FAILED_PRECONDITION, "no".to_owned())
        );
        assert_eq!(
            status(CallError::Guest(ttrpc::Error::RemoteClosed)).0,
            Code::UNAVAILABLE
        );
        let boot = BootError::Spec(SpecError::Vcpus(0));
        assert_eq!(
            status(CallError::Start(Arc::new(boot.into()))).0,
            Code::INVALID_ARGUMENT
        );
    }

    #[test]
    fn a_file_in_use_can_be_had_later_and_a_wrong_one_never() {
        let in_use = || HostFileError::InUse {
            path: "/image".into(),
            access: Access::Write,
        };
        let wrong = || HostFileError::RelativePath("image".into());
        let rootfs = |source: HostFileError| CallError::Rootfs {
            task: "a".into(),
            source: source.into(),
        };
        let volume = |source| CallError::Volume {
            task: "a".into(),
            source: Box::new(fc_volume::VolumeError::Image {
                destination: "/data".into(),
                source,
            }),
        };
        let merge = fc_rootfs::MergeError::from(in_use());
        let several = CallError::Rootfs {
            task: "a".into(),
            source: merge.into(),
        };
        for busy in [rootfs(in_use()), volume(in_use()), several] {
            let (code, text) = status(busy);
            assert_eq!(code, Code::FAILED_PRECONDITION, "{text}");
            assert!(text.contains("/image is in use: another VM"), "{text}");
        }
        for refused in [rootfs(wrong()), volume(wrong())] {
            let (code, text) = status(refused);
            assert_eq!(code, Code::INVALID_ARGUMENT, "{text}");
        }
    }

    #[test]
    fn nothing_that_a_guest_says_reaches_a_terminal_as_it_is() {
        let said = format!(
            "no\u{1b}[2J\u{9b}31m\n\tindeed {}",
            "\u{e9}".repeat(MAX_TEXT)
        );
        let drive = CallError::Drive {
            task: "a".to_owned(),
            source: Box::new(DriveError::Detach {
                drive_id: "ctrstub0".to_owned(),
                step: Step::Unmount,
                source: said.clone().into(),
            }),
        };
        let (_, text) = status(drive);
        assert!(text.contains("no\n\tindeed \u{e9}"), "{text:?}");
        assert!(text.len() > MAX_TEXT - 4 && text.len() <= MAX_TEXT);
        let guest = ttrpc::Error::RpcStatus(get_status(Code::INTERNAL, &said));
        let (_, text) = status(CallError::Guest(guest));
        assert!(text.starts_with("no\n\tindeed"), "{text:?}");
        assert!(text.len() > MAX_TEXT - 4 && text.len() <= MAX_TEXT);
    }

    #[test]
    fn what_clients_of_the_original_look_for() {
        let timeout = BootError::TimedOut {
            vm_id: "a".into(),
            bound: std::time::Duration::from_secs(60),
            during: "booting the guest",
            console: Console::default(),
        };
        let (code, text) = status(CallError::Start(Arc::new(timeout.into())));
        assert_eq!(code, Code::DEADLINE_EXCEEDED);
        assert!(text.starts_with("VM \"a\" didn't start within "), "{text}");
        let gone = CallError::Gone {
            vm_id: "a".into(),
            why: "its VMM is gone",
            console: Console::default(),
        };
        let (code, text) = status(gone);
        assert_eq!(code, Code::NOT_FOUND);
        assert!(text.starts_with("failed to find VM \"a\""), "{text}");
        let forced = CallError::Forced {
            vm_id: "a".into(),
            source: StopError::Paused,
        };
        let forced = status(forced);
        assert_eq!(forced.0, Code::INTERNAL);
        assert!(forced.1.starts_with("forcefully terminated VM a"));
        assert_eq!(status(CallError::CreatedAlready).0, Code::ALREADY_EXISTS);
        assert_eq!(status(CallError::NoBalloon).0, Code::FAILED_PRECONDITION);
    }

    #[test]
    fn refusals_of_the_vmm() {
        let refused = || ApiError::Refused {
            call: fc_client::Call {
                method: "PATCH".into(),
                path: "/vm".into(),
            },
            status: 400,
            fault_message: "no".into(),
            state: None,
        };
        let (code, text) = status(Refusal::State.error()(refused()));
        assert_eq!(code, Code::FAILED_PRECONDITION);
        assert_eq!(text, "The VMM refused PATCH /vm (status 400): no");
        let (code, _) = status(Refusal::Argument.error()(refused()));
        assert_eq!(code, Code::INVALID_ARGUMENT);
    }
}
