//! From what the workload logged and what the agent's audit trail says to lead times. Pure.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::workload::Event;

/// A limit in force from `t_s` on; infinite when there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LimitAt {
    /// Seconds since the Unix epoch.
    pub(crate) t_s: f64,
    /// The limit, in the unit of its knob.
    pub(crate) limit: f64,
}

/// One ramp of the service, as it went.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct RampReport {
    /// Number of the ramp.
    pub(crate) ramp: u64,
    /// When the load began to rise, seconds since the Unix epoch.
    pub(crate) demand_t_s: f64,
    /// When the limit reached the demand of the ramp; `None` when it never did.
    pub(crate) limit_t_s: Option<f64>,
    /// How long before the demand the limit had risen, milliseconds; negative when it came after.
    pub(crate) lead_ms: Option<f64>,
    /// Limit in force just before the rise, cores.
    pub(crate) limit_before_cores: f64,
    /// Time the service was throttled during the ramp, milliseconds.
    pub(crate) throttled_ms: f64,
    /// Requests of the ramp that were answered later than 100 ms.
    pub(crate) late: u64,
    /// Requests of the ramp.
    pub(crate) requests: u64,
    /// 99th percentile of the time to answer, milliseconds.
    pub(crate) p99_ms: f64,
}

/// The writes of one knob of one workload, from the lines of an audit trail, in order of time; a
/// release puts `own` back. Lines that are not whole JSON are skipped: the trail may be read while
/// it grows.
pub(crate) fn limit_writes(audit: &str, workload: &str, knob: &str, own: f64) -> Vec<LimitAt> {
    let mut writes: Vec<LimitAt> = audit
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|record| {
            record["decision"]["workload"] == workload && record["decision"]["knob"] == knob
        })
        .filter_map(|record| {
            if let Some(released) = record["outcome"].get("released") {
                return Some(LimitAt { t_s: released["at_unix_s"].as_f64()?, limit: own });
            }
            let applied = record["outcome"].get("applied")?;
            let limit = match &applied["applied"] {
                Value::String(unlimited) if unlimited == "unlimited" => f64::INFINITY,
                at => at["at"].as_f64()?,
            };
            Some(LimitAt { t_s: applied["at_unix_s"].as_f64()?, limit })
        })
        .collect();
    writes.sort_by(|a, b| a.t_s.total_cmp(&b.t_s));
    writes
}

/// The limit in force at `t_s`: the last write before it, or `initial`.
pub(crate) fn limit_at(writes: &[LimitAt], initial: f64, t_s: f64) -> f64 {
    writes.iter().take_while(|write| write.t_s <= t_s).last().map_or(initial, |write| write.limit)
}

/// The mean limit between two times, weighted by time.
pub(crate) fn mean_limit(writes: &[LimitAt], initial: f64, from_s: f64, to_s: f64) -> f64 {
    let mut sum = 0.0;
    let mut t_s = from_s;
    let mut limit = limit_at(writes, initial, from_s);
    for write in writes.iter().filter(|write| write.t_s > from_s && write.t_s < to_s) {
        sum += (write.t_s - t_s) * limit;
        (t_s, limit) = (write.t_s, write.limit);
    }
    sum += (to_s - t_s) * limit;
    sum / (to_s - from_s).max(f64::MIN_POSITIVE)
}

/// When the limit became at least `needed` for the demand that came at `demand_t_s`: the start of
/// the stretch in which it is when that stretch covers the demand, else the first time after.
///
/// `None` when it was never lowered (there is nothing to measure) or did not rise before `until_s`.
pub(crate) fn limit_rose_at(
    writes: &[LimitAt],
    initial: f64,
    needed: f64,
    demand_t_s: f64,
    until_s: f64,
) -> Option<f64> {
    let mut enough_since = (initial >= needed).then_some(f64::NEG_INFINITY);
    for write in writes.iter().take_while(|write| write.t_s <= demand_t_s) {
        if write.limit < needed {
            enough_since = None;
        } else if enough_since.is_none() {
            enough_since = Some(write.t_s);
        }
    }
    match enough_since {
        Some(since) if since.is_finite() => Some(since),
        Some(_) => None,
        None => writes
            .iter()
            .find(|write| write.t_s > demand_t_s && write.t_s <= until_s && write.limit >= needed)
            .map(|write| write.t_s),
    }
}

/// Throttled time counted by `t_s`, interpolated between the samples around it.
pub(crate) fn throttled_at(samples: &[(f64, f64)], t_s: f64) -> f64 {
    let after = samples.partition_point(|(at_s, _)| *at_s < t_s);
    match (after.checked_sub(1).map(|before| samples[before]), samples.get(after)) {
        (Some((t0, v0)), Some(&(t1, v1))) if t1 > t0 => v0 + (v1 - v0) * (t_s - t0) / (t1 - t0),
        (Some((_, value)), _) | (None, Some(&(_, value))) => value,
        (None, None) => 0.0,
    }
}

/// One report per whole ramp in the service's log.
pub(crate) fn ramps(
    events: &[Event],
    writes: &[LimitAt],
    initial: f64,
    needed: f64,
    throttled: &[(f64, f64)],
) -> Vec<RampReport> {
    let mut reports = Vec::new();
    for event in events {
        let Event::DemandWent { ramp, t_s: went_t_s, requests, late, p99_ms } = event else {
            continue;
        };
        let came = events.iter().find_map(|event| match event {
            Event::DemandCame { ramp: number, t_s } if number == ramp => Some(*t_s),
            _ => None,
        });
        let Some(demand_t_s) = came else { continue };
        let limit_t_s = limit_rose_at(writes, initial, needed, demand_t_s, *went_t_s);
        reports.push(RampReport {
            ramp: *ramp,
            demand_t_s,
            limit_t_s,
            lead_ms: limit_t_s.map(|rose_t_s| (demand_t_s - rose_t_s) * 1e3),
            limit_before_cores: limit_at(writes, initial, demand_t_s),
            throttled_ms: (throttled_at(throttled, *went_t_s)
                - throttled_at(throttled, demand_t_s))
                * 1e3,
            late: *late,
            requests: *requests,
            p99_ms: *p99_ms,
        });
    }
    reports
}

/// The middle of `values`; `None` when there is none.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::{LimitAt, limit_rose_at, limit_writes, mean_limit, median, ramps};
    use crate::demo::workload::Event;

    fn write(t_s: f64, limit: f64) -> LimitAt {
        LimitAt { t_s, limit }
    }

    #[test]
    fn a_limit_that_rose_before_the_demand_has_a_positive_lead() {
        let writes = [write(10.0, 0.2), write(17.0, 0.9), write(18.0, 1.0), write(25.0, 0.2)];
        let events = [
            Event::DemandCame { ramp: 3, t_s: 20.0 },
            Event::DemandWent { ramp: 3, t_s: 24.0, requests: 10, late: 1, p99_ms: 5.0 },
        ];
        let reports = ramps(&events, &writes, 1.0, 0.8, &[(20.0, 1.0), (24.0, 1.5)]);
        assert_eq!(reports.len(), 1);
        assert_eq!(reports[0].lead_ms, Some(3000.0));
        assert!((reports[0].throttled_ms - 500.0).abs() < 1e-6);
    }

    #[test]
    fn a_limit_that_rose_after_the_demand_has_a_negative_lead() {
        let writes = [write(10.0, 0.2), write(21.5, 0.9)];
        assert_eq!(limit_rose_at(&writes, 1.0, 0.8, 20.0, 30.0), Some(21.5));
        assert_eq!(limit_rose_at(&writes, 1.0, 0.8, 20.0, 21.0), None);
    }

    #[test]
    fn a_limit_that_was_never_lowered_has_no_lead_to_claim() {
        assert_eq!(limit_rose_at(&[], 1.0, 0.8, 20.0, 30.0), None);
        assert_eq!(limit_rose_at(&[write(5.0, 0.9)], 1.0, 0.8, 20.0, 30.0), None);
    }

    #[test]
    fn the_mean_limit_is_weighted_by_time() {
        let mean = mean_limit(&[write(5.0, 2.0)], 1.0, 0.0, 10.0);
        assert!((mean - 1.5).abs() < 1e-12);
    }

    #[test]
    fn only_applied_writes_of_the_knob_count() {
        let audit = concat!(
            r#"{"decision":{"workload":"/a","knob":"cpu_quota"},"outcome":{"applied":{"applied":{"at":0.5},"at_unix_s":2.0}}}"#,
            "\n",
            r#"{"decision":{"workload":"/a","knob":"cpu_quota"},"outcome":{"failed":"no"}}"#,
            "\n",
            r#"{"decision":{"workload":"/b","knob":"cpu_quota"},"outcome":{"applied":{"applied":"unlimited","at_unix_s":3.0}}}"#,
            "\n{\"torn",
        );
        assert_eq!(limit_writes(audit, "/a", "cpu_quota", 1.0), vec![write(2.0, 0.5)]);
        assert!(limit_writes(audit, "/b", "cpu_quota", 1.0)[0].limit.is_infinite());
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }
}
