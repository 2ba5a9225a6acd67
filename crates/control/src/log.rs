//! Shims' logs in this process's log.
//!
//! A shim writes into a FIFO in its VM's directory, of which it holds both ends: it never waits for
//! a reader and never fails for want of one, so this process may end and another one go on reading.

use fc_vm::dir::{SHIM_LOG, VmDir};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;

/// Longest line that is taken as one, in bytes.
const MAX_LINE: u64 = 16 << 10;

/// Logs the lines of a VM's shim until it ends. A shim that was started without the FIFO has none.
pub async fn follow(dir: VmDir) {
    let Ok(fifo) = pipe::OpenOptions::new().open_receiver(dir.join(SHIM_LOG)) else {
        return;
    };
    let (namespace, vm_id) = (dir.namespace(), dir.vm_id());
    let mut fifo = BufReader::new(fifo);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut fifo)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .await
        {
            Ok(0) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end();
                tracing::info!(namespace, vmID = vm_id, shim_stream = "stderr", "{text}");
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
