//! What workloads are told by to other systems: one table for `/metrics`, remote write and OTLP.
//!
//! A row has its OpenTelemetry name and its UCUM unit; the Prometheus name follows from them by the
//! rules of the OpenTelemetry specification (dots to underscores, the unit as a suffix, `_ratio` for a
//! gauge of unit 1: <https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>),
//! so that a receiver that translates ends with the names that are scraped.

/// What is told of each workload.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[expect(missing_docs, reason = "the help in the table says what each is")]
pub enum Metric {
    DemandCpu,
    DemandMemory,
    DemandDisk,
    DemandNetwork,
    LimitCpu,
    LimitMemory,
    ForecastCpu,
    ForecastMemory,
    ForecastDisk,
    ForecastNetwork,
    ForecastErrorCpu,
    Throttled,
    PressureCpu,
    PressureMemory,
    PressureIo,
    WorkingSet,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// What it is.
    pub metric: Metric,
    /// Its name below `headroom.`, words with dots between them.
    pub stem: &'static str,
    /// Its unit in UCUM; what is in braces is no unit but says what is counted.
    pub unit: &'static str,
    /// What it is, in a sentence.
    pub help: &'static str,
}

const fn row(metric: Metric, stem: &'static str, unit: &'static str, help: &'static str) -> Named {
    Named { metric, stem, unit, help }
}

const DEMAND: &str = "Use in the last period";
const LIMIT: &str = "Limit in force; +Inf is none";
const FORECAST: &str = "Forecast demand";

/// Every row. All are gauges.
pub const TABLE: [Named; 16] = [
    row(Metric::DemandCpu, "demand.cores", "{core}", DEMAND),
    row(Metric::LimitCpu, "limit.cores", "{core}", LIMIT),
    row(Metric::ForecastCpu, "forecast.cores", "{core}", FORECAST),
    row(Metric::DemandMemory, "demand.memory", "By", DEMAND),
    row(Metric::LimitMemory, "limit.memory", "By", LIMIT),
    row(Metric::ForecastMemory, "forecast.memory", "By", FORECAST),
    row(Metric::DemandDisk, "demand.disk", "By/s", DEMAND),
    row(Metric::ForecastDisk, "forecast.disk", "By/s", FORECAST),
    row(Metric::DemandNetwork, "demand.network", "By/s", DEMAND),
    row(Metric::ForecastNetwork, "forecast.network", "By/s", FORECAST),
    row(
        Metric::Throttled,
        "throttled",
        "1",
        "Time with runnable tasks and no quota left, per second",
    ),
    row(
        Metric::PressureCpu,
        "pressure.cpu",
        "1",
        "Time at least one task waited for a CPU, per second",
    ),
    row(
        Metric::PressureMemory,
        "pressure.memory",
        "1",
        "Time at least one task waited for memory, per second",
    ),
    row(
        Metric::PressureIo,
        "pressure.io",
        "1",
        "Time at least one task waited for I/O, per second",
    ),
    row(
        Metric::WorkingSet,
        "memory.working_set",
        "By",
        "Memory charged, without inactive page cache",
    ),
    row(
        Metric::ForecastErrorCpu,
        "forecast.error.cores",
        "{core}",
        "Use in the last period less the median that was forecast for it",
    ),
];

impl Metric {
    /// Its row.
    pub fn named(self) -> &'static Named {
        // Every metric has a row: a test goes through all of them.
        TABLE.iter().find(|row| row.metric == self).unwrap_or(&TABLE[0])
    }
}

impl Named {
    /// The OpenTelemetry name.
    pub fn otel(&self) -> String {
        format!("headroom.{}", self.stem)
    }

    /// The Prometheus name, without the prefix `headroom_` that the registry adds.
    pub fn prometheus_stem(&self) -> String {
        let suffix = match self.unit {
            "By" => "_bytes",
            "By/s" => "_bytes_per_second",
            "s" => "_seconds",
            "1" => "_ratio",
            _ => "",
        };
        format!("{}{suffix}", self.stem.replace('.', "_"))
    }

    /// The whole Prometheus name.
    pub fn prometheus(&self) -> String {
        format!("headroom_{}", self.prometheus_stem())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Metric, TABLE};

    #[test]
    fn both_names_follow_from_one_row_and_are_unique() {
        let names: BTreeSet<String> = TABLE.iter().map(super::Named::prometheus).collect();
        assert_eq!(names.len(), TABLE.len());
        for row in TABLE {
            assert_eq!(row.metric.named().stem, row.stem);
            let twin = row.otel().replace('.', "_");
            assert!(row.prometheus().starts_with(&twin), "{twin}");
        }
        let of = |metric: Metric| (metric.named().otel(), metric.named().prometheus());
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            of(Metric::DemandMemory),
            pair("headroom.demand.memory", "headroom_demand_memory_bytes")
        );
        assert_eq!(of(Metric::Throttled), pair("headroom.throttled", "headroom_throttled_ratio"));
        assert_eq!(
            of(Metric::DemandDisk),
            pair("headroom.demand.disk", "headroom_demand_disk_bytes_per_second")
        );
        assert_eq!(of(Metric::ForecastCpu).1, "headroom_forecast_cores");
    }
}
