//! The command line, in the manner of Go's flags: `-port 10789`, `--port=10789`.

use std::path::PathBuf;

use fc_proto::guest::CONTROL_PORT;

/// Where containers' cgroups are, below the cgroup root.
const CGROUP_PARENT: &str = "/containers";

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// `-port`: port of the ttrpc server; default 10789.
    pub port: u32,
    /// `-debug`: log every request.
    pub debug: bool,
    /// `-version`: print the version and exit.
    pub version: bool,
    /// `-runtime`: the OCI runtime; a name is looked up in PATH. Default: crun, else runc.
    pub runtime: Option<PathBuf>,
    /// `-runtime-arg`, repeatable: global arguments for the OCI runtime.
    pub runtime_args: Vec<String>,
    /// `-cgroup-parent`: cgroup below which containers have theirs; default `/containers`.
    pub cgroup_parent: String,
    /// `-test-unix-dir`: for tests on a host. Ports are Unix sockets in this directory, bundles
    /// and state are below it, and the machine's own settings are left alone.
    pub test_dir: Option<PathBuf>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            port: CONTROL_PORT,
            debug: false,
            version: false,
            runtime: None,
            runtime_args: Vec::new(),
            cgroup_parent: CGROUP_PARENT.to_owned(),
            test_dir: None,
        }
    }
}

/// Why the command line cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgsError {
    /// Not a flag of this program.
    #[error(
        "Unknown argument {0:?}; known are -port N, -debug, -version, -runtime PROGRAM, -runtime-arg ARG, -cgroup-parent PATH"
    )]
    Unknown(String),
    /// A flag that needs a value is the last word.
    #[error("Flag -{0} needs a value")]
    MissingValue(String),
    /// Not a port number.
    #[error("Flag -port needs a number, not {0:?}")]
    Port(String),
}

impl Args {
    /// Parses `words`, the program's name excluded. As PID 1 (`lenient`) unknown words are
    /// ignored: the kernel passes on what it does not know of its own command line.
    ///
    /// # Errors
    /// An unknown flag (unless lenient), or a missing or wrong value.
    pub fn parse(
        words: impl IntoIterator<Item = String>,
        lenient: bool,
    ) -> Result<Self, ArgsError> {
        let mut args = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
            let (name, inline) = match flag.unwrap_or_default().split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag.unwrap_or_default(), None),
            };
            let mut value = || {
                inline
                    .clone()
                    .or_else(|| words.next())
                    .ok_or_else(|| ArgsError::MissingValue(name.to_owned()))
            };
            match name {
                "port" => {
                    let text = value()?;
                    args.port = text.parse().map_err(|_| ArgsError::Port(text))?;
                }
                "runtime" => args.runtime = Some(PathBuf::from(value()?)),
                "runtime-arg" => args.runtime_args.push(value()?),
                "cgroup-parent" => args.cgroup_parent = value()?,
                "test-unix-dir" => args.test_dir = Some(PathBuf::from(value()?)),
                "debug" => args.debug = inline.as_deref() != Some("false"),
                "version" => args.version = inline.as_deref() != Some("false"),
                _ if lenient => {}
                _ => return Err(ArgsError::Unknown(word)),
            }
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str], lenient: bool) -> Result<Args, ArgsError> {
        Args::parse(words.iter().map(|w| (*w).to_owned()), lenient)
    }

    #[test]
    fn one_and_two_dashes_with_and_without_equals() {
        for words in [
            ["-port", "5", "-debug"].as_slice(),
            &["--port=5", "--debug"],
        ] {
            let args = parse(words, false).unwrap();
            assert_eq!((args.port, args.debug), (5, true));
        }
    }

    #[test]
    fn unknown_words_are_refused_unless_lenient() {
        assert!(matches!(
            parse(&["nokaslr"], false),
            Err(ArgsError::Unknown(_))
        ));
        assert_eq!(
            parse(&["nokaslr", "-x", "y"], true).unwrap(),
            Args::default()
        );
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(
            parse(&["-port"], false),
            Err(ArgsError::MissingValue("port".into()))
        );
        assert_eq!(parse(&["-port=x"], false), Err(ArgsError::Port("x".into())));
    }
}
