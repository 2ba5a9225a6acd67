//! `vm balloon`: how much memory the host takes back from a VM.

use clap::{Args, Subcommand};
use fc_proto::control::{
    GetBalloonConfigRequest, GetBalloonStatsRequest, GetBalloonStatsResponse, UpdateBalloonRequest,
    UpdateBalloonStatsRequest,
};
use serde::Serialize;

use super::{Id, call_error};
use crate::error::CtlError;
use crate::host::Host;
use crate::output::table;

/// What can be done with a balloon.
#[derive(Debug, Subcommand)]
pub enum BalloonCommand {
    /// Show the balloon's configuration.
    #[command(after_help = "Example:\n  firecracker-ctl vm balloon show web")]
    Show(Id),
    /// Set its size.
    #[command(after_help = "Example:\n  firecracker-ctl vm balloon set web 64")]
    Set(SetArgs),
    /// Show the guest's memory statistics, or set how often it reports them.
    #[command(
        after_help = "Examples:\n  firecracker-ctl vm balloon stats web\n  firecracker-ctl vm balloon stats web --interval 5"
    )]
    Stats(StatsArgs),
}

/// A new size.
#[derive(Debug, Args)]
pub struct SetArgs {
    #[command(flatten)]
    vm: Id,
    /// MiB that the guest is to give back.
    #[arg(value_name = "MIB")]
    amount: u32,
}

/// Statistics, or how often they come.
#[derive(Debug, Args)]
pub struct StatsArgs {
    #[command(flatten)]
    vm: Id,
    /// Have the guest report every so many seconds from now on. Only for a balloon that was created with statistics.
    #[arg(long, value_name = "SECONDS")]
    interval: Option<u16>,
}

#[derive(Serialize)]
struct Config {
    amount_mib: i64,
    deflate_on_oom: bool,
    stats_interval_s: i64,
}

#[derive(Serialize)]
struct Stats {
    target_mib: i64,
    actual_mib: i64,
    target_pages: i64,
    actual_pages: i64,
    total_memory: i64,
    free_memory: i64,
    available_memory: i64,
    disk_caches: i64,
    major_faults: i64,
    minor_faults: i64,
    swap_in: i64,
    swap_out: i64,
    hugetlb_allocations: i64,
    hugetlb_failures: i64,
}

/// Runs a command.
///
/// # Errors
/// Its call's.
pub async fn run(host: &Host, command: &BalloonCommand) -> Result<(), CtlError> {
    match command {
        BalloonCommand::Show(vm) => show(host, &vm.id).await,
        BalloonCommand::Set(args) => {
            let request = UpdateBalloonRequest {
                VMID: args.vm.id.clone(),
                AmountMib: args.amount.into(),
                ..UpdateBalloonRequest::default()
            };
            let control = host.control().await?;
            let answer = control.client.update_balloon(host.context(), &request);
            answer.await.map(drop).map_err(call_error)
        }
        BalloonCommand::Stats(args) => match args.interval {
            None => stats(host, &args.vm.id).await,
            Some(seconds) => {
                let request = UpdateBalloonStatsRequest {
                    VMID: args.vm.id.clone(),
                    StatsPollingIntervals: seconds.into(),
                    ..UpdateBalloonStatsRequest::default()
                };
                let control = host.control().await?;
                let answer = control
                    .client
                    .update_balloon_stats(host.context(), &request);
                answer.await.map(drop).map_err(call_error)
            }
        },
    }
}

async fn show(host: &Host, id: &str) -> Result<(), CtlError> {
    let request = GetBalloonConfigRequest {
        VMID: id.to_owned(),
        ..GetBalloonConfigRequest::default()
    };
    let control = host.control().await?;
    let answer = control.client.get_balloon_config(host.context(), &request);
    let answer = answer.await.map_err(call_error)?;
    let balloon = answer.BalloonConfig.unwrap_or_default();
    let config = Config {
        amount_mib: balloon.AmountMib,
        deflate_on_oom: balloon.DeflateOnOom,
        stats_interval_s: balloon.StatsPollingIntervals,
    };
    host.output.print(&config, |config| {
        let interval = match config.stats_interval_s {
            0 => "none".to_owned(),
            seconds => format!("every {seconds} s"),
        };
        facts(&[
            ("size", format!("{} MiB", config.amount_mib)),
            ("deflates on OOM", config.deflate_on_oom.to_string()),
            ("statistics", interval),
        ])
    });
    Ok(())
}

async fn stats(host: &Host, id: &str) -> Result<(), CtlError> {
    let request = GetBalloonStatsRequest {
        VMID: id.to_owned(),
        ..GetBalloonStatsRequest::default()
    };
    let control = host.control().await?;
    let answer = control.client.get_balloon_stats(host.context(), &request);
    let stats = Stats::from(answer.await.map_err(call_error)?);
    host.output.print(&stats, |stats| {
        let mib = |bytes: i64| format!("{} MiB", bytes >> 20);
        facts(&[
            (
                "balloon",
                format!("{} of {} MiB", stats.actual_mib, stats.target_mib),
            ),
            ("memory", mib(stats.total_memory)),
            ("free", mib(stats.free_memory)),
            ("available", mib(stats.available_memory)),
            ("disk caches", mib(stats.disk_caches)),
            (
                "page faults",
                format!("{} major, {} minor", stats.major_faults, stats.minor_faults),
            ),
            (
                "swap",
                format!("{} in, {} out", mib(stats.swap_in), mib(stats.swap_out)),
            ),
        ])
    });
    Ok(())
}

fn facts(facts: &[(&str, String)]) -> String {
    let rows: Vec<Vec<String>> = facts
        .iter()
        .map(|(name, value)| vec![(*name).to_owned(), value.clone()])
        .collect();
    table(&rows)
}

impl From<GetBalloonStatsResponse> for Stats {
    fn from(stats: GetBalloonStatsResponse) -> Self {
        Self {
            target_mib: stats.TargetMib,
            actual_mib: stats.ActualMib,
            target_pages: stats.TargetPages,
            actual_pages: stats.ActualPages,
            total_memory: stats.TotalMemory,
            free_memory: stats.FreeMemory,
            available_memory: stats.AvailableMemory,
            disk_caches: stats.DiskCaches,
            major_faults: stats.MajorFaults,
            minor_faults: stats.MinorFaults,
            swap_in: stats.SwapIn,
            swap_out: stats.SwapOut,
            hugetlb_allocations: stats.HugetlbAllocations,
            hugetlb_failures: stats.HugetlbFailures,
        }
    }
}
