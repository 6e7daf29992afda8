//! The loop over a source: window by window, every query of the set, into history, then the cursor.
//!
//! A window is as long as its answers allow: it grows while they are small and is halved where the
//! source says that it was asked too much.

use std::{collections::BTreeSet, ops::RangeInclusive};

use headroom_telemetry::{Sample, Workload};

use super::{
    ImportError,
    cursor::Cursor,
    http::{Client, HttpError},
    influxdb,
    join::{Join, Series},
    progress::Progress,
    prometheus,
    query::{Checked, QuerySet},
    tally::Tally,
};
use crate::history::{Arrival, History};

/// Points per series that Prometheus answers at most, less the step before the window.
pub(super) const WINDOW_TICKS_MAX: u32 = 10_999;
/// Steps of the first window.
const WINDOW_TICKS_FIRST: u32 = 240;
/// Values of one window above which the next is half as long, and below a quarter of which it is twice
/// as long: what comes together in memory.
const WINDOW_VALUES: u64 = 1_000_000;
/// Samples made durable at once.
const COMMIT_SAMPLES: usize = 20_000;

/// What is read from.
#[derive(Debug)]
pub(super) enum Source {
    Prometheus(Client),
    Influxdb { client: Client, database: String },
}

impl Source {
    fn client(&self) -> &Client {
        match self {
            Self::Prometheus(client) | Self::Influxdb { client, .. } => client,
        }
    }

    fn read(
        &mut self,
        checked: &Checked,
        step_s: u32,
        ticks: RangeInclusive<i64>,
    ) -> Result<Vec<Series>, HttpError> {
        match self {
            Self::Prometheus(client) => prometheus::read(client, checked, step_s, ticks),
            Self::Influxdb { client, database } => {
                influxdb::read(client, database, checked, step_s, &ticks)
            }
        }
    }
}

/// What is read, and how it is called.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) set: QuerySet,
    pub(super) step_s: u32,
    /// Steps wanted.
    pub(super) ticks: RangeInclusive<i64>,
    pub(super) host_prefix: String,
    /// The host where no label tells one.
    pub(super) host: String,
    /// Steps per window at most.
    pub(super) window_ticks_max: u32,
}

/// Samples per host and workload.
pub(super) type Found = Vec<(String, Workload, Vec<Sample>)>;

/// Reads one window: every query, joined. Returns what was found and how many values were read.
pub(super) fn read(
    source: &mut Source,
    plan: &Plan,
    ticks: &RangeInclusive<i64>,
    tally: &mut Tally,
) -> Result<(Found, u64), ImportError> {
    let Plan { set, step_s, host_prefix, host, .. } = plan;
    let mut join = Join::new(&set.labels, host_prefix, host, *step_s, ticks.clone());
    let mut values = 0;
    for checked in &set.queries {
        let with_one_before = ticks.start() - 1..=*ticks.end();
        let series = source
            .read(checked, *step_s, with_one_before)
            .map_err(|cause| ImportError::Read { query: checked.query.name(), cause })?;
        values += series.iter().map(|one| one.points.len() as u64).sum::<u64>();
        join.add(checked, series, tally);
    }
    Ok((join.finish(tally), values))
}

/// Imports what of the plan is not done.
pub(super) fn run(
    source: &mut Source,
    history: &History,
    cursor: &mut Cursor,
    plan: &Plan,
    progress: &mut Progress,
) -> Result<(), ImportError> {
    let gaps = cursor.missing(plan.ticks.clone());
    let all: i64 = gaps.iter().map(|gap| gap.end() - gap.start() + 1).sum();
    let (mut done, mut written) = (0, 0);
    let mut length = i64::from(WINDOW_TICKS_FIRST.min(plan.window_ticks_max));
    for gap in gaps {
        let mut from = *gap.start();
        while from <= *gap.end() {
            let ticks = from..=(from + length - 1).min(*gap.end());
            let mut tally = cursor.state.tally.clone();
            let (requests, retries) = (source.client().requests, source.client().retries);
            let (found, values) = match read(source, plan, &ticks, &mut tally) {
                Ok(read) => read,
                Err(ImportError::Read { cause: HttpError::TooMuch { .. }, .. }) if length > 1 => {
                    length /= 2;
                    continue;
                }
                Err(error) => return Err(error),
            };
            tally.requests += source.client().requests - requests;
            tally.retries += source.client().retries - retries;
            let before = tally.samples;
            write(history, found, &mut tally)?;
            written += tally.samples - before;
            done += ticks.end() - ticks.start() + 1;
            cursor.state.tally = tally;
            cursor.done(&ticks);
            cursor.save()?;
            progress.show(done, all, written);
            from = ticks.end() + 1;
            length = match values {
                many if many > WINDOW_VALUES => (length / 2).max(1),
                few if few < WINDOW_VALUES / 4 => {
                    (length * 2).min(i64::from(plan.window_ticks_max))
                }
                _ => length,
            };
        }
    }
    Ok(())
}

/// Makes what history does not have yet durable.
pub(super) fn write(history: &History, found: Found, tally: &mut Tally) -> Result<(), ImportError> {
    let mut arrivals: Vec<Arrival> = Vec::new();
    let mut waiting = 0;
    for (host, workload, mut samples) in found {
        let (Some(first), Some(last)) = (samples.first(), samples.last()) else { continue };
        let known = history.window(&host, &workload.path, first.t_s, last.t_s)?;
        let known: BTreeSet<i64> = known.iter().map(|sample| milliseconds(sample.t_s)).collect();
        let all = samples.len();
        samples.retain(|sample| !known.contains(&milliseconds(sample.t_s)));
        tally.present += (all - samples.len()) as u64;
        if samples.is_empty() {
            continue;
        }
        let times_s: Vec<f64> = samples.iter().map(|sample| sample.t_s).collect();
        tally.wrote(&host, &workload.model_key.0, &times_s);
        waiting += samples.len();
        arrivals.push(Arrival {
            host,
            samples: samples.into_iter().map(|sample| (workload.clone(), sample)).collect(),
            ..Arrival::default()
        });
        if waiting >= COMMIT_SAMPLES {
            history.commit(&arrivals)?;
            arrivals.clear();
            waiting = 0;
        }
    }
    if !arrivals.is_empty() {
        history.commit(&arrivals)?;
    }
    Ok(())
}

/// The precision history tells times by.
#[expect(clippy::cast_possible_truncation, reason = "saturates far from any time there is")]
fn milliseconds(t_s: f64) -> i64 {
    (t_s * 1_000.0).round() as i64
}
