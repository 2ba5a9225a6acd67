//! Text from a VMM or its guest, made fit for a log or an error.

/// Longest [`excerpt`] in bytes of its source.
const MAX_EXCERPT: usize = 4096;

/// The start of `bytes`, at most 4 KiB of them, as text on one line that does nothing to a terminal: without control
/// characters, terminal sequences, and characters that are not seen or change the direction of others.
#[must_use]
pub fn excerpt(bytes: &[u8]) -> String {
    clean(&bytes[..bytes.len().min(MAX_EXCERPT)])
}

/// All of `bytes` as text like an [`excerpt`]'s.
pub(crate) fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut clean = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => skip_sequence(&mut rest),
            '\t' | '\n' => clean.push(' '),
            c if c.is_control() || is_invisible(c) => {}
            c => clean.push(c),
        }
    }
    clean.truncate(clean.trim_end().len());
    clean
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
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
        assert_eq!(clean("a\u{202e}b".as_bytes()), "ab");
        assert_eq!(excerpt(&[b'x'; 10_000]).len(), MAX_EXCERPT);
    }
}
