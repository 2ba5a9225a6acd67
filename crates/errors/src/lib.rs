//! An error and its causes as text: for logs, for people at a terminal, and for the status of an API's answer.

use std::error::Error;

/// The text of `error` and of all its causes, outermost first, joined by `": "`.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Some foreign errors repeat their source's text.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

/// Several errors, each as [`chain`] gives it, joined by `"; "`; empty for none.
#[must_use]
pub fn chains<E: Error>(errors: &[E]) -> String {
    let texts: Vec<_> = errors.iter().map(|error| chain(error)).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::io;

    use super::*;

    /// An error that says `text` in front of its cause.
    #[derive(Debug)]
    struct Outer {
        text: &'static str,
        repeats: bool,
        source: io::Error,
    }

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.text)?;
            if self.repeats {
                write!(f, ": {}", self.source)?;
            }
            Ok(())
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.source)
        }
    }

    /// With a cause that has a cause itself.
    fn outer(text: &'static str, repeats: bool) -> Outer {
        let innermost = Outer {
            text: "Cannot read",
            repeats: false,
            source: io::ErrorKind::NotFound.into(),
        };
        Outer {
            text,
            repeats,
            source: io::Error::other(innermost),
        }
    }

    #[test]
    fn every_cause_is_told() {
        assert_eq!(
            chain(&outer("No VM", false)),
            "No VM: Cannot read: entity not found"
        );
    }

    #[test]
    fn what_an_error_repeats_is_told_once() {
        assert_eq!(
            chain(&outer("No VM", true)),
            "No VM: Cannot read: entity not found"
        );
    }

    #[test]
    fn several_errors_are_told_apart() {
        let errors = [outer("No VM", false), outer("No drive", true)];
        assert_eq!(
            chains(&errors),
            "No VM: Cannot read: entity not found; No drive: Cannot read: entity not found"
        );
        assert_eq!(chains::<io::Error>(&[]), "");
    }
}
