//! What the sums say: losses beside seasonal naive's, coverage, cost.

use std::collections::BTreeMap;

use anyhow::Result;
use headroom_forecast::LAB_LEVELS;
use serde::Serialize;

use super::score::{LEVELS, Sums, WHO};

/// Levels of the weighted quantile loss, the first nine.
const LOSS_LEVELS: usize = 9;
/// Draws of the paired bootstrap over workloads.
const DRAWS: usize = 1000;

/// One trace, scored by one variant.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    trace: String,
    variant: String,
    /// Geometric means over resources of ours to seasonal naive's.
    wql_ratio: f64,
    mase_ratio: Option<f64>,
    resources: Vec<Resource>,
    push_us: f64,
    forecast_us: f64,
    bytes_per_series_max: usize,
}

/// One resource over all workloads.
#[derive(Debug, Serialize)]
struct Resource {
    name: String,
    workloads: usize,
    /// Weighted quantile loss at 0.1 to 0.9: ours, seasonal naive's, naive's, exponential
    /// smoothing's, ARIMA's.
    wql: [f64; WHO],
    wql_ratio: f64,
    /// 95 % interval of the ratio by paired bootstrap over workloads.
    wql_ratio_interval: [f64; 2],
    /// Ours to that of exponential smoothing, and its interval.
    wql_ets_ratio: f64,
    wql_ets_ratio_interval: [f64; 2],
    /// Ours to that of ARIMA, and its interval.
    wql_arima_ratio: f64,
    wql_arima_ratio_interval: [f64; 2],
    /// The same ratio for the levels above 0.9.
    upper_ratio: f64,
    mase: Option<[f64; WHO]>,
    /// Geometric mean over workloads of our errors to seasonal naive's: MASE adds up errors in units of
    /// a scale that is next to nothing for some, and is then about those alone.
    errors_by_workload: Option<f64>,
    /// Shares of values below each quantile, and not above it.
    below: [f64; LEVELS],
    not_above: [f64; LEVELS],
    /// Ninth tenth over workloads of the distance of a level from [below, not above].
    worst_decile_miss: [f64; LEVELS],
}

impl Report {
    pub(super) fn of(trace: &str, variant: &str, scored: &BTreeMap<String, Vec<Sums>>) -> Self {
        let resources: Vec<Resource> = scored
            .iter()
            .filter(|(_, sums)| sums.iter().any(|one| one.n > 0.0))
            .map(|(name, sums)| Resource::of(name, sums))
            .collect();
        let mut all = Sums::default();
        scored.values().flatten().for_each(|sums| all.merge(sums));
        Self {
            trace: trace.to_owned(),
            variant: variant.to_owned(),
            wql_ratio: geometric(resources.iter().map(|one| one.wql_ratio)).unwrap_or(f64::NAN),
            mase_ratio: geometric(
                resources.iter().filter_map(|one| one.mase.map(|mase| mase[0] / mase[1])),
            ),
            resources,
            push_us: all.push_s / all.n_pushes.max(1.0) * 1e6,
            forecast_us: all.forecast_s / all.n_forecasts.max(1.0) * 1e6,
            bytes_per_series_max: all.bytes_max,
        }
    }
}

impl Resource {
    fn of(name: &str, sums: &[Sums]) -> Self {
        let mut whole = Sums::default();
        sums.iter().for_each(|one| whole.merge(one));
        let loss = |who: usize| whole.losses[who][..LOSS_LEVELS].iter().sum::<f64>();
        let upper = |who: usize| whole.losses[who][LOSS_LEVELS..].iter().sum::<f64>();
        let share = |counts: [f64; LEVELS]| counts.map(|count| count / whole.n);
        Self {
            name: name.to_owned(),
            workloads: sums.len(),
            wql: std::array::from_fn(|who| loss(who) / LOSS_LEVELS as f64 / whole.absolutes),
            wql_ratio: loss(0) / loss(1),
            wql_ratio_interval: interval(sums, 1),
            wql_ets_ratio: loss(0) / loss(3),
            wql_ets_ratio_interval: interval(sums, 3),
            wql_arima_ratio: loss(0) / loss(4),
            wql_arima_ratio_interval: interval(sums, 4),
            upper_ratio: upper(0) / upper(1),
            mase: (whole.n_scaled > 0.0)
                .then(|| whole.scaled_errors.map(|error| error / whole.n_scaled)),
            errors_by_workload: geometric(
                sums.iter().map(|one| one.scaled_errors[0] / one.scaled_errors[1]),
            ),
            below: share(whole.below),
            not_above: share(whole.not_above),
            worst_decile_miss: std::array::from_fn(|level| worst_decile(sums, level)),
        }
    }
}

/// Distance that nine workloads in ten stay within.
fn worst_decile(sums: &[Sums], level: usize) -> f64 {
    let target = f64::from(LAB_LEVELS[level]);
    let scored = sums.iter().filter(|one| one.n > 0.0);
    let mut misses: Vec<f64> = scored
        .map(|one| {
            let (low, high) = (one.below[level] / one.n, one.not_above[level] / one.n);
            (low - target).max(target - high).max(0.0)
        })
        .collect();
    misses.sort_by(f64::total_cmp);
    misses.get(misses.len() * 9 / 10).copied().unwrap_or(0.0)
}

/// 95 % interval of the ratio of our loss to that of `rival`, by paired bootstrap over workloads.
fn interval(sums: &[Sums], rival: usize) -> [f64; 2] {
    let losses: Vec<[f64; 2]> = sums
        .iter()
        .map(|one| [0, rival].map(|who| one.losses[who][..LOSS_LEVELS].iter().sum::<f64>()))
        .collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut ratios: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let mut drawn = [0.0; 2];
            for _ in &losses {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let one = losses[((state >> 33) % losses.len() as u64) as usize];
                drawn = [drawn[0] + one[0], drawn[1] + one[1]];
            }
            drawn[0] / drawn[1]
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    [ratios[DRAWS / 40], ratios[DRAWS - 1 - DRAWS / 40]]
}

/// Geometric mean of the positive ones; `None` where there is none.
fn geometric(ratios: impl Iterator<Item = f64>) -> Option<f64> {
    let logs: Vec<f64> = ratios.filter(|ratio| *ratio > 0.0).map(f64::ln).collect();
    (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

pub(super) fn print(reports: &[Report], json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(reports)?);
        return Ok(());
    }
    for report in reports {
        println!(
            "\n{}, {}: WQL {:.4} and MASE {:.4} of seasonal naive; {:.1} us a push, {:.0} us a \
             forecast, {} bytes a series",
            report.trace,
            report.variant,
            report.wql_ratio,
            report.mase_ratio.unwrap_or(f64::NAN),
            report.push_us,
            report.forecast_us,
            report.bytes_per_series_max,
        );
        for one in &report.resources {
            print_resource(one);
        }
    }
    Ok(())
}

fn print_resource(one: &Resource) {
    let [ours, seasonal, naive, smoothed, regressed] = one.wql;
    let [low, high] = one.wql_ratio_interval;
    println!(
        "  {} ({} workloads): WQL {ours:.4}, seasonal naive {seasonal:.4}, naive {naive:.4}; ratio \
         {:.4} [{low:.4}, {high:.4}], above p90 {:.4}",
        one.name, one.workloads, one.wql_ratio, one.upper_ratio
    );
    let [low, high] = one.wql_ets_ratio_interval;
    println!(
        "    exponential smoothing {smoothed:.4}; ratio to it {:.4} [{low:.4}, {high:.4}]",
        one.wql_ets_ratio
    );
    let [low, high] = one.wql_arima_ratio_interval;
    println!(
        "    ARIMA {regressed:.4}; ratio to it {:.4} [{low:.4}, {high:.4}]",
        one.wql_arima_ratio
    );
    if let Some([ours, seasonal, naive, smoothed, regressed]) = one.mase {
        println!(
            "    MASE {ours:.3}, seasonal naive {seasonal:.3}, naive {naive:.3}, exponential \
             smoothing {smoothed:.3}, ARIMA {regressed:.3}; errors by workload {:.3} of seasonal \
             naive's",
            one.errors_by_workload.unwrap_or(f64::NAN)
        );
    }
    for (level, target) in LAB_LEVELS.iter().enumerate().skip(4) {
        println!(
            "    p{:.0}: {:.1} % below, {:.1} % not above; worst tenth off by {:.1}",
            target * 100.0,
            one.below[level] * 100.0,
            one.not_above[level] * 100.0,
            one.worst_decile_miss[level] * 100.0
        );
    }
}
