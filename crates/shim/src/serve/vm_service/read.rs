//! Read: the last lines of the console, the VMM's log and the shim's log, and the next ones as they come.

use std::time::Duration;

use fc_client::Tail;
use fc_proto::vm::{ReadRequest, ReadResponse, Stream};

use crate::serve::error::{CallError, InvalidRequest};
use crate::serve::shim::Shim;

/// Most bytes of lines in an answer.
const MAX_BYTES: usize = 1 << 20;
/// Longest that a call waits for a line.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Answers with the lines that are there, or waits for one.
pub async fn read(shim: &Shim, request: &ReadRequest) -> Result<ReadResponse, CallError> {
    let tail = tail(shim, request)?;
    let wait = Duration::from_millis(request.wait_ms.into()).min(MAX_WAIT);
    let over = async {
        if own_log(request) {
            shim.ended().await;
        } else {
            shim.gone().await;
        }
    };
    let ended = tokio::select! {
        biased;
        () = tail.longer_than(request.after) => false,
        () = over => true,
        () = tokio::time::sleep(wait) => false,
    };
    let excerpt = tail.after(request.after, MAX_BYTES);
    Ok(ReadResponse {
        // Lines may have come with the end.
        ended: ended && excerpt.lines.is_empty(),
        lines: excerpt.lines,
        last: excerpt.last,
        lost: excerpt.lost,
        ..ReadResponse::default()
    })
}

fn own_log(request: &ReadRequest) -> bool {
    request.stream.enum_value() == Ok(Stream::SHIM_LOG)
}

fn tail(shim: &Shim, request: &ReadRequest) -> Result<Tail, CallError> {
    match request.stream.enum_value() {
        Ok(Stream::CONSOLE) => Ok(shim.progress.console()),
        Ok(Stream::VMM_LOG) => Ok(shim.progress.vmm_log()),
        Ok(Stream::SHIM_LOG) => Ok(shim.log.clone()),
        Err(number) => Err(InvalidRequest::Stream(number).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::shim::Shim;

    fn request(stream: Stream, after: u64, wait_ms: u32) -> ReadRequest {
        ReadRequest {
            stream: stream.into(),
            after,
            wait_ms,
            ..ReadRequest::default()
        }
    }

    #[tokio::test]
    async fn waits_for_a_line_or_the_end() {
        let shim = Shim::for_test();
        let none = read(&shim, &request(Stream::CONSOLE, 0, 1)).await.unwrap();
        assert_eq!((none.lines.len(), none.last, none.ended), (0, 0, false));

        let long = request(Stream::CONSOLE, 0, 60_000);
        let (answer, ()) = tokio::join!(read(&shim, &long), async {
            tokio::task::yield_now().await;
            shim.progress.console().push("booting".to_owned());
        });
        let answer = answer.unwrap();
        assert_eq!(
            (&answer.lines[..], answer.last),
            (&["booting".to_owned()][..], 1)
        );

        let next = request(Stream::CONSOLE, answer.last, 60_000);
        let (answer, ()) = tokio::join!(read(&shim, &next), async {
            tokio::task::yield_now().await;
            shim.fail_for_test();
        });
        assert!(answer.unwrap().ended);
        let first = read(&shim, &long).await.unwrap();
        assert!(!first.ended && first.lines.len() == 1);
    }

    #[tokio::test]
    async fn an_unknown_stream_is_refused() {
        let shim = Shim::for_test();
        let mut request = request(Stream::CONSOLE, 0, 0);
        request.stream = fc_proto::protobuf::EnumOrUnknown::from_i32(9);
        let error = read(&shim, &request).await.unwrap_err();
        assert_eq!(error.to_string(), "There is no stream 9");
    }
}
