//! Queries: what is read from a source, in which unit, and which feature it feeds.
//!
//! A set is a TOML file. Those that are shipped are read with the same code and pass the same checks
//! as one that a user writes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use headroom_telemetry::Feature;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Queries of one set at most.
const QUERIES_MAX: usize = 256;
/// Bytes of a file of queries at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a set cannot be used.
#[derive(Debug, Error)]
pub enum QueryError {
    /// The file cannot be read.
    #[error("cannot read queries {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The file is too large to be a set.
    #[error("queries {path}: {bytes} bytes, a set has at most {FILE_BYTES_MAX}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The file is not what it should be.
    #[error("queries {name}: {source}")]
    Parse {
        /// The set or file.
        name: String,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A query makes no sense.
    #[error("queries {name}: query `{query}`: {problem}")]
    Query {
        /// The set or file.
        name: String,
        /// Which query.
        query: String,
        /// What is wrong, and what it may be.
        problem: String,
    },
    /// There is no such set.
    #[error(
        "there is no query set `{asked}` for {source_name}; there are {known}, and `custom` with --file"
    )]
    Unknown {
        /// As it was asked for.
        asked: String,
        /// The kind of source.
        source_name: &'static str,
        /// Sets there are.
        known: String,
    },
}

/// How the numbers of a series are to be read.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A level: the last value of a step is the value of the step.
    Gauge,
    /// Counts up and begins again at zero: the value of a step is the increase per second since the
    /// step before. A decrease is a restart, and the step is missing.
    Counter,
}

/// The unit of the source's numbers.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// A thousandth of a second.
    Milliseconds,
    /// A millionth of a second.
    Microseconds,
    /// A billionth of a second.
    Nanoseconds,
    /// Bytes.
    Bytes,
    /// 1024 bytes.
    Kibibytes,
    /// 1024 kibibytes.
    Mebibytes,
    /// Bytes per second.
    BytesPerSecond,
    /// CPUs' worth of time.
    Cores,
    /// A thousandth of a core.
    Millicores,
    /// A billionth of a core.
    Nanocores,
    /// A share, 1 is all.
    Ratio,
    /// A share, 100 is all.
    Percent,
    /// A number of things.
    Count,
    /// Things per second.
    PerSecond,
    /// Watts.
    Watts,
}

impl Unit {
    /// What numbers of this unit are of, and by what they are multiplied to be in its base unit.
    fn base(self) -> (&'static str, f64) {
        match self {
            Self::Seconds => ("s", 1.0),
            Self::Milliseconds => ("s", 1e-3),
            Self::Microseconds => ("s", 1e-6),
            Self::Nanoseconds => ("s", 1e-9),
            Self::Bytes => ("bytes", 1.0),
            Self::Kibibytes => ("bytes", 1024.0),
            Self::Mebibytes => ("bytes", 1_048_576.0),
            Self::BytesPerSecond => ("bytes/s", 1.0),
            Self::Cores => ("cores", 1.0),
            Self::Millicores => ("cores", 1e-3),
            Self::Nanocores => ("cores", 1e-9),
            Self::Ratio => ("ratio", 1.0),
            Self::Percent => ("ratio", 0.01),
            Self::Count => ("1", 1.0),
            Self::PerSecond => ("1/s", 1.0),
            Self::Watts => ("W", 1.0),
        }
    }

    /// The factor that makes a value (of a counter, a rate) one of a feature in `feature_unit`;
    /// `None` when the two do not fit.
    fn factor(self, kind: Kind, feature_unit: &str) -> Option<f64> {
        let (base, factor) = self.base();
        let fits = match (kind, base) {
            // Seconds of CPU time per second are cores.
            (Kind::Counter, "s") => feature_unit == "cores" || feature_unit == "s/s",
            (Kind::Counter, "bytes") => feature_unit == "bytes/s",
            (Kind::Counter, "1") => feature_unit == "1/s",
            (Kind::Counter, _) => false,
            (Kind::Gauge, "ratio") => feature_unit == "ratio" || feature_unit == "s/s",
            (Kind::Gauge, base) => feature_unit == base,
        };
        fits.then_some(factor)
    }
}

/// Whose numbers a query's series are, told from their labels.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// A container of a Kubernetes pod.
    Container,
    /// A whole Kubernetes pod: given to its container where it has exactly one.
    Pod,
    /// A cgroup, told by its path or the name of its container: Docker's containers, systemd's units.
    Cgroup,
    /// The whole host: the root cgroup `/`.
    Host,
}

/// One query, as it is written in a set.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Prometheus: a metric with or without a selector. Read as its last value in each step, so that
    /// a gap stays one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// Prometheus: an expression, in place of `metric`. `$range` becomes the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
    /// InfluxDB: the measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurement: Option<String>,
    /// InfluxDB: the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// InfluxDB: a condition on tags, in InfluxQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// How its numbers are to be read.
    pub kind: Kind,
    /// Their unit.
    pub unit: Unit,
    /// The feature they feed.
    #[serde(rename = "feature")]
    pub feature_name: String,
    /// Whose they are.
    pub of: Level,
    /// Labels that tell parts of one workload apart: devices, interfaces. Parts are added up; series
    /// that differ in any other label are the same thing twice, and one of them counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<String>,
    /// Whether zero says that there is none, as it does of limits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zero_is_none: bool,
}

impl Query {
    /// What it reads, for people.
    pub fn name(&self) -> String {
        match (&self.metric, &self.expression, &self.measurement, &self.field) {
            (Some(metric), ..) => metric.clone(),
            (_, Some(expression), ..) => expression.clone(),
            (.., Some(measurement), Some(field)) => match &self.condition {
                Some(condition) => format!("{measurement}.{field} [{}]", condition.trim()),
                None => format!("{measurement}.{field}"),
            },
            _ => "?".to_owned(),
        }
    }

    fn problem(&self, source: SourceKind) -> Result<(Feature, f64), String> {
        let reads = match source {
            SourceKind::Prometheus => self.metric.is_some() != self.expression.is_some(),
            SourceKind::Influxdb => self.measurement.is_some() && self.field.is_some(),
        };
        if !reads {
            return Err(match source {
                SourceKind::Prometheus => "give either `metric` or `expression`".to_owned(),
                SourceKind::Influxdb => "give `measurement` and `field`".to_owned(),
            });
        }
        let feature = Feature::by_name(&self.feature_name).ok_or_else(|| {
            format!("there is no feature `{}`; docs/FINGERPRINT.md lists them", self.feature_name)
        })?;
        let factor = self.unit.factor(self.kind, feature.unit()).ok_or_else(|| {
            format!(
                "a {:?} of {:?} does not give {}, the unit of {}",
                self.kind,
                self.unit,
                feature.unit(),
                feature.name()
            )
            .to_lowercase()
        })?;
        Ok((feature, factor))
    }
}

/// A query that was checked.
#[derive(Clone, Debug)]
pub struct Checked {
    /// As it was written.
    pub query: Query,
    /// What it feeds.
    pub feature: Feature,
    /// From the source's unit to the feature's.
    pub factor: f64,
}

/// Names of the labels that tell who is measured. A list is tried in order.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LabelNames {
    /// The host.
    pub host: Vec<String>,
    /// Namespace of the pod.
    pub namespace: Vec<String>,
    /// The pod.
    pub pod: Vec<String>,
    /// The container's name.
    pub container: Vec<String>,
    /// The cgroup's path.
    pub path: Vec<String>,
    /// The image.
    pub image: Vec<String>,
    /// Project of Docker Compose.
    pub compose_project: Vec<String>,
    /// Service of Docker Compose.
    pub compose_service: Vec<String>,
}

impl Default for LabelNames {
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            host: names(&["node", "node_name", "engine_host", "host", "instance"]),
            namespace: names(&["namespace", "pod_namespace"]),
            pod: names(&["pod", "pod_name"]),
            container: names(&["container", "container_name", "name"]),
            path: names(&["id"]),
            image: names(&["image", "container_image"]),
            compose_project: names(&[
                "container_label_com_docker_compose_project",
                "com.docker.compose.project",
            ]),
            compose_service: names(&[
                "container_label_com_docker_compose_service",
                "com.docker.compose.service",
            ]),
        }
    }
}

/// What is read from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SourceKind {
    /// Prometheus and what answers like it.
    Prometheus,
    /// InfluxDB 1.
    Influxdb,
}

impl SourceKind {
    /// Its name in commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prometheus => "prometheus",
            Self::Influxdb => "influxdb",
        }
    }

    /// The sets that are shipped for it.
    pub fn sets(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Prometheus => &[
                ("kubernetes", include_str!("sets/prometheus-kubernetes.toml")),
                ("node", include_str!("sets/prometheus-node.toml")),
            ],
            Self::Influxdb => &[
                ("kubernetes", include_str!("sets/influxdb-kubernetes.toml")),
                ("docker", include_str!("sets/influxdb-docker.toml")),
                ("node", include_str!("sets/influxdb-node.toml")),
            ],
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetFile {
    #[serde(default)]
    labels: LabelNames,
    query: Vec<Query>,
}

/// Queries that are run together.
#[derive(Clone, Debug)]
pub struct QuerySet {
    /// Its name, or the file's.
    pub name: String,
    /// Which labels tell who is measured.
    pub labels: LabelNames,
    /// In the order they were written.
    pub queries: Vec<Checked>,
    /// The text it was read from: what a resumed import must find unchanged.
    pub text: String,
}

impl QuerySet {
    /// A set that is shipped, or with the name `custom` the one in `file`.
    ///
    /// # Errors
    ///
    /// When there is no such set, the file cannot be read, or a query makes no sense.
    pub fn find(source: SourceKind, name: &str, file: Option<&Path>) -> Result<Self, QueryError> {
        if let Some(path) = file.filter(|_| name == "custom") {
            return Self::parse(source, &path.display().to_string(), read(path)?);
        }
        let shipped = source.sets().iter().find(|(known, _)| *known == name);
        let (name, text) = shipped.ok_or_else(|| QueryError::Unknown {
            asked: name.to_owned(),
            source_name: source.name(),
            known: source.sets().iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        })?;
        Self::parse(source, name, (*text).to_owned())
    }

    fn parse(source: SourceKind, name: &str, text: String) -> Result<Self, QueryError> {
        let file: SetFile = toml::from_str(&text).map_err(|error| QueryError::Parse {
            name: name.to_owned(),
            source: Box::new(error),
        })?;
        let refuse = |query: String, problem: String| QueryError::Query {
            name: name.to_owned(),
            query,
            problem,
        };
        if file.query.is_empty() || file.query.len() > QUERIES_MAX {
            let problem = format!("{} queries, a set has 1 to {QUERIES_MAX}", file.query.len());
            return Err(refuse(String::new(), problem));
        }
        let mut fed: BTreeMap<(usize, Level), String> = BTreeMap::new();
        let mut queries = Vec::with_capacity(file.query.len());
        for query in file.query {
            let (feature, factor) =
                query.problem(source).map_err(|problem| refuse(query.name(), problem))?;
            if let Some(other) = fed.insert((feature.index(), query.of), query.name()) {
                let problem = format!("`{other}` feeds {} of the same already", feature.name());
                return Err(refuse(query.name(), problem));
            }
            queries.push(Checked { query, feature, factor });
        }
        Ok(Self { name: name.to_owned(), labels: file.labels, queries, text })
    }

    /// The set as a table in Markdown.
    pub fn table(&self) -> String {
        let mut table = "| read | as | of | feeds | unit |\n|---|---|---|---|---|\n".to_owned();
        for Checked { query, feature, .. } in &self.queries {
            table.push_str(&format!(
                "| `{}` | {} of {} | {} | `{}` | {} |\n",
                query.name().replace('|', "\\|"),
                format!("{:?}", query.kind).to_lowercase(),
                snake(query.unit),
                snake(query.of),
                feature.name(),
                feature.unit()
            ));
        }
        table
    }
}

/// The name a value has in a set.
fn snake(value: impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn read(path: &Path) -> Result<String, QueryError> {
    let failed = |source| QueryError::Read { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(QueryError::TooLarge { path: path.to_owned(), bytes });
    }
    fs::read_to_string(path).map_err(failed)
}

impl PartialOrd for Level {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Level {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (*self as u8).cmp(&(*other as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, QuerySet, SourceKind, Unit};

    #[test]
    fn every_shipped_set_passes_the_checks_and_is_in_the_document() {
        let document = include_str!("../../../docs/IMPORT.md");
        for source in [SourceKind::Prometheus, SourceKind::Influxdb] {
            for (name, _) in source.sets() {
                let set = QuerySet::find(source, name, None).unwrap();
                let table = set.table();
                assert!(
                    document.contains(&table),
                    "docs/IMPORT.md lacks {} {name}; it must have:\n{table}",
                    source.name()
                );
            }
        }
    }

    #[test]
    fn a_unit_that_does_not_give_the_features_is_refused_by_name() {
        let text = |unit: &str, feature: &str| {
            format!(
                "[[query]]\nmetric = \"x_total\"\nkind = \"counter\"\nunit = \"{unit}\"\n\
                 feature = \"{feature}\"\nof = \"host\"\n"
            )
        };
        let parse = |text| QuerySet::parse(SourceKind::Prometheus, "mine", text);
        let error = parse(text("bytes", "cpu_cores")).unwrap_err().to_string();
        assert!(error.contains("x_total") && error.contains("cores"), "{error}");
        let error = parse(text("seconds", "cpu_coars")).unwrap_err().to_string();
        assert!(error.contains("cpu_coars"), "{error}");
        assert!(parse(text("seconds", "cpu_cores") + &text("seconds", "cpu_cores")).is_err());
        let set = parse(text("nanoseconds", "cpu_cores")).unwrap();
        assert!((set.queries[0].factor - 1e-9).abs() < 1e-24);
        assert_eq!(Unit::Seconds.factor(Kind::Gauge, "cores"), None);
        let unknown = QuerySet::find(SourceKind::Influxdb, "kubernets", None).unwrap_err();
        assert!(unknown.to_string().contains("docker"), "{unknown}");
    }
}
