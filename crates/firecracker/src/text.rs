//! Text from a VMM, its guest or what runs there, made fit for a log, an error or a terminal.

use std::iter::Peekable;
use std::str::Chars;

/// Longest [`excerpt`] in bytes of its source.
const MAX_EXCERPT: usize = 4096;

/// The start of `text`, at most 4 KiB of it, on one line that does nothing to a terminal: without control
/// characters, terminal sequences, and characters that are not seen or change the direction of others.
#[must_use]
pub fn excerpt(text: impl AsRef<[u8]>) -> String {
    let bytes = text.as_ref();
    one_line(&bytes[..bytes.len().min(MAX_EXCERPT)])
}

/// The start of `text`, at most `max` bytes, made as harmless as an [`excerpt`], but with its line ends and tabs.
#[must_use]
pub fn lines(text: &str, max: usize) -> String {
    let mut lines = clean(text, |c| c);
    lines.truncate(lines.floor_char_boundary(max));
    lines
}

/// All of `bytes` as text like an [`excerpt`]'s.
pub(crate) fn one_line(bytes: &[u8]) -> String {
    clean(&String::from_utf8_lossy(bytes), |_| ' ')
}

/// Line ends and tabs become what `blank` says.
fn clean(text: &str, blank: impl Fn(char) -> char) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => skip_sequence(&mut rest),
            '\u{9b}' => skip_parameters(&mut rest),
            '\t' | '\n' => clean.push(blank(c)),
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

/// Skips what follows an escape: a control sequence, or one character.
fn skip_sequence(rest: &mut Peekable<Chars<'_>>) {
    if rest.next() == Some('[') {
        skip_parameters(rest);
    }
}

/// Skips the rest of a control sequence: parameters and a final letter.
fn skip_parameters(rest: &mut Peekable<Chars<'_>>) {
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
        assert_eq!(excerpt("a\u{202e}b\u{9b}31mc"), "abc");
        assert_eq!(excerpt([b'x'; 10_000]).len(), MAX_EXCERPT);
    }

    #[test]
    fn lines_are_kept_and_bounded() {
        assert_eq!(lines("no\u{1b}[2J\u{7}\n\tindeed\n", 100), "no\n\tindeed");
        assert_eq!(lines("\u{e9}\u{e9}", 3), "\u{e9}");
    }
}
