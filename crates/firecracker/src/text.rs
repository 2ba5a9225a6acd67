//! Text from a VMM or its guest, made fit for a log or an error.

/// Longest text in bytes; longer ones are cut.
pub(crate) const MAX_LINE: usize = 4096;

/// `bytes` as text on one line, without control characters and terminal sequences, at most [`MAX_LINE`] long.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_LINE)]);
    let mut clean = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => skip_sequence(&mut rest),
            '\t' | '\n' => clean.push(' '),
            c if c.is_control() => {}
            c => clean.push(c),
        }
    }
    clean.truncate(clean.trim_end().len());
    clean
}

/// Skips what follows an escape: `[`, parameters and a final letter, or one character.
fn skip_sequence(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    if rest.next_if_eq(&'[').is_none() {
        rest.next();
        return;
    }
    while rest.next_if(|c| matches!(c, ' '..='?')).is_some() {}
    rest.next_if(|c| matches!(c, '@'..='~'));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cleaned() {
        assert_eq!(
            excerpt(b"\x1b[1;31mKernel\x1b[0m panic\r\n"),
            "Kernel panic"
        );
        assert_eq!(excerpt(b"a\tb\0\x07c\x1bMd \xff"), "a bcd \u{fffd}");
        assert_eq!(excerpt(b"cut \x1b["), "cut");
        assert_eq!(excerpt(b"\x1b[2\x1b[3mtext"), "text");
        assert!(excerpt(&[b'x'; 10_000]).len() == MAX_LINE);
    }
}
