//! What a person sees while a VM boots: how long it has taken, and the guest's last words.

use std::io::Write;
use std::time::{Duration, Instant};

use fc_client::text::excerpt;
use fc_proto::vm::{ReadRequest, Stream};

use crate::host::{Host, vm_client};

/// How often the line is renewed.
const RENEW: Duration = Duration::from_millis(250);
/// Characters of the guest's last line that are shown.
const WIDTH: usize = 60;

/// Waits for `work` on the VM `id`, and shows how it goes if a person watches.
pub async fn show<T>(host: &Host, id: &str, work: impl Future<Output = T>) -> T {
    if !host.output.shows_progress() {
        return work.await;
    }
    let result = tokio::select! {
        result = work => result,
        () = lines(host, id) => std::future::pending().await,
    };
    eprint!("\r\x1b[K");
    result
}

/// Shows the line, renewed, for ever.
async fn lines(host: &Host, id: &str) {
    let begin = Instant::now();
    let mut last_words = String::new();
    let mut after = 0;
    loop {
        let seconds = begin.elapsed().as_secs_f32();
        eprint!("\r\x1b[KVM {id} starts, {seconds:.1} s  {last_words}");
        let _ = std::io::stderr().flush();
        let read = read(host, id, &mut after, &mut last_words);
        let pause = tokio::time::sleep(RENEW);
        tokio::join!(read, pause);
    }
}

/// Takes over the console's newest line, if the VM got that far.
async fn read(host: &Host, id: &str, after: &mut u64, last_words: &mut String) {
    let Ok(vm) = host.find(id) else { return };
    let Ok(client) = vm_client(&vm).await else {
        return;
    };
    let request = ReadRequest {
        stream: Stream::CONSOLE.into(),
        after: *after,
        ..ReadRequest::default()
    };
    if let Ok(answer) = client.read(host.context(), &request).await {
        *after = answer.last;
        let newest = answer.lines.iter().rfind(|line| !line.trim().is_empty());
        if let Some(line) = newest {
            *last_words = excerpt(line.trim()).chars().take(WIDTH).collect();
        }
    }
}
