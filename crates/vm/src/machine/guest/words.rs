//! Where text of the guest enters the host: from here on it is short and fit for a terminal and a log.

use fc_client::text::excerpt;
use fc_proto::ttrpc::Error as RpcError;

/// Why a call of the guest failed, with the guest's own part of it as an [`excerpt`].
pub(in crate::machine) fn heard(error: RpcError) -> RpcError {
    match error {
        RpcError::RpcStatus(mut status) => {
            status.message = excerpt(&status.message);
            // Of any type and size; no call has a use for them.
            status.details.clear();
            status.special_fields.mut_unknown_fields().clear();
            RpcError::RpcStatus(status)
        }
        // What happened to the connection, in the host's own words.
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fc_proto::ttrpc::{Code, get_status};

    #[test]
    fn a_guest_cannot_fill_or_change_a_log() {
        let words = format!("no\nspace\u{1b}[2J left{}", "x".repeat(1 << 20));
        let RpcError::RpcStatus(status) =
            heard(RpcError::RpcStatus(get_status(Code::NOT_FOUND, words)))
        else {
            panic!("it is another error now");
        };
        assert_eq!(status.code(), Code::NOT_FOUND);
        assert!(status.message.starts_with("no space leftxxx"));
        assert!(status.message.len() <= 4096);
        assert!(matches!(
            heard(RpcError::RemoteClosed),
            RpcError::RemoteClosed
        ));
    }
}
