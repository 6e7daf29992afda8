//! The same lake, asked by each engine: rows equal to those of the engine in process. And what the
//! lake promises to all of them.

#![cfg(feature = "sql")]
#![cfg_attr(
    feature = "sql",
    expect(clippy::unwrap_used, reason = "a test stops where something is not as it should be")
)]

use std::{path::Path, sync::Arc};

use headroom_lake::{
    ActionRow, Identity, Lake, Rows, Table,
    dataset::{self, Spec},
    engine::{Embedded, Engine, EngineName, Hot, Snapshot, check_reads},
    lake::Keeping,
    output::{Format, render},
    schema,
    storage::Local,
};
use headroom_telemetry::Feature;

/// The begin of an hour.
const T0_MS: i64 = 1_795_370_400_000;

fn identity(id: u32) -> Arc<Identity> {
    Arc::new(Identity {
        id,
        host: format!("host-{}", id % 2),
        path: format!("/w/{id}"),
        model_key: format!("cgroup:/w/{id}"),
    })
}

fn rows(seconds: std::ops::Range<i64>, of: u32) -> Rows {
    let mut rows = Rows::default();
    for second in seconds {
        rows.t_ms.push(T0_MS + second * 1_000);
        let mut values = vec![f32::NAN; Feature::COUNT];
        values[Feature::CpuCores.index()] = ((second % 37) as f32).mul_add(0.25, of as f32);
        if second % 3 != 0 {
            values[Feature::MemoryBytes.index()] = (second * 4_096) as f32;
        }
        rows.values.extend(values);
    }
    rows
}

/// Two hours of three workloads in four files, the first hour merged and thinned.
fn make_lake(root: &Path) -> Lake {
    let lake = Lake::open(root, "main", Arc::new(Local), None).unwrap();
    for (number, from) in [0, 1_800, 3_600, 5_400].into_iter().enumerate() {
        let series = (0..3).map(|id| (identity(id), rows(from..from + 1_800, id))).collect();
        let action = ActionRow {
            t_ms: T0_MS + from * 1_000 + 500,
            knob: "cpu.max".to_owned(),
            change: "{}".to_owned(),
        };
        let actions = vec![((*identity(1)).clone(), action)];
        lake.adopt(lake.seal(number as u64, series, actions).unwrap());
    }
    let keeping =
        Keeping { samples_ms: 86_400_000, samples_10s_ms: 86_400_000, samples_5m_ms: 86_400_000 };
    let tended = lake.tend(T0_MS + 4_300_000, 9, &keeping).unwrap();
    assert_eq!((tended.merged, tended.thinned), (2, 1));
    let workloads: Vec<_> =
        (0..3).map(|id| ((*identity(id)).clone(), format!("w{id}"), "cgroup".to_owned())).collect();
    lake.write_workloads(&schema::workloads_batch(&workloads, root).unwrap()).unwrap();
    lake
}

fn snapshot(root: &Path) -> Snapshot {
    Snapshot::take(root, 0, i64::MAX).unwrap()
}

/// Hears of days that are done.
fn quiet(_done: usize, _days: usize, _name: &str) {}

async fn csv(engine: &dyn Engine, snapshot: &Snapshot, sql: &str) -> String {
    let rows = engine.sql(snapshot, sql).await.unwrap();
    String::from_utf8(render(&rows, Format::Csv).unwrap()).unwrap()
}

/// In the subset of SQL that all engines share.
const QUERIES: [&str; 6] = [
    "SELECT COUNT(*) AS n, COUNT(memory_bytes) AS with_memory, MIN(t_ms) AS first, MAX(t_ms) AS last FROM samples",
    "SELECT host, path, COUNT(*) AS n, MAX(cpu_cores) AS peak FROM samples GROUP BY host, path ORDER BY host, path",
    "SELECT path, t_ms, n, cpu_cores, cpu_cores_max FROM samples_10s WHERE path = '/w/2' ORDER BY t_ms LIMIT 20",
    "SELECT path, t_ms, n, cpu_cores_p95 FROM samples_5m ORDER BY path, t_ms",
    "SELECT w.name, a.knob, a.t_ms FROM actions a JOIN workloads w ON a.path = w.path ORDER BY a.t_ms",
    "SELECT t_ms, cpu_cores - LAG(cpu_cores) OVER (ORDER BY t_ms) AS step FROM samples WHERE path = '/w/1' AND t_ms < 1795370500000 ORDER BY t_ms",
];

#[tokio::test]
async fn sql_sees_every_row_once_and_missing_as_null() {
    let dir = tempfile::tempdir().unwrap();
    let _lake = make_lake(dir.path());
    let (engine, snapshot) = (Embedded::default(), snapshot(dir.path()));
    let counted = csv(&engine, &snapshot, QUERIES[0]).await;
    let last = T0_MS + 7_199_000;
    assert_eq!(counted, format!("n,with_memory,first,last\n21600,14400,{T0_MS},{last}\n"));
    let by_host = csv(&engine, &snapshot, QUERIES[1]).await;
    assert_eq!(by_host.lines().nth(1), Some("host-0,/w/0,7200,9.0"));
    let fine = csv(&engine, &snapshot, QUERIES[2]).await;
    assert_eq!(fine.lines().nth(1), Some(&*format!("/w/2,{T0_MS},10,3.125,4.25")));
    assert_eq!(csv(&engine, &snapshot, QUERIES[3]).await.lines().count(), 1 + 3 * 12);
    assert_eq!(
        csv(&engine, &snapshot, QUERIES[4]).await.lines().nth(1),
        Some(&*format!("w1,cpu.max,{}", T0_MS + 500))
    );
    let json = render(
        &engine.sql(&snapshot, "SELECT memory_bytes FROM samples LIMIT 1").await.unwrap(),
        Format::Json,
    )
    .unwrap();
    assert_eq!(String::from_utf8(json).unwrap(), "[{}]\n", "missing is left out, not zero");
}

#[tokio::test]
async fn rows_in_no_file_are_joined_and_sealed_ones_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let _lake = make_lake(dir.path());
    let schema = schema::of(Table::Samples);
    let (who, lately) = (identity(0), rows(7_200..7_300, 0));
    let batch = schema::batch(Table::Samples, &schema, &[(&who, &lately)], dir.path()).unwrap();
    let hot = Hot { samples: vec![batch], actions: Vec::new() };
    let engine = Embedded { hot };
    let engine = &engine;
    let counted = |snapshot: Snapshot| async move {
        csv(engine, &snapshot, "SELECT COUNT(*) AS n FROM samples").await
    };
    assert_eq!(counted(snapshot(dir.path())).await, "n\n21700\n");
    let without = snapshot(dir.path()).without("main", &[3].into());
    assert_eq!(counted(without).await, "n\n16300\n");
}

#[tokio::test]
async fn a_query_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let _lake = make_lake(dir.path());
    let out = dir.path().join("out.csv");
    for sql in [
        format!("COPY samples TO '{}'", out.display()),
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'".to_owned(),
        "SET datafusion.execution.batch_size = 1".to_owned(),
        "DROP TABLE samples".to_owned(),
    ] {
        let refused = Embedded::default().sql(&snapshot(dir.path()), &sql).await;
        assert!(refused.is_err(), "{sql}");
    }
    assert!(!out.exists());
}

#[tokio::test]
async fn a_training_set_is_built_once_and_taken_up_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("lake");
    let _lake = make_lake(&root);
    let out = dir.path().join("set");
    let spec = Spec { from_ms: T0_MS, to_ms: T0_MS + 7_200_000, table: Table::Samples };
    let manifest = dataset::build(&Embedded::default(), &root, &spec, &out, &quiet).await.unwrap();
    assert_eq!(manifest.files.iter().map(|file| file.rows).sum::<i64>(), 3 * 720);
    assert!(out.join("manifest.json").is_file() && !out.join("_tmp").exists());
    // A second build finds it; another span is refused; without its manifest it is taken up.
    let again = dataset::build(&Embedded::default(), &root, &spec, &out, &quiet).await.unwrap();
    assert_eq!(again, manifest);
    let other = Spec { from_ms: T0_MS + 1, ..spec.clone() };
    let refused =
        dataset::build(&Embedded::default(), &root, &other, &out, &quiet).await.unwrap_err();
    assert!(refused.to_string().contains("--out"), "{refused}");
    std::fs::remove_file(out.join("manifest.json")).unwrap();
    let written = std::fs::metadata(out.join(&manifest.files[0].name)).unwrap().modified().unwrap();
    dataset::build(&Embedded::default(), &root, &spec, &out, &quiet).await.unwrap();
    let kept = std::fs::metadata(out.join(&manifest.files[0].name)).unwrap().modified().unwrap();
    assert_eq!(written, kept, "a day that is there is not built again");
}

/// Numbers equal but for the last bits, which depend on the order of additions.
fn assert_same(name: &str, ours: &str, theirs: &str) {
    assert_eq!(ours.lines().count(), theirs.lines().count(), "{name}");
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        for (a, b) in ours.split(',').zip(theirs.split(',')) {
            let same = match (a.parse::<f64>(), b.parse::<f64>()) {
                (Ok(a), Ok(b)) => (a - b).abs() <= 1e-6 * a.abs().max(1.0),
                _ => a == b,
            };
            assert!(same, "{name}: {ours} is not {theirs}");
        }
    }
}

#[tokio::test]
async fn spark_answers_as_the_engine_in_process() {
    let name: EngineName = std::env::var("HEADROOM_SPARK")
        .unwrap_or_else(|_unset| "spark://local".to_owned())
        .parse()
        .unwrap();
    let engine = match name.start() {
        Ok(engine) => engine,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("lake");
    let _lake = make_lake(&root);
    let snapshot = snapshot(&root);
    // One submission for all queries: each start of Spark takes seconds.
    let spec = Spec { from_ms: T0_MS, to_ms: T0_MS + 600_000, table: Table::Samples };
    let set = dataset::sql(spec.table, spec.from_ms, spec.to_ms);
    let queries: Vec<&str> = QUERIES.into_iter().chain([set.as_str()]).collect();
    let jobs: Vec<_> = queries
        .iter()
        .enumerate()
        .map(|(i, sql)| headroom_lake::engine::Job {
            sql: (*sql).to_owned(),
            out: dir.path().join(format!("{i}.parquet")),
        })
        .collect();
    engine.write(&snapshot, &jobs).await.unwrap();
    for (sql, job) in queries.iter().zip(&jobs) {
        let ours = csv(&Embedded::default(), &snapshot, sql).await;
        let theirs = String::from_utf8(
            render(&headroom_lake::engine::read_all(&job.out).unwrap(), Format::Csv).unwrap(),
        )
        .unwrap();
        assert_same(sql, &ours, &theirs);
    }
}

#[test]
fn an_engine_that_is_not_there_says_how_to_get_it() {
    let error = |name: &str| name.parse::<EngineName>().unwrap_err().to_string();
    assert!(error("ballista://h:50050").contains("spark://HOST:PORT"));
    assert!(error("flink").contains("embedded"));
}

#[tokio::test]
async fn files_that_were_merged_away_are_noticed_as_they_may_read_as_no_rows() {
    let dir = tempfile::tempdir().unwrap();
    let lake = Lake::open(dir.path(), "main", Arc::new(Local), None).unwrap();
    for (number, from) in [0, 1_800].into_iter().enumerate() {
        let series = vec![(identity(0), rows(from..from + 1_800, 0))];
        lake.adopt(lake.seal(number as u64, series, Vec::new()).unwrap());
    }
    let before = snapshot(dir.path());
    assert!(!before.is_outdated());
    let keeping =
        Keeping { samples_ms: 86_400_000, samples_10s_ms: 86_400_000, samples_5m_ms: 86_400_000 };
    assert!(lake.tend(T0_MS + 4_300_000, 9, &keeping).unwrap().merged > 0);
    assert!(before.is_outdated());
    let after = snapshot(dir.path());
    assert!(!after.is_outdated());
    let counted = csv(&Embedded::default(), &after, "SELECT COUNT(*) AS n FROM samples").await;
    assert_eq!(counted, "n\n3600\n");
}

#[test]
fn only_one_statement_that_selects_is_run_whichever_engine() {
    for sql in [
        "SELECT 1",
        "WITH a AS (SELECT 1 AS x) SELECT x FROM a UNION ALL SELECT 2 ORDER BY 1;",
        "(SELECT host FROM samples)",
        "VALUES (1)",
    ] {
        assert!(check_reads(sql).is_ok(), "{sql}");
    }
    for sql in [
        "",
        "SELECT 1; SELECT 2",
        "INSERT INTO samples VALUES (1)",
        "INSERT OVERWRITE DIRECTORY '/tmp/x' SELECT 1",
        "CREATE TABLE t AS SELECT 1",
        "DROP TABLE samples",
        "COPY samples TO '/tmp/x'",
        "SET a = 1",
        "SELECT 1 INTO t",
        "EXPLAIN ANALYZE SELECT 1",
    ] {
        assert!(check_reads(sql).is_err(), "{sql}");
    }
}
