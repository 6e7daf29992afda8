//! The workloads from which most can be learned, over time.

use headroom_replay::{
    Kind, Series, replay,
    score::{Pace, WorkloadScore},
};
use headroom_telemetry::Resource;

use super::{
    chart::{Track, track},
    escape, key, put,
};
use crate::lab::replay::{PolicyRun, ResourceRun, Told};

/// Columns of a plot.
const COLUMNS: usize = 700;
/// Days that are shown.
const DAYS: f64 = 14.0;
const GIB: f64 = 1_073_741_824.0;

pub(super) fn section(html: &mut String, told: &Told, resource: &ResourceRun) {
    let Some(own) = resource.runs.first() else { return };
    let preferred = [Kind::Vpa, Kind::AutopilotWindow, Kind::Peak, Kind::Static];
    let other = preferred
        .iter()
        .filter(|kind| **kind != own.kind)
        .find_map(|kind| resource.runs.iter().find(|run| run.kind == *kind));
    put(html, "<h3>Workloads to learn from</h3>");
    put(
        html,
        &format!(
            "<div class=\"keys\"><span><i style=\"background:var(--use)\"></i>highest use</span>{}{}\
         <span>red marks: use above the limit of {}</span></div>",
            key(own.kind.name()),
            other.map_or_else(String::new, |other| key(other.kind.name())),
            own.kind
        ),
    );
    for (why, index) in chosen(own, other) {
        let name = &own.tally.workloads()[index].workload;
        if let Some(series) = resource.series.iter().find(|series| series.workload == *name) {
            let title = escape(name);
            put(
                html,
                &format!(
                    "<figure><figcaption><b>{title}</b> — {why}</figcaption>{}</figure>",
                    plot(told, series, own.kind, other.map(|other| other.kind), &title)
                ),
            );
        }
    }
}

/// Places of workloads in the tally of `own`, with why they are shown.
fn chosen(own: &PolicyRun, other: Option<&PolicyRun>) -> Vec<(String, usize)> {
    let all = own.tally.workloads();
    let known: Vec<usize> = (0..all.len())
        .filter(|index| all[*index].days > 0 && all[*index].slack.is_finite())
        .collect();
    let mut picked: Vec<(String, usize)> = Vec::new();
    let mut pick = |why: String, index: Option<usize>| {
        if let Some(index) = index.filter(|index| picked.iter().all(|(_, old)| old != index)) {
            picked.push((why, index));
        }
    };
    let worst = known.iter().copied().max_by_key(|index| all[*index].days_short);
    pick(
        format!("most often above the limit of {}", own.kind),
        worst.filter(|i| all[*i].days_short > 0),
    );
    if let Some(other) = other {
        let gain = |index: usize| {
            let one: Option<&WorkloadScore> =
                other.tally.workloads().iter().find(|w| w.workload == all[index].workload);
            one.map_or(0, |one| one.days_short as i64 - all[index].days_short as i64)
        };
        // Lists of thousands of workloads are searched once per pick only.
        let gains: Vec<(i64, usize)> = known.iter().take(2000).map(|i| (gain(*i), *i)).collect();
        let best = gains.iter().max().filter(|(gain, _)| *gain > 0);
        pick(format!("where {} is short more often", other.kind), best.map(|(_, index)| *index));
    }
    let mut by_slack = known.clone();
    by_slack.sort_by(|a, b| all[*a].slack.total_cmp(&all[*b].slack));
    pick("median slack".to_owned(), by_slack.get(by_slack.len() / 2).copied());
    pick("most slack".to_owned(), by_slack.last().copied());
    picked
}

fn plot(told: &Told, series: &Series, own: Kind, other: Option<Kind>, title: &str) -> String {
    let (from, until) = told.scope.steps(series);
    let until = until.min(from + series.steps_in(DAYS * 86_400.0));
    let (unit, divisor) =
        if series.resource == Resource::Memory { ("GiB", GIB) } else { ("cores", 1.0) };
    let per_column = (until - from).div_ceil(COLUMNS).max(1);
    let starts: Vec<usize> = (from..until).step_by(per_column).collect();
    let of = |start: usize| start..(start + per_column).min(until);
    let used = |start: usize| {
        let known = of(start).filter_map(|step| series.used(step));
        known.fold((f64::NAN, f64::NAN), |(low, high), used| {
            (low.min(used / divisor), high.max(used / divisor))
        })
    };
    let limits = [Some(own), other].into_iter().flatten().map(|kind| {
        let outcome = replay(series, kind, &told.setting);
        let least = |start: usize| {
            let all = outcome.limits[of(start)].iter().copied().fold(f32::INFINITY, f32::min);
            f64::from(all) / divisor
        };
        (kind.name(), starts.iter().map(|start| least(*start)).collect())
    });
    let (unit_s, counted_in) =
        if Pace::of(series.step_s).is_days() { (86_400.0, "day") } else { (60.0, "minute") };
    let told = Track {
        times: starts.iter().map(|start| *start as f64 * series.step_s / unit_s).collect(),
        counted_in,
        used: starts.iter().map(|start| used(*start)).collect(),
        limits: limits.collect(),
    };
    track(title, &told, unit)
}
