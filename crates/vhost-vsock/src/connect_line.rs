//! The line a host program sends first: `CONNECT <port>\n`.
//!
//! Accepted is what Firecracker accepts: the word in any case, white space
//! between the words, anything after the port ignored, at most [`MAX_LINE`]
//! bytes. Unlike Firecracker the line may arrive in pieces.

/// Longest accepted line in bytes, including its newline.
pub(crate) const MAX_LINE: usize = 32;

/// What the bytes received so far amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectLine {
    /// No newline yet and still room for one.
    Incomplete,
    /// Not a connect line, and nothing that follows can make it one.
    Invalid,
    /// A whole line.
    Complete {
        /// The guest port asked for.
        port: u32,
        /// Length of the line with its newline; what follows belongs to the stream.
        len: usize,
    },
}

/// Looks for a connect line at the start of `received`.
pub(crate) fn parse(received: &[u8]) -> ConnectLine {
    let head = &received[..received.len().min(MAX_LINE)];
    let Some(end) = head.iter().position(|byte| *byte == b'\n') else {
        return if head.len() < MAX_LINE {
            ConnectLine::Incomplete
        } else {
            ConnectLine::Invalid
        };
    };
    let Ok(line) = std::str::from_utf8(&head[..end]) else {
        return ConnectLine::Invalid;
    };
    let mut words = line.split_whitespace();
    let is_connect = words
        .next()
        .is_some_and(|word| word.eq_ignore_ascii_case("connect"));
    match words.next().map(str::parse) {
        Some(Ok(port)) if is_connect => ConnectLine::Complete { port, len: end + 1 },
        _ => ConnectLine::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_line_gives_the_port_and_leaves_the_rest() {
        let complete = |port, len| ConnectLine::Complete { port, len };
        assert_eq!(parse(b"CONNECT 52\n"), complete(52, 11));
        assert_eq!(parse(b"connect 0\nhello\n"), complete(0, 10));
        assert_eq!(
            parse(b"  Connect\t4294967295 x\r\n"),
            complete(u32::MAX, 24)
        );
    }

    #[test]
    fn a_line_may_arrive_byte_by_byte() {
        let line = b"CONNECT 10789\n";
        for end in 0..line.len() {
            assert_eq!(parse(&line[..end]), ConnectLine::Incomplete);
        }
        assert_eq!(
            parse(line),
            ConnectLine::Complete {
                port: 10789,
                len: 14
            }
        );
    }

    #[test]
    fn anything_else_is_refused() {
        let lines: [&[u8]; 9] = [
            b"\n",
            b"CONNECT\n",
            b"CONNECT \n",
            b"CONNECT x\n",
            b"CONNECT -1\n",
            b"CONNECT 4294967296\n",
            b"LISTEN 52\n",
            b"CONNECT \xff\n",
            b"CONNECT 52                      \n",
        ];
        for line in lines {
            assert_eq!(parse(line), ConnectLine::Invalid, "{line:?}");
        }
        assert_eq!(parse(&[b' '; MAX_LINE]), ConnectLine::Invalid);
    }
}
