//! The guest's serial console: its output to standard output or a file, standard input to it.
//!
//! Between QEMU and us are two pipes. A socket would lose output: of what is written byte by byte, as a serial port
//! writes, it holds less than 300 bytes, and the guest's kernel waits no longer than 10 ms for the port to take a
//! character before it puts the next in its place. On a busy host we do not read for longer than that. A pipe holds
//! 64 KiB.
//!
//! Two threads with blocking reads and writes, since standard output may be anything: a full pipe stops
//! only this copying, and QEMU then drops the guest's output rather than stop the guest. On the way the
//! output is searched for the kernel's last words, which tell a panic from a reboot.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Text with which the kernel says that it gives up.
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// A console line's end is not looked at beyond this many bytes.
const MAX_LINE: usize = 512;

/// Stack of a copying thread, in bytes.
const STACK: usize = 64 * 1024;

/// Bound on the wait for a reader of standard output at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// Our ends of the guest's serial line.
#[derive(Debug)]
pub struct Line {
    output: PipeReader,
    input: PipeWriter,
}

/// QEMU's ends of the guest's serial line.
#[derive(Debug)]
pub struct SerialPort {
    /// Where QEMU writes what the guest sends.
    pub output: OwnedFd,
    /// Where QEMU reads what the guest receives.
    pub input: OwnedFd,
}

/// A serial line.
///
/// # Errors
/// There are no pipes to be had.
pub fn line() -> io::Result<(Line, SerialPort)> {
    let (output, output_of_qemu) = io::pipe()?;
    let (input_of_qemu, input) = io::pipe()?;
    let port = SerialPort {
        output: output_of_qemu.into(),
        input: input_of_qemu.into(),
    };
    Ok((Line { output, input }, port))
}

/// A running console.
#[derive(Debug)]
pub struct Console {
    panic: Arc<Mutex<Option<String>>>,
    drained: mpsc::Receiver<()>,
    /// Kept, so that the end of standard input is not the guest's line's.
    _input: PipeWriter,
    _terminal: Option<RawTerminal>,
}

impl Console {
    /// Starts copying the guest's output to `output`; or, without one, between the guest and the process's
    /// standard input and output. A terminal is then put into raw mode for as long as the console lives, as
    /// Firecracker does: the guest's own terminal line discipline echoes and handles Ctrl-C.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(guest: Line, output: Option<File>) -> io::Result<Self> {
        let panic = Arc::new(Mutex::new(None));
        let (done, drained) = mpsc::sync_channel(1);
        let interactive = output.is_none();
        let from_guest = guest.output;
        let to_guest = guest.input.try_clone()?;
        let found = Arc::clone(&panic);
        thread::Builder::new()
            .name("console-out".into())
            .stack_size(STACK)
            .spawn(move || {
                match output {
                    Some(file) => copy_out(from_guest, file, &found),
                    None => copy_out(from_guest, io::stdout(), &found),
                }
                // The end has stopped waiting.
                let _ = done.send(());
            })?;
        if interactive {
            thread::Builder::new()
                .name("console-in".into())
                .stack_size(STACK)
                .spawn(move || copy_in(to_guest))?;
        }
        Ok(Self {
            panic,
            drained,
            _input: guest.input,
            _terminal: interactive.then(RawTerminal::enter).flatten(),
        })
    }

    /// After QEMU's end: waits, within a bound, until all output is written, and says what the kernel
    /// panicked of, if it did.
    #[must_use]
    pub fn finish(self) -> Option<String> {
        let _ = self.drained.recv_timeout(DRAIN);
        self.panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

fn copy_out(mut guest: impl Read, mut out: impl Write, panic: &Mutex<Option<String>>) {
    let mut buffer = [0; 8192];
    let mut search = PanicSearch::default();
    loop {
        let bytes = match guest.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if let Some(line) = search.feed(bytes) {
            *panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
        }
        // With standard output closed there is nobody to tell; the guest goes on.
        drop(out.write_all(bytes).and_then(|()| out.flush()));
    }
}

fn copy_in(mut guest: PipeWriter) {
    // Ends with standard input, or with QEMU; neither is an error.
    drop(io::copy(&mut io::stdin().lock(), &mut guest));
}

/// Finds the line of a kernel panic in a stream of console output.
#[derive(Default)]
struct PanicSearch {
    line: Vec<u8>,
}

impl PanicSearch {
    fn feed(&mut self, bytes: &[u8]) -> Option<String> {
        let mut found = None;
        for &byte in bytes {
            if byte == b'\n' {
                found = found.or_else(|| self.panic());
                self.line.clear();
            } else if self.line.len() < MAX_LINE {
                self.line.push(byte);
            }
        }
        found
    }

    fn panic(&self) -> Option<String> {
        let at = self
            .line
            .windows(PANIC.len())
            .position(|window| window == PANIC)?;
        let text = String::from_utf8_lossy(&self.line[at..]);
        // It goes to the log: no control characters of the guest's choosing.
        Some(text.trim_end().replace(|c: char| c.is_control(), "?"))
    }
}

/// Standard input's terminal in raw mode, until dropped.
#[derive(Debug)]
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Option<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that has gone needs no restoring.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_across_reads() {
        let mut search = PanicSearch::default();
        assert_eq!(search.feed(b"all well\r\n[ 1.0] Kernel panic - not "), None);
        let line = search.feed(b"syncing: VFS: Unable to mount\x1b root fs\r\nmore\n");
        assert_eq!(
            line.unwrap(),
            "Kernel panic - not syncing: VFS: Unable to mount? root fs"
        );
    }

    #[test]
    fn endless_lines_take_no_memory() {
        let mut search = PanicSearch::default();
        for _ in 0..100 {
            assert_eq!(search.feed(&[b'x'; 1000]), None);
        }
        assert!(search.line.len() <= MAX_LINE);
    }

    #[test]
    fn everything_is_copied() {
        let panic = Mutex::new(None);
        let mut out = Vec::new();
        copy_out(&b"one\ntwo"[..], &mut out, &panic);
        assert_eq!(out, b"one\ntwo");
    }
}
