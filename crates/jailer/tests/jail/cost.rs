//! What a jail costs, as far as it is the same on every machine; `benches/jail.rs` prints the figures.

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

/// On a quiet machine it is a few milliseconds; on any, what the jail adds is less than what the runtime takes.
fn time(runtime: &Runtime) {
    block_on(async {
        let times = measure(runtime, ExposePolicy::Bind, 5).await;
        let added = Times::median(&times, Times::added);
        let alone = Times::median(&times, |times| times.runtime_alone);
        assert!(
            added < alone,
            "{added:?}, the runtime alone {alone:?}: {times:?}"
        );
    });
}
