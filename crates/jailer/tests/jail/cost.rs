//! What a jail costs, as far as it is the same on every machine; `benches/jail.rs` prints the figures.

use std::time::Duration;

use fc_jailer::ExposePolicy;

use crate::Test;
use crate::host::{Runtime, block_on};
use crate::measure::{IMAGE_DATA, Times, disk_use, measure};

pub const TESTS: &[(&str, Test)] = &[("cost::disk", disk)];

/// Those that an emulated processor is no place for.
pub const TIME_TESTS: &[(&str, Test)] = &[("cost::time", time)];

/// Directories and small files, which take a few blocks each; in bytes.
const OVERHEAD: u64 = 256 << 10;

/// No copy with BIND; with COPY no more than the image's data, and nothing where the file system shares blocks.
fn disk(runtime: &Runtime) {
    block_on(async {
        let bound = disk_use(runtime, ExposePolicy::Bind).await;
        assert!(bound < OVERHEAD, "{bound} bytes");
        let copied = disk_use(runtime, ExposePolicy::Copy).await;
        assert!(copied > bound, "the copy is not there: {copied} bytes");
        assert!(copied < IMAGE_DATA + OVERHEAD, "{copied} bytes");
    });
}

/// On a quiet machine it is a few milliseconds; what the jail adds is less than what the runtime takes. Whatever else
/// runs only adds to a time: the least of each step is what it costs, and where even that is disturbed, nothing is known.
fn time(runtime: &Runtime) {
    block_on(async {
        let times = measure(runtime, ExposePolicy::Bind, 10).await;
        let least = |of: fn(&Times) -> Duration| times.iter().map(of).min().expect("a round");
        let alone = least(|times| times.runtime_alone);
        let ours = least(|times| times.prepare) + least(|times| times.start);
        let added = ours.saturating_sub(alone + least(|times| times.unjailed));
        let usually = |of| Times::median(&times, of);
        let (alone_usually, ours_usually) = (
            usually(|times| times.runtime_alone),
            usually(|times| times.prepare + times.start),
        );
        let disturbed = alone_usually > alone * 5 / 4 || ours_usually > ours * 5 / 4;
        if added >= alone && disturbed {
            println!(
                "SKIPPED: the machine is busy: the runtime alone takes {alone:?}, or {alone_usually:?}, and with \
                 a jail's other steps {ours:?}, or {ours_usually:?}"
            );
            return;
        }
        assert!(
            added < alone,
            "{added:?}, the runtime alone {alone:?}: {times:?}"
        );
    });
}
