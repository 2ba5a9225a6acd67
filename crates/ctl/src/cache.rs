//! The images that VMs share: what is kept, and keeping less.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use fc_config::Config;
use fc_rootfs::{CacheEntry, EntryKind, ImageCache, Integrity};
use serde::Serialize;

use crate::error::CtlError;
use crate::host::Host;
use crate::output::{ago, table};

/// What can be done with the cache.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List the images, the one that was used last at the end.
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  firecracker-ctl cache list"
    )]
    List,
    /// Remove images, those first that were not used for the longest time. What a VM uses stays.
    #[command(
        after_help = "Examples:\n  firecracker-ctl cache prune\n  firecracker-ctl cache prune --keep 2048"
    )]
    Prune(PruneArgs),
}

/// How much to remove.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// How many MiB may stay; everything that is not in use goes without this.
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    keep: u32,
}

/// An entry of the cache.
#[derive(Serialize)]
struct Entry {
    name: String,
    kind: &'static str,
    bytes: u64,
    last_used_unix_ns: i64,
    in_use: bool,
}

impl From<CacheEntry> for Entry {
    fn from(entry: CacheEntry) -> Self {
        Self {
            kind: match entry.kind {
                EntryKind::Image => "image",
                EntryKind::DiskTemplate => "disk template",
            },
            last_used_unix_ns: unix_ns(entry.last_used),
            name: entry.name,
            bytes: entry.bytes,
            in_use: entry.in_use,
        }
    }
}

fn unix_ns(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Runs a command.
///
/// # Errors
/// When the cache cannot be read or written.
pub fn run(host: &Host, command: &CacheCommand) -> Result<(), CtlError> {
    let cache = ImageCache::new(&host.config.image_cache_dir);
    match command {
        CacheCommand::List => {
            let mut entries = cache.entries()?;
            entries.sort_by_key(|entry| entry.last_used);
            let entries: Vec<Entry> = entries.into_iter().map(Entry::from).collect();
            host.output.print(&entries, |entries| list(entries));
        }
        CacheCommand::Prune(args) => {
            let removed = cache.prune(u64::from(args.keep) << 20)?;
            let removed: Vec<Entry> = removed.into_iter().map(Entry::from).collect();
            host.output.print(&removed, |removed| {
                let bytes: u64 = removed.iter().map(|entry| entry.bytes).sum();
                format!("Removed {} images, {}", removed.len(), mib(bytes))
            });
        }
    }
    Ok(())
}

fn list(entries: &[Entry]) -> String {
    let head = ["NAME", "KIND", "SIZE", "LAST USED", "IN USE"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(|entry| {
        vec![
            entry.name.clone(),
            entry.kind.to_owned(),
            mib(entry.bytes),
            format!("{} ago", ago(entry.last_used_unix_ns)),
            if entry.in_use { "yes" } else { "no" }.to_owned(),
        ]
    }));
    let total: u64 = entries.iter().map(|entry| entry.bytes).sum();
    format!("{}{} in all", table(&rows), mib(total))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// What is wrong with the cache, for `doctor`; every image is read whole if `full`.
pub fn check(config: &Config, full: bool) -> Vec<String> {
    let cache = ImageCache::new(&config.image_cache_dir);
    let entries = match cache.entries() {
        Ok(entries) => entries,
        Err(error) => return vec![fc_errors::chain(&error)],
    };
    if !full {
        return Vec::new();
    }
    let images = entries
        .iter()
        .filter(|entry| entry.kind == EntryKind::Image);
    images
        .filter_map(|entry| match cache.verify(&entry.name) {
            Ok(Integrity::Intact | Integrity::Unknown) => None,
            Ok(Integrity::Altered) => Some(format!("{} is not as it was made", entry.name)),
            Err(error) => Some(fc_errors::chain(&error)),
        })
        .collect()
}
