//! A container's cgroup (version 2): figures and deaths from lack of memory.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;

use fc_proto::containerd::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::Pid;
use protobuf::MessageField;

use crate::fd::Fd;

/// Type of [`Cgroup::metrics`]'s message.
pub const METRICS_TYPE_URL: &str = "io.containerd.cgroups.v2.Metrics";

const ROOT: &str = "/sys/fs/cgroup";

/// A container's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    oom_kills_seen: Mutex<u64>,
}

impl Cgroup {
    /// The cgroup of a process; none when it is not in a version 2 hierarchy with controllers.
    #[must_use]
    pub fn of(pid: Pid) -> Option<Self> {
        let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = table.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let dir = Path::new(ROOT).join(path);
        // In a hybrid setup there is a version 2 hierarchy, but elsewhere and without controllers.
        dir.join("cgroup.controllers").is_file().then(|| Self {
            dir,
            oom_kills_seen: Mutex::new(0),
        })
    }

    /// How many more processes the kernel has killed for lack of memory since the last call.
    pub fn new_oom_kills(&self) -> u64 {
        let events = self.pairs("memory.events");
        let mut seen = self
            .oom_kills_seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = value(&events, "oom_kill");
        let new = now.saturating_sub(*seen);
        *seen = now;
        new
    }

    /// Calls `report` at each change of the memory events, until dropped.
    ///
    /// # Errors
    /// When the kernel cannot watch the file.
    pub async fn watch_memory_events(&self, mut report: impl FnMut()) -> io::Result<()> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(&self.dir.join("memory.events"), AddWatchFlags::IN_MODIFY)?;
        let events = Fd::new(OwnedFd::from(inotify))?;
        let mut buffer = [0; 1024];
        loop {
            report();
            events.read(&mut buffer).await?;
        }
    }

    /// The cgroup's figures; what the kernel does not have is zero.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::new();
        metrics.pids = MessageField::some(self.pids());
        metrics.cpu = MessageField::some(self.cpu());
        metrics.memory = MessageField::some(self.memory());
        metrics.memory_events = MessageField::some(self.memory_events());
        metrics.io = MessageField::some(self.io());
        metrics
    }

    fn pids(&self) -> PidsStat {
        let mut stat = PidsStat::new();
        stat.current = self.number("pids.current");
        stat.limit = self.number("pids.max");
        stat
    }

    fn cpu(&self) -> CPUStat {
        let pairs = self.pairs("cpu.stat");
        let mut stat = CPUStat::new();
        stat.usage_usec = value(&pairs, "usage_usec");
        stat.user_usec = value(&pairs, "user_usec");
        stat.system_usec = value(&pairs, "system_usec");
        stat.nr_periods = value(&pairs, "nr_periods");
        stat.nr_throttled = value(&pairs, "nr_throttled");
        stat.throttled_usec = value(&pairs, "throttled_usec");
        stat
    }

    fn memory(&self) -> MemoryStat {
        let pairs = self.pairs("memory.stat");
        let mut stat = MemoryStat::new();
        stat.anon = value(&pairs, "anon");
        stat.file = value(&pairs, "file");
        stat.kernel_stack = value(&pairs, "kernel_stack");
        stat.slab = value(&pairs, "slab");
        stat.sock = value(&pairs, "sock");
        stat.shmem = value(&pairs, "shmem");
        stat.file_mapped = value(&pairs, "file_mapped");
        stat.file_dirty = value(&pairs, "file_dirty");
        stat.file_writeback = value(&pairs, "file_writeback");
        stat.anon_thp = value(&pairs, "anon_thp");
        stat.inactive_anon = value(&pairs, "inactive_anon");
        stat.active_anon = value(&pairs, "active_anon");
        stat.inactive_file = value(&pairs, "inactive_file");
        stat.active_file = value(&pairs, "active_file");
        stat.unevictable = value(&pairs, "unevictable");
        stat.slab_reclaimable = value(&pairs, "slab_reclaimable");
        stat.slab_unreclaimable = value(&pairs, "slab_unreclaimable");
        stat.pgfault = value(&pairs, "pgfault");
        stat.pgmajfault = value(&pairs, "pgmajfault");
        stat.workingset_refault =
            value(&pairs, "workingset_refault_anon") + value(&pairs, "workingset_refault_file");
        stat.workingset_activate =
            value(&pairs, "workingset_activate_anon") + value(&pairs, "workingset_activate_file");
        stat.workingset_nodereclaim = value(&pairs, "workingset_nodereclaim");
        stat.pgrefill = value(&pairs, "pgrefill");
        stat.pgscan = value(&pairs, "pgscan");
        stat.pgsteal = value(&pairs, "pgsteal");
        stat.pgactivate = value(&pairs, "pgactivate");
        stat.pgdeactivate = value(&pairs, "pgdeactivate");
        stat.pglazyfree = value(&pairs, "pglazyfree");
        stat.pglazyfreed = value(&pairs, "pglazyfreed");
        stat.thp_fault_alloc = value(&pairs, "thp_fault_alloc");
        stat.thp_collapse_alloc = value(&pairs, "thp_collapse_alloc");
        stat.usage = self.number("memory.current");
        stat.usage_limit = self.number("memory.max");
        stat.max_usage = self.number("memory.peak");
        stat.swap_usage = self.number("memory.swap.current");
        stat.swap_limit = self.number("memory.swap.max");
        stat
    }

    fn memory_events(&self) -> MemoryEvents {
        let pairs = self.pairs("memory.events");
        let mut events = MemoryEvents::new();
        events.low = value(&pairs, "low");
        events.high = value(&pairs, "high");
        events.max = value(&pairs, "max");
        events.oom = value(&pairs, "oom");
        events.oom_kill = value(&pairs, "oom_kill");
        events.oom_group_kill = value(&pairs, "oom_group_kill");
        events
    }

    fn io(&self) -> IOStat {
        let text = fs::read_to_string(self.dir.join("io.stat")).unwrap_or_default();
        let mut stat = IOStat::new();
        stat.usage = text.lines().filter_map(io_entry).collect();
        stat
    }

    /// A file with one number; `max` means no limit.
    fn number(&self, name: &str) -> u64 {
        let text = fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        match text.trim() {
            "max" => u64::MAX,
            text => text.parse().unwrap_or(0),
        }
    }

    /// A file with a key and a number per line.
    fn pairs(&self, name: &str) -> Vec<(String, u64)> {
        let text = fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        text.lines()
            .filter_map(|line| {
                let (key, number) = line.split_once(' ')?;
                Some((key.to_owned(), number.parse().ok()?))
            })
            .collect()
    }
}

fn value(pairs: &[(String, u64)], key: &str) -> u64 {
    pairs
        .iter()
        .find(|(name, _)| name == key)
        .map_or(0, |(_, number)| *number)
}

/// `254:0 rbytes=1 wbytes=2 rios=3 wios=4 ...`
fn io_entry(line: &str) -> Option<IOEntry> {
    let mut words = line.split_ascii_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut entry = IOEntry::new();
    entry.major = major.parse().ok()?;
    entry.minor = minor.parse().ok()?;
    for (key, number) in words.filter_map(|word| word.split_once('=')) {
        let number = number.parse().unwrap_or(0);
        match key {
            "rbytes" => entry.rbytes = number,
            "wbytes" => entry.wbytes = number,
            "rios" => entry.rios = number,
            "wios" => entry.wios = number,
            _ => {}
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let cgroup = Cgroup {
            dir: dir.path().to_owned(),
            oom_kills_seen: Mutex::new(0),
        };
        (dir, cgroup)
    }

    #[test]
    fn figures_come_from_their_files() {
        let (_dir, cgroup) = cgroup(&[
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 10\nuser_usec 7\n"),
            ("memory.current", "4096\n"),
            (
                "memory.stat",
                "anon 5\nworkingset_refault_anon 1\nworkingset_refault_file 2\n",
            ),
            (
                "io.stat",
                "254:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\n",
            ),
        ]);
        let metrics = cgroup.metrics();
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, u64::MAX));
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.user_usec), (10, 7));
        assert_eq!((metrics.memory.usage, metrics.memory.anon), (4096, 5));
        assert_eq!(metrics.memory.workingset_refault, 3);
        let io = &metrics.io.usage[0];
        assert_eq!((io.major, io.minor, io.rbytes, io.wios), (254, 16, 1, 4));
    }

    #[tokio::test]
    async fn oom_kills_are_counted_once() {
        let (dir, cgroup) = cgroup(&[("memory.events", "oom 1\noom_kill 1\n")]);
        assert_eq!((cgroup.new_oom_kills(), cgroup.new_oom_kills()), (1, 0));
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let watch = cgroup.watch_memory_events(|| {
            let _ = tell.send(cgroup.new_oom_kills());
        });
        let check = async {
            assert_eq!(told.recv().await, Some(0));
            fs::write(dir.path().join("memory.events"), "oom_kill 3\n").unwrap();
            while told.recv().await != Some(2) {}
        };
        tokio::select! {
            result = watch => panic!("{result:?}"),
            () = check => {}
        }
    }
}
