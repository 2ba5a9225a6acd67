//! Running the mkfs programs.

use std::env;
use std::path::{Path, PathBuf};

/// Lines of a program's output that an error quotes.
const QUOTED_LINES: usize = 5;

/// A path as it is; a bare name looked up in PATH.
pub(crate) fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return Some(program.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        // containerd may run with a PATH without the administrator's programs.
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// The end of a program's output, for an error.
pub(crate) fn last_lines(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(QUOTED_LINES)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_looked_up() {
        assert!(find(Path::new("sh")).unwrap().is_absolute());
        assert_eq!(find(Path::new("./sh")).unwrap(), Path::new("./sh"));
        assert_eq!(find(Path::new("no-such-program")), None);
    }

    #[test]
    fn errors_quote_the_end_of_the_output() {
        assert_eq!(last_lines(b"a\n\nb\nc\nd\ne\n  f\n"), "b; c; d; e; f");
        assert_eq!(last_lines(b""), "");
    }
}
