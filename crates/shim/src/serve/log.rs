//! The shim's log: text lines on stderr, which is the bundle's `log` FIFO that containerd reads.

use std::io::{self, Write};

use fc_config::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Logs to stderr from now on; `level` is the configuration's, information by default.
pub fn init(vm_id: &str, level: Option<Level>) {
    let level = match level {
        Some(Level::Debug) => LevelFilter::DEBUG,
        Some(Level::Warning) => LevelFilter::WARN,
        Some(Level::Error) => LevelFilter::ERROR,
        Some(Level::Info) | None => LevelFilter::INFO,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false)
        .with_timer(LineStart {
            vm_id: vm_id.to_owned(),
        })
        .with_writer(Lossy::default)
        .finish();
    // Fails only when there is a subscriber already; this runs once.
    let _ = tracing::subscriber::set_global_default(subscriber);
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

/// stderr, except that a line it does not take at once is lost: a full FIFO must not stop a VM.
#[derive(Default)]
struct Lossy;

impl Write for Lossy {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = rustix::io::write(io::stderr(), line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
