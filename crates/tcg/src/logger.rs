//! The log, in Firecracker's line format, to standard output or to the file or pipe of `PUT /logger`.
//!
//! A line is dropped, and counted, rather than ever waited for: the target is opened non-blocking.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use log::{Log, Metadata, Record};

use crate::metrics;
use crate::model::LoggerConfig;

/// `--id` when there is none.
pub const DEFAULT_ID: &str = "anonymous-instance";

static LOGGER: Logger = Logger {
    id: OnceLock::new(),
    settings: Mutex::new(Settings::new()),
};

struct Logger {
    id: OnceLock<String>,
    settings: Mutex<Settings>,
}

struct Settings {
    target: Option<File>,
    show_level: bool,
    show_origin: bool,
    module: Option<String>,
}

impl Settings {
    const fn new() -> Self {
        Self {
            target: None,
            show_level: false,
            show_origin: false,
            module: None,
        }
    }
}

/// Makes this the process's log, at level Info, to standard output. Later calls change nothing.
pub fn init() {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

/// Names the VM in every later line.
pub fn set_id(id: &str) {
    LOGGER.id.get_or_init(|| id.to_owned());
}

/// Applies `--log-path` and its like, or `PUT /logger`.
///
/// # Errors
/// The target cannot be opened; nothing has changed then.
pub fn configure(config: LoggerConfig) -> io::Result<()> {
    let target = config
        .log_path
        .as_deref()
        .map(open_nonblocking)
        .transpose()?;
    log::set_max_level(config.level.map_or(log::LevelFilter::Info, Into::into));
    let mut settings = LOGGER
        .settings
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    settings.target = target.or(settings.target.take());
    settings.show_level = config.show_level.unwrap_or(settings.show_level);
    settings.show_origin = config.show_log_origin.unwrap_or(settings.show_origin);
    settings.module = config.module.or(settings.module.take());
    Ok(())
}

/// Opens a log or metrics target as Firecracker does: created if need be, and for reading too, so that a
/// named pipe opens before its reader has come.
pub(crate) fn open_nonblocking(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = &settings.module
            && !record
                .module_path()
                .is_some_and(|path| path.starts_with(module.as_str()))
        {
            return;
        }
        let id = self.id.get().map_or(DEFAULT_ID, String::as_str);
        let line = format_line(&local_time(), id, &settings, record);
        let written = match &mut settings.target {
            Some(file) => file.write_all(line.as_bytes()),
            None => io::stdout().write_all(line.as_bytes()),
        };
        if written.is_err() {
            metrics::add("logger", "missed_log_count");
        }
    }

    fn flush(&self) {}
}

fn format_line(time: &str, id: &str, settings: &Settings, record: &Record<'_>) -> String {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("-");
    let level = if settings.show_level {
        format!(":{}", record.level())
    } else {
        String::new()
    };
    let origin = if settings.show_origin {
        let line = record
            .line()
            .map_or_else(|| "?".to_owned(), |line| line.to_string());
        format!(":{}:{line}", record.file().unwrap_or("?"))
    } else {
        String::new()
    };
    format!("{time} [{id}:{thread}{level}{origin}] {}\n", record.args())
}

/// Now, in the host's time zone, with nanoseconds: `2026-01-31T23:59:59.123456789`.
fn local_time() -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let mut broken_down = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call, and a zeroed `tm` is a valid one should it fail.
    let tm = unsafe {
        libc::localtime_r(&now.tv_sec, broken_down.as_mut_ptr());
        broken_down.assume_init()
    };
    format!(
        "{}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}",
        tm.tm_year + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec,
        now.tv_nsec
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_firecracker_writes_them() {
        let args = format_args!("Hello.");
        let record = Record::builder()
            .args(args)
            .level(log::Level::Warn)
            .file(Some("src/a.rs"))
            .line(Some(7))
            .build();
        let thread = std::thread::current().name().unwrap_or("-").to_owned();
        let mut settings = Settings::new();
        assert_eq!(
            format_line("T", "vm", &settings, &record),
            format!("T [vm:{thread}] Hello.\n")
        );
        settings.show_level = true;
        settings.show_origin = true;
        assert_eq!(
            format_line("T", "vm", &settings, &record),
            format!("T [vm:{thread}:WARN:src/a.rs:7] Hello.\n")
        );
    }

    #[test]
    fn time_has_the_right_shape() {
        let time = local_time();
        assert_eq!(time.len(), "2026-01-31T23:59:59.123456789".len());
        assert_eq!(time.as_bytes()[10], b'T');
    }
}
