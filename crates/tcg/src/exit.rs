//! Exit codes, numbered as Firecracker numbers them.

/// How the process ends. The numbers are those of Firecracker 1.15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The guest powered off, reset or panicked, or the request (`--version`, `--help`) was answered.
    Ok = 0,
    /// Anything without a code of its own.
    Generic = 1,
    /// A value on the command line is not one of those allowed (the log level).
    BadConfiguration = 152,
    /// The command line cannot be understood.
    ArgParsing = 153,
    /// SIGHUP arrived.
    Hangup = 156,
    /// What makes Firecracker panic: a bad id or number on the command line, or a file named there that cannot be
    /// read. The process ends by SIGABRT; the number is what shells make of that.
    Aborted = 134,
}

impl Exit {
    /// Ends the process.
    pub fn now(self) -> ! {
        match self {
            Self::Aborted => std::process::abort(),
            _ => std::process::exit(i32::from(self as u8)),
        }
    }
}
