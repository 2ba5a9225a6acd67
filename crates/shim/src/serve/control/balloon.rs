//! The balloon calls.

use fc_client::api::{Balloon, BalloonStatistics, BalloonStatisticsUpdate, BalloonUpdate};
use fc_client::{ApiError, Client};
use fc_proto::control::{
    FirecrackerBalloonDevice, GetBalloonConfigResponse, GetBalloonStatsResponse,
    UpdateBalloonRequest, UpdateBalloonStatsRequest,
};
use fc_proto::protobuf::MessageField;

use crate::serve::error::{CallError, InvalidRequest, Refusal};

/// GetBalloonConfig.
pub async fn config(vmm: &Client) -> Result<GetBalloonConfigResponse, CallError> {
    let config = match vmm.get_balloon().await {
        Err(ApiError::Refused { .. }) => return Err(CallError::NoBalloon),
        other => other.map_err(Refusal::State.error())?,
    };
    Ok(GetBalloonConfigResponse {
        BalloonConfig: MessageField::some(device(&config)),
        ..GetBalloonConfigResponse::default()
    })
}

/// UpdateBalloon.
pub async fn update(vmm: &Client, request: &UpdateBalloonRequest) -> Result<(), CallError> {
    let amount_mib = number("AmountMib", request.AmountMib)?;
    let patched = vmm.patch_balloon(&BalloonUpdate { amount_mib }).await;
    explain(vmm, patched, Refusal::Argument).await
}

/// GetBalloonStats.
pub async fn statistics(vmm: &Client) -> Result<GetBalloonStatsResponse, CallError> {
    let statistics = vmm.balloon_statistics().await;
    explain(vmm, statistics, Refusal::State)
        .await
        .map(|s| answer(&s))
}

/// UpdateBalloonStats.
pub async fn update_statistics(
    vmm: &Client,
    request: &UpdateBalloonStatsRequest,
) -> Result<(), CallError> {
    let stats_polling_interval_s = number("StatsPollingIntervals", request.StatsPollingIntervals)?;
    let update = BalloonStatisticsUpdate {
        stats_polling_interval_s,
    };
    let patched = vmm.patch_balloon_statistics(&update).await;
    explain(vmm, patched, Refusal::State).await
}

/// A VM without a balloon refuses everything about it, so that is asked when one call is refused.
async fn explain<T>(
    vmm: &Client,
    result: Result<T, ApiError>,
    refusal: Refusal,
) -> Result<T, CallError> {
    if matches!(result, Err(ApiError::Refused { .. }))
        && matches!(vmm.get_balloon().await, Err(ApiError::Refused { .. }))
    {
        return Err(CallError::NoBalloon);
    }
    result.map_err(refusal.error())
}

fn number<T: TryFrom<i64>>(field: &'static str, value: i64) -> Result<T, InvalidRequest> {
    T::try_from(value).map_err(|_| InvalidRequest::Number { field, value })
}

fn device(config: &Balloon) -> FirecrackerBalloonDevice {
    FirecrackerBalloonDevice {
        AmountMib: config.amount_mib.into(),
        DeflateOnOom: config.deflate_on_oom,
        StatsPollingIntervals: config.stats_polling_interval_s.unwrap_or_default().into(),
        ..FirecrackerBalloonDevice::default()
    }
}

fn answer(stats: &BalloonStatistics) -> GetBalloonStatsResponse {
    let optional = |n: Option<u64>| saturating(n.unwrap_or_default());
    GetBalloonStatsResponse {
        ActualMib: saturating(stats.actual_mib),
        ActualPages: saturating(stats.actual_pages),
        AvailableMemory: optional(stats.available_memory),
        DiskCaches: optional(stats.disk_caches),
        FreeMemory: optional(stats.free_memory),
        HugetlbAllocations: optional(stats.hugetlb_allocations),
        HugetlbFailures: optional(stats.hugetlb_failures),
        MajorFaults: optional(stats.major_faults),
        MinorFaults: optional(stats.minor_faults),
        SwapIn: optional(stats.swap_in),
        SwapOut: optional(stats.swap_out),
        TargetMib: saturating(stats.target_mib),
        TargetPages: saturating(stats.target_pages),
        TotalMemory: optional(stats.total_memory),
        ..GetBalloonStatsResponse::default()
    }
}

fn saturating(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_do_not_fit_are_named() {
        assert_eq!(number::<u32>("AmountMib", 7).unwrap(), 7);
        for value in [-1, 1 << 32] {
            let error = number::<u32>("AmountMib", value).unwrap_err();
            assert_eq!(error.to_string(), format!("AmountMib cannot be {value}"));
        }
    }

    #[test]
    fn what_the_guest_does_not_report_is_0() {
        let stats = BalloonStatistics {
            actual_mib: 5,
            swap_in: Some(u64::MAX),
            ..BalloonStatistics::default()
        };
        let answer = answer(&stats);
        assert_eq!(
            (answer.ActualMib, answer.SwapIn, answer.SwapOut),
            (5, i64::MAX, 0)
        );
    }
}
