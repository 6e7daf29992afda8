//! Builds the training set: every 10 seconds of every workload, what it used and what it came to use.
//!
//! One file per day, by SQL in the subset that every engine understands. Built in `OUT/_tmp` and then
//! named, the manifest last: a build that was cut off is taken up where it stopped, a directory without
//! a manifest is no data set.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use headroom_telemetry::{Feature, schema::SchemaHash};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use serde::{Deserialize, Serialize};

use crate::{
    Hour, LakeError, Root, Table,
    engine::{Engine, Job, Snapshot},
    schema::demand,
};

/// What a data set that is done has.
const MANIFEST: &str = "manifest.json";
/// What one that is being built has.
const SPEC: &str = "_spec.json";
/// Length of a row, milliseconds.
const STEP_MS: i64 = 10_000;
const DAY_MS: i64 = 86_400_000;
/// Spans after a row whose highest use is told: name and milliseconds.
const AHEAD: [(&str, i64); 2] = [("1m", 60_000), ("5m", 300_000)];

/// What a training set is made of.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Spec {
    /// First millisecond since the Unix epoch.
    pub from_ms: i64,
    /// The millisecond after the last.
    pub to_ms: i64,
    /// Samples, or their 10 s rollup, which reaches further back.
    pub table: Table,
}

impl Spec {
    /// First millisecond of each day of it, and the one after the last.
    fn days(&self) -> Vec<(i64, i64)> {
        let mut days = Vec::new();
        let mut from_ms = self.from_ms;
        while from_ms < self.to_ms {
            let to_ms = (from_ms.div_euclid(DAY_MS) * DAY_MS + DAY_MS).min(self.to_ms);
            days.push((from_ms, to_ms));
            from_ms = to_ms;
        }
        days
    }
}

/// What is in a training set; written last.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Manifest {
    /// What was asked for.
    pub spec: Spec,
    /// Hash of the features' names, units and order.
    pub schema: String,
    /// Which engine built it.
    pub engine: String,
    /// Its files.
    pub files: Vec<DatasetFile>,
}

/// A file of a training set.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DatasetFile {
    /// Within the directory.
    pub name: String,
    /// Rows.
    pub rows: i64,
}

/// The query for the rows from `from_ms` up to `to_ms`, exclusive.
pub fn sql(table: Table, from_ms: i64, to_ms: i64) -> String {
    let reach_ms = AHEAD.iter().map(|(_, ms)| *ms).max().unwrap_or(0);
    let means: Vec<String> =
        Feature::ALL.iter().map(|feature| format!("AVG({0}) AS {0}", feature.name())).collect();
    let suffix = if table == Table::Samples10s { "_max" } else { "" };
    let maxima: Vec<String> =
        demand().map(|f| format!("MAX({0}{suffix}) AS {0}_max", f.name())).collect();
    let ahead: Vec<String> = demand()
        .flat_map(|feature| {
            AHEAD.map(|(name, ms)| {
                format!(
                    "MAX({0}_max) OVER (PARTITION BY host, path, model_key ORDER BY t_ms \
                     RANGE BETWEEN {STEP_MS} FOLLOWING AND {ms} FOLLOWING) AS {0}_next_{name}",
                    feature.name()
                )
            })
        })
        .collect();
    let names: Vec<&str> = Feature::ALL.iter().map(|feature| feature.name()).collect();
    let max_names: Vec<String> = demand().map(|f| format!("{}_max", f.name())).collect();
    let ahead_names: Vec<String> =
        demand().flat_map(|f| AHEAD.map(|(name, _)| format!("{}_next_{name}", f.name()))).collect();
    format!(
        "WITH steps AS (\
         SELECT host, path, model_key, t_ms - t_ms % {STEP_MS} AS t_ms, COUNT(*) AS n, {}, {} \
         FROM {} WHERE t_ms >= {from_ms} AND t_ms < {} \
         GROUP BY host, path, model_key, t_ms - t_ms % {STEP_MS}), \
         ahead AS (SELECT steps.*, {} FROM steps) \
         SELECT host, path, model_key, t_ms, n, {}, {}, {} FROM ahead WHERE t_ms < {to_ms} \
         ORDER BY host, path, model_key, t_ms",
        means.join(", "),
        maxima.join(", "),
        table.name(),
        to_ms + reach_ms,
        ahead.join(", "),
        names.join(", "),
        max_names.join(", "),
        ahead_names.join(", "),
    )
}

fn day_name(from_ms: i64) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp(from_ms.div_euclid(1_000))
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
        .date();
    format!("day-{:04}-{:02}-{:02}.parquet", at.year(), u8::from(at.month()), at.day())
}

/// The span of a build in `out` that was cut off; `None` when none was begun, or it is done.
///
/// # Errors
///
/// When what says so cannot be read.
pub fn begun(out: &Path) -> Result<Option<Spec>, LakeError> {
    if out.join(MANIFEST).is_file() { Ok(None) } else { read_json(&out.join(SPEC)) }
}

/// Builds the training set of `spec` from the lake at `root` into directory `out`. `told` hears of
/// each day that is done: how many are, of how many, and its file.
///
/// # Errors
///
/// When the span is empty, `out` holds a data set of another kind, the lake cannot be read, or the
/// engine fails. Days that were built stay for the next try.
pub async fn build(
    engine: &dyn Engine,
    root: &Root,
    spec: &Spec,
    out: &Path,
    told: &(dyn Fn(usize, usize, &str) + Sync),
) -> Result<Manifest, LakeError> {
    let foreign = |path: &Path, reason: &str| {
        Err(LakeError::Foreign { path: path.to_owned(), reason: reason.to_owned() })
    };
    if spec.from_ms >= spec.to_ms {
        return foreign(out, "its span is empty: --from must be before --to");
    }
    let (manifest_path, spec_path) = (out.join(MANIFEST), out.join(SPEC));
    if let Some(done) = read_json::<Manifest>(&manifest_path)? {
        return if done.spec == *spec && done.schema == SchemaHash::current().to_string() {
            Ok(done)
        } else {
            foreign(&manifest_path, "it holds a data set of another span: choose another --out")
        };
    }
    let temporary = out.join("_tmp");
    fs::create_dir_all(&temporary).map_err(LakeError::io("make", &temporary))?;
    match read_json::<Spec>(&spec_path)? {
        Some(begun) if begun != *spec => {
            return foreign(
                &spec_path,
                "another span was begun here: remove it or choose another --out",
            );
        }
        Some(_) => {}
        None => write_json(&spec_path, spec)?,
    }
    let mut names = Vec::new();
    let mut jobs = Vec::new();
    for (from_ms, to_ms) in spec.days() {
        let name = day_name(from_ms);
        if !out.join(&name).is_file() {
            jobs.push(Job { sql: sql(spec.table, from_ms, to_ms), out: temporary.join(&name) });
        }
        names.push(name);
    }
    let mut n_done = names.len() - jobs.len();
    for chunk in jobs.chunks(engine.jobs_together()) {
        // An hour more than is asked for: rows tell of the minutes after them.
        let to_ms = spec.to_ms + Hour(1).start_ms();
        Snapshot::over(root, spec.from_ms, to_ms, async |snapshot| {
            engine.write(snapshot, chunk).await
        })
        .await?;
        for job in chunk {
            let name = job.out.file_name().unwrap_or_default();
            fs::rename(&job.out, out.join(name)).map_err(LakeError::io("name", &job.out))?;
            n_done += 1;
            told(n_done, names.len(), &name.to_string_lossy());
        }
    }
    let files = names
        .into_iter()
        .map(|name| Ok(DatasetFile { rows: rows_in(&out.join(&name))?, name }))
        .collect::<Result<Vec<_>, LakeError>>()?;
    let manifest = Manifest {
        spec: spec.clone(),
        schema: SchemaHash::current().to_string(),
        engine: engine.name(),
        files,
    };
    fs::remove_dir_all(&temporary).map_err(LakeError::io("remove", &temporary))?;
    write_json(&manifest_path, &manifest)?;
    fs::remove_file(&spec_path).map_err(LakeError::io("remove", &spec_path))?;
    Ok(manifest)
}

/// Widens the training set in `out` to the time from `from_ms` up to `to_ms` as well: days that are
/// whole in it stay as they are, those at its ends and new ones are built. It is no data set meanwhile;
/// cut off, the same call goes on with it.
///
/// # Errors
///
/// As [`build`], and when there is no data set of this program's features in `out`.
pub async fn backfill(
    engine: &dyn Engine,
    root: &Root,
    (from_ms, to_ms): (i64, i64),
    out: &Path,
    told: &(dyn Fn(usize, usize, &str) + Sync),
) -> Result<Manifest, LakeError> {
    let (manifest_path, spec_path) = (out.join(MANIFEST), out.join(SPEC));
    let begun = read_json::<Spec>(&spec_path)?;
    let Some(done) = read_json::<Manifest>(&manifest_path)? else {
        let Some(begun) = begun else {
            let reason = "there is no data set to widen: make one with `dataset build`";
            return Err(LakeError::Foreign { path: out.to_owned(), reason: reason.to_owned() });
        };
        return build(engine, root, &begun, out, told).await;
    };
    if done.schema != SchemaHash::current().to_string() {
        let reason = "it has other features than this program: build a new one";
        return Err(LakeError::Foreign { path: manifest_path, reason: reason.to_owned() });
    }
    let wide = begun.unwrap_or(Spec {
        from_ms: done.spec.from_ms.min(from_ms),
        to_ms: done.spec.to_ms.max(to_ms),
        table: done.spec.table,
    });
    if wide == done.spec {
        return Ok(done);
    }
    write_json(&spec_path, &wide)?;
    let kept = wide.days();
    for (from_ms, to_ms) in done.spec.days() {
        let path = out.join(day_name(from_ms));
        if !kept.contains(&(from_ms, to_ms)) && path.is_file() {
            fs::remove_file(&path).map_err(LakeError::io("remove", &path))?;
        }
    }
    fs::remove_file(&manifest_path).map_err(LakeError::io("remove", &manifest_path))?;
    build(engine, root, &wide, out, told).await
}

fn rows_in(path: &PathBuf) -> Result<i64, LakeError> {
    let file = File::open(path).map_err(LakeError::io("open", path))?;
    let reader = SerializedFileReader::new(file).map_err(LakeError::parquet("read", path))?;
    Ok(reader.metadata().file_metadata().num_rows())
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, LakeError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| LakeError::Foreign {
            path: path.to_owned(),
            reason: error.to_string(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LakeError::io("read", path)(error)),
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), LakeError> {
    let foreign = |error: serde_json::Error| LakeError::Foreign {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let text = serde_json::to_vec_pretty(value).map_err(foreign)?;
    let temporary = path.with_extension("json.tmp");
    fs::write(&temporary, text).map_err(LakeError::io("write", &temporary))?;
    let synced = File::open(&temporary).and_then(|file| file.sync_all());
    synced.map_err(LakeError::io("sync", &temporary))?;
    fs::rename(&temporary, path).map_err(LakeError::io("name", path))
}
