//! Stands in for `/sbin/init` in a guest: announces a protocol version that no
//! shim speaks, then stays. The end-to-end tests boot it to see the refusal.

use fc_proto::guest::{ANNOUNCE_PORT, Announcement, PROTOCOL};
use tokio::io::AsyncWriteExt;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let announcement = Announcement {
        protocol: PROTOCOL + 1,
        agent_version: "9.9.9".to_owned(),
        error: None,
    };
    let mut line = serde_json::to_vec(&announcement)?;
    line.push(b'\n');
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let host = VsockAddr::new(VMADDR_CID_HOST, ANNOUNCE_PORT);
        let mut stream = VsockStream::connect(host).await?;
        stream.write_all(&line).await?;
        stream.shutdown(std::net::Shutdown::Write)?;
        // PID 1 must not end: the kernel would panic and that would be the message.
        std::future::pending::<()>().await;
        Ok(())
    })
}
