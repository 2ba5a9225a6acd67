//! Shims' logs in this process's log.
//!
//! A shim writes into a FIFO in its VM's directory, of which it holds both ends: it never waits for
//! a reader and never fails for want of one, so this process may end and another one go on reading.

use std::fs::File;
use std::time::Duration;

use fc_vm::dir::{SHIM_LOG, VmDir};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::watch;

/// Longest line that is taken as one, in bytes.
const MAX_LINE: u64 = 16 << 10;
/// How long the log of a shim that has ended may take to be read.
const END_BOUND: Duration = Duration::from_secs(10);

/// The last line of a shim's log.
#[derive(Debug, Clone, Default)]
pub struct LastWords(watch::Sender<Words>);

#[derive(Debug, Default)]
struct Words {
    line: String,
    ended: bool,
}

impl LastWords {
    /// The last line of a shim that has ended.
    pub async fn after_end(&self) -> String {
        let mut words = self.0.subscribe();
        let ended = words.wait_for(|words| words.ended);
        // Late or not, what was read by now is the best there is.
        let _ = tokio::time::timeout(END_BOUND, ended).await;
        self.0.borrow().line.clone()
    }
}

/// Logs the lines of a VM's shim until it ends. `opened`: the log, if it is open already. A shim
/// that was started without the FIFO has no log here.
pub async fn follow(dir: VmDir, opened: Option<File>, words: LastWords) {
    let fifo = match opened {
        Some(file) => pipe::Receiver::from_file(file),
        None => pipe::OpenOptions::new().open_receiver(dir.join(SHIM_LOG)),
    };
    if let Ok(fifo) = fifo {
        copy(fifo, &dir, &words).await;
    }
    words.0.send_modify(|words| words.ended = true);
}

async fn copy(fifo: pipe::Receiver, dir: &VmDir, words: &LastWords) {
    let (namespace, vm_id) = (dir.namespace(), dir.vm_id());
    let mut fifo = BufReader::new(fifo);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut fifo).take(MAX_LINE);
        match bounded.read_until(b'\n', &mut line).await {
            Ok(0) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end();
                tracing::info!(namespace, vmID = vm_id, shim_stream = "stderr", "{text}");
                words
                    .0
                    .send_modify(|words| text.clone_into(&mut words.line));
            }
            Err(error) => {
                tracing::warn!(
                    namespace,
                    vmID = vm_id,
                    "The shim's log cannot be read: {error}"
                );
                return;
            }
        }
    }
}
