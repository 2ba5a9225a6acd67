//! The shim's log: text lines on stderr, which is the bundle's `log` FIFO that containerd reads or a
//! file of whoever launched the shim, and the last of them in memory.

use std::io::{self, Write};

use fc_client::Tail;
use fc_config::Level;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Logs from now on, and answers where the last lines are kept. `level` is the configuration's, information
/// by default.
pub fn init(vm_id: &str, level: Option<Level>) -> Tail {
    let level = match level {
        Some(Level::Debug) => LevelFilter::DEBUG,
        Some(Level::Warning) => LevelFilter::WARN,
        Some(Level::Error) => LevelFilter::ERROR,
        Some(Level::Info) | None => LevelFilter::INFO,
    };
    never_block();
    let kept = Tail::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false)
        .with_timer(LineStart {
            vm_id: vm_id.to_owned(),
        })
        .with_writer(Log { kept: kept.clone() })
        .finish();
    // Fails only when there is a subscriber already; this runs once.
    let _ = tracing::subscriber::set_global_default(subscriber);
    kept
}

/// A reader of stderr that is slow, or gone, must not stop a VM.
fn never_block() {
    let stderr = io::stderr();
    if let Ok(flags) = fcntl_getfl(&stderr) {
        // What cannot be made so does not block either: a file, `/dev/null`.
        let _ = fcntl_setfl(&stderr, flags | OFlags::NONBLOCK);
    }
}

/// Time and VM, in front of every line.
struct LineStart {
    vm_id: String,
}

impl FormatTime for LineStart {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        SystemTime.format_time(w)?;
        write!(w, " vm={}", self.vm_id)
    }
}

/// stderr and memory.
struct Log {
    kept: Tail,
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = &'a Log;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Log {
    /// Takes a whole message. What stderr does not take at once is lost there, and only there.
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let _ = rustix::io::write(io::stderr(), message);
        for line in String::from_utf8_lossy(message).lines() {
            self.kept.push(line.to_owned());
        }
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_kept_line_by_line() {
        let kept = Tail::default();
        let log = Log { kept: kept.clone() };
        let message = b"fc-shim unit test: The VM ended\n  last words\n";
        assert_eq!(log.make_writer().write(message).unwrap(), message.len());
        let lines = kept.after(0, 1000).lines;
        assert_eq!(lines, ["fc-shim unit test: The VM ended", "  last words"]);
    }
}
