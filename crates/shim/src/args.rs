//! The command line, as containerd writes it: Go's flags (one dash or two,
//! `-flag value` or `-flag=value`), then the action.

use std::ffi::OsString;
use std::path::PathBuf;

/// What the shim is asked to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Action {
    /// Be the shim of a VM, on inherited sockets.
    #[default]
    Serve,
    /// Find or start the shim for a task and print its address.
    Start,
    /// Clean up after a task.
    Delete,
    /// `-info`: describe this runtime.
    Info,
    /// `-v`: print the version.
    Version,
}

/// A parsed command line. Flags that were not given are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// The action; a word after the flags, or a flag itself.
    pub action: Action,
    /// containerd namespace.
    pub namespace: String,
    /// containerd's gRPC address, a path.
    pub address: String,
    /// Id of the task.
    pub id: String,
    /// Path of the task's bundle; only `delete` gets it.
    pub bundle: PathBuf,
    /// Log at debug level.
    pub debug: bool,
}

/// What is wrong with a command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// A flag that containerd does not have.
    #[error("Unknown flag {0:?}")]
    UnknownFlag(String),
    /// A flag without its value.
    #[error("Flag {0:?} needs a value")]
    NoValue(String),
    /// Not `start` or `delete`.
    #[error("Unknown action {0:?}: containerd calls start or delete")]
    UnknownAction(String),
    /// More than one action.
    #[error("Unexpected argument {0:?} after the action")]
    Extra(String),
    /// Not UTF-8.
    #[error("Argument {0:?} is not UTF-8")]
    Encoding(OsString),
}

impl Args {
    /// Parses the arguments after the program's name.
    ///
    /// # Errors
    /// See [`ArgsError`].
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut parsed = Self::default();
        let mut args = args.into_iter();
        let next = |args: &mut dyn Iterator<Item = OsString>| {
            let arg = args.next().map(OsString::into_string);
            arg.transpose().map_err(ArgsError::Encoding)
        };
        while let Some(arg) = next(&mut args)? {
            let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                parsed.action = action(&arg)?;
                return match next(&mut args)? {
                    None => Ok(parsed),
                    Some(extra) => Err(ArgsError::Extra(extra)),
                };
            };
            let (flag, inline) = match flag.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (flag, None),
            };
            match flag {
                "debug" => parsed.debug = inline.is_none_or(|v| v == "true"),
                "info" => parsed.action = Action::Info,
                "v" | "version" => parsed.action = Action::Version,
                "namespace" | "address" | "id" | "bundle" | "publish-binary" | "socket" => {
                    let value = match inline {
                        Some(value) => value,
                        None => next(&mut args)?.ok_or(ArgsError::NoValue(arg.clone()))?,
                    };
                    match flag {
                        "namespace" => parsed.namespace = value,
                        "address" => parsed.address = value,
                        "id" => parsed.id = value,
                        "bundle" => parsed.bundle = PathBuf::from(value),
                        // containerd's binary, to publish events with; ours go over ttrpc. And a
                        // socket path, which is always computed.
                        _ => {}
                    }
                }
                _ => return Err(ArgsError::UnknownFlag(arg)),
            }
        }
        Ok(parsed)
    }
}

fn action(word: &str) -> Result<Action, ArgsError> {
    match word {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        other => Err(ArgsError::UnknownAction(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn as_containerd_calls() {
        let args = parse("-namespace default -address /c.sock -publish-binary /bin/c -id a start");
        let expected = Args {
            action: Action::Start,
            namespace: "default".into(),
            address: "/c.sock".into(),
            id: "a".into(),
            ..Args::default()
        };
        assert_eq!(args, Ok(expected.clone()));
        let args = parse("--namespace=default -address=/c.sock -id a -bundle /b -debug delete");
        assert_eq!(
            args,
            Ok(Args {
                action: Action::Delete,
                bundle: "/b".into(),
                debug: true,
                ..expected
            })
        );
        assert_eq!(parse("-info").map(|a| a.action), Ok(Action::Info));
        assert_eq!(parse("-v").map(|a| a.action), Ok(Action::Version));
        assert_eq!(parse("-debug=false").map(|a| a.debug), Ok(false));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert_eq!(parse("-frob"), Err(ArgsError::UnknownFlag("-frob".into())));
        assert_eq!(parse("-id"), Err(ArgsError::NoValue("-id".into())));
        assert_eq!(parse("stop"), Err(ArgsError::UnknownAction("stop".into())));
        assert_eq!(parse("start now"), Err(ArgsError::Extra("now".into())));
    }
}
