//! The agent's few lines on the console.
//!
//! The console is a serial line that slows the VM down with every byte and that the host reads as
//! the guest's last words. So: nothing in normal operation but the start, errors that no caller
//! hears of, and with `-debug` one line per request.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

static DEBUG: AtomicBool = AtomicBool::new(false);

/// Turns [`debug!`](crate::debug) lines on.
pub fn enable_debug() {
    DEBUG.store(true, Ordering::Relaxed);
}

/// Whether [`debug!`](crate::debug) lines are printed.
#[must_use]
pub fn debug_enabled() -> bool {
    DEBUG.load(Ordering::Relaxed)
}

/// Writes one line to the console.
pub fn line(message: fmt::Arguments<'_>) {
    // One write per line, so that the kernel's messages do not split it. A console that cannot be
    // written to leaves nobody to tell.
    let text = format!("firecracker-agent: {message}\n");
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Says something on the console, always.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::log::line(format_args!($($arg)*)) };
}

/// Says something on the console when the agent runs with `-debug`.
#[macro_export]
macro_rules! debug {
    ($($arg:tt)*) => {
        if $crate::log::debug_enabled() {
            $crate::log::line(format_args!($($arg)*));
        }
    };
}
